"""One piece of a segment and which of its vectors may be an answer, scanned with one thread.

A piece is scanned vector by vector, so that a score does not depend on the piece that a vector is
in, nor on the other queries of a batch: the same query and vector give the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from forvalue_index.errors import CorruptIndexError
from forvalue_index.search.backend import faiss
from forvalue_index.search.segments import OpenSegment

Scores = NDArray[np.float32]
Ids = NDArray[np.int64]
T = TypeVar("T")
S = TypeVar("S")

_LABELS = 2**22  # ids that one call of `every` holds at a time: 32 MiB


class Part:
    """A piece of a segment and which of its vectors may be an answer."""

    def __init__(
        self, piece: OpenSegment, live: int, bits: NDArray[np.bool_] | None, selector: Any
    ) -> None:
        """`parts_of` makes them; `bits` and `selector`: which ids may be; None: all of them."""
        self.piece = piece
        self.live = live
        self._bits = bits
        self._selector = selector

    def _parameters(self) -> Any:
        # New for each call: while IndexIDMap searches, it puts a selector of its own into them,
        # so that two threads with the same ones crash.
        return None if self._selector is None else faiss().SearchParameters(sel=self._selector)

    def search(self, queries: Scores, k: int) -> tuple[Scores, Ids]:
        """Scores and ids [q, min(k, live)], best first; equal scores in no order."""
        k = min(k, self.live)
        scores, ids = self.piece.index.search(queries, k, params=self._parameters())
        # FAISS fills up with -1 where it finds fewer, as when a score is NaN.
        if (ids < 0).any() or not np.isfinite(scores).all():
            raise self.not_finite()
        return scores, ids

    def every(self, queries: Scores) -> Iterator[tuple[int, Scores, Ids]]:
        """Yields some queries' first number, all their scores, and the ids [some, live] each."""
        # A search for all of them: faster than range_search, and than decoding for BLAS
        # unless there are many queries (one query, 100,000 x 1024: 70, 240, 300 ms).
        step = max(1, _LABELS // self.live)
        for start in range(0, len(queries), step):
            yield start, *self.search(queries[start : start + step], self.live)

    def search_weighted(self, queries: Scores, k: int, table: Scores) -> tuple[Scores, Ids]:
        """As `search`, with scores times the weights in `table`; of equal ones the smaller ids."""
        k = min(k, self.live)
        best_scores = np.empty((len(queries), k), np.float32)
        best_ids = np.empty((len(queries), k), np.int64)
        for start, every_score, every_id in self.every(queries):
            every_score *= table[every_id]
            for i, (scores, ids) in enumerate(zip(every_score, every_id, strict=True), start):
                kept = scores >= np.partition(scores, -k)[-k]
                best_scores[i], best_ids[i] = best_of([scores[kept]], [ids[kept]], k)
        return best_scores, best_ids

    def at_least(self, query: Scores, score: np.float32) -> tuple[Scores, Ids]:
        """All scores of one query [dim] that are `score` or more, and their ids, [m] each."""
        # FAISS's range_search rounds otherwise than search, unless 16 divides the dimension.
        ((_, scores, ids),) = self.every(query[None])
        kept = scores[0] >= score
        return scores[0, kept], ids[0, kept]

    def stored(self, step: int) -> Iterator[tuple[Ids, NDArray[np.float16]]]:
        """Yields the ids of up to `step` vectors that may be an answer, and them, [step, dim]."""
        ids, halves = self.piece.ids, self.piece.halves
        if self._bits is None:
            for start in range(0, self.live, step):
                yield ids[start : start + step], halves[start : start + step]
            return
        inside = ids[: np.searchsorted(ids, len(self._bits))]
        positions = np.flatnonzero(self._bits[inside])
        for start in range(0, self.live, step):
            some = positions[start : start + step]
            yield inside[some], halves[some]

    def decoded(self, step: int) -> Iterator[tuple[Ids, Scores]]:
        """As `stored`, in float32."""
        for ids, halves in self.stored(step):
            yield ids, halves.astype(np.float32)

    def not_finite(self) -> CorruptIndexError:
        """The error for scores that cannot be compared."""
        return CorruptIndexError(
            f"segment {self.piece.name} holds vectors whose scores are not finite: "
            "see `forvalue verify`"
        )


def parts_of(pieces: Iterable[OpenSegment], wanted: Ids | None) -> list[Part]:
    """The pieces that hold some of `wanted` (ascending; None: everything), limited to these."""
    if wanted is None:
        return [Part(piece, len(piece.ids), None, None) for piece in pieces]
    bits = bits_of(wanted)
    selector = selector_of(bits)
    parts = []
    for piece in pieces:
        inside = piece.ids[: np.searchsorted(piece.ids, len(bits))]
        live = int(np.count_nonzero(bits[inside]))
        if live:
            parts.append(Part(piece, live, bits, selector))
    return parts


def on_all_cores(function: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """`function` of each item, on all cores; FAISS takes one of them in each call."""
    cores = faiss().omp_get_max_threads()
    if len(items) < cores:  # FAISS itself shares out the queries
        return [function(item) for item in items]
    return list(threads(cores).map(function, items))


@cache
def threads(cores: int) -> ThreadPoolExecutor:
    """Threads that stay: starting them costs a scan of 10,000 vectors."""
    one = faiss().omp_set_num_threads  # of the calling thread only
    return ThreadPoolExecutor(cores, initializer=one, initargs=(1,))


os.register_at_fork(after_in_child=threads.cache_clear)  # a child has none of the threads


def bits_of(ids: Ids) -> NDArray[np.bool_]:
    """Whether a number is among `ids` (ascending), up to their last."""
    bits = np.zeros(int(ids[-1]) + 1 if len(ids) else 0, bool)
    bits[ids] = True
    return bits


def selector_of(bits: NDArray[np.bool_]) -> Any:
    """FAISS's selector of the ids whose bit is set."""
    return faiss().IDSelectorBitmap(np.packbits(bits, bitorder="little"))


def best_of(scores: list[Scores], ids: list[Ids], k: int) -> tuple[Scores, Ids]:
    """The k highest of lists of scores [..., m] and ids; of equal scores the smaller ids."""
    every_score, every_id = np.concatenate(scores, axis=-1), np.concatenate(ids, axis=-1)
    order = np.lexsort((every_id, -every_score), axis=-1)[..., :k]
    return np.take_along_axis(every_score, order, -1), np.take_along_axis(every_id, order, -1)

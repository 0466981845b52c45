"""Exact search over all segments on the CPU.

Answers from the segments and tombstones it was opened with, whatever a writer does meanwhile.
Knows nothing of rows, keys or models.

A segment is scanned vector by vector, so that a score does not depend on the segment that a vector
is in, nor on the other queries of a batch: the same query and vector give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forvalue_index.errors import CorruptIndexError, InputError
from forvalue_index.records import Segment
from forvalue_index.search.backend import faiss, one_thread
from forvalue_index.search.segments import OpenSegment, open_segment

Scores = NDArray[np.float32]
Ids = NDArray[np.int64]
T = TypeVar("T")

_LABELS = 2**22  # ids that one call of `scores` holds at a time: 32 MiB
_NUMBERS = 2**24  # of vectors that `blocks` holds at a time: 64 MiB


class FlatSearch:
    """The vectors of an index, all of them compared with every query."""

    def __init__(
        self,
        folder: str | Path,
        segments: Iterable[Segment],
        dim: int,
        removed: ArrayLike = (),
    ) -> None:
        """Maps the segments in `folder`; the ids in `removed` are in no answer.

        Raises:
            CorruptIndexError: a segment is not what was committed, or an id is in two of them.
        """
        self.segments = tuple(segments)
        self._opened = opened = [open_segment(folder, segment, dim) for segment in self.segments]
        # Of a million ids in order, as they mostly are, np.unique and np.setdiff1d take a second.
        every = np.concatenate([np.empty(0, np.int64), *(segment.ids for segment in opened)])
        self._order = None if _ascend(every) else np.argsort(every)
        if self._order is not None:
            every = every[self._order]
        twice = every[1:][every[1:] == every[:-1]]
        if len(twice):
            raise CorruptIndexError(
                f"id {twice[0]} is in more than one segment of {folder}: "
                "see `forvalue verify`, or build again"
            )
        self.dim = dim
        self._every = every
        self._starts = np.cumsum([0, *(len(segment.ids) for segment in opened)])[:-1]
        gone = np.unique(np.asarray(removed, np.int64))
        self._live = every[~_among(every, gone)] if len(gone) else every
        self._parts = _parts(opened, None if len(self._live) == len(every) else self._live)

    @property
    def ntotal(self) -> int:
        """Number of vectors that can be an answer."""
        return len(self._live)

    @property
    def ids(self) -> Ids:
        """Ids of the vectors that can be an answer, ascending [ntotal]."""
        return self._live

    def search(
        self,
        queries: Scores,
        k: int,
        *,
        opponents: bool = False,
        allowed: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> tuple[Scores, Ids]:
        """The k best samples of each query: scores and ids, [q, min(k, live)] each.

        Best is the highest score, or with `opponents` the lowest; a score is the inner product,
        times the sample's weight if there are any. Of equal scores the smaller id comes first,
        also at the end of the list.

        Args:
            queries: [q, dim] float32.
            k: 1 or more.
            opponents: the samples that most speak against the query, the most adverse first.
            allowed: only these ids may be an answer; those that are not live are passed over.
            weights: a positive number for each of `ids`, in their order [ntotal]: 1 / length of
                the vector makes the rank of cosines. FAISS cannot rank by them, so that all
                scores are taken, which is some ten times slower than without.

        Raises:
            InputError: k, the shape of the queries or a weight is wrong, or a query is not finite.
            CorruptIndexError: a segment holds vectors that cannot be compared.
        """
        queries = self.checked(queries)
        if k < 1:
            raise InputError(f"k is {k}, but it counts samples: use 1 or more")
        table = None if weights is None else self._table(weights)
        parts, live = self._parts, self.ntotal
        if allowed is not None:
            wanted = self.live(allowed)
            parts, live = _parts(self._opened, wanted), len(wanted)
        k = min(k, live)
        if not k or not len(queries):
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        if opponents:
            queries = -queries  # exactly the negated inner products, so -score is exact too
        if table is None:
            scores, ids = self._best(queries, k, parts)
        else:
            found = self._map(lambda part: part.search_weighted(queries, k, table), parts)
            scores, ids = best_of([scores for scores, _ in found], [ids for _, ids in found], k)
        return (-scores if opponents else scores), ids

    def _best(self, queries: Scores, k: int, parts: list[_Part]) -> tuple[Scores, Ids]:
        # One more than k, to see whether a tie goes on behind the last one.
        found = self._map(lambda part: part.search(queries, k + 1), parts)
        scores, ids = best_of([scores for scores, _ in found], [ids for _, ids in found], k)
        for part, (part_scores, _) in zip(parts, found, strict=True):
            if part.live <= k:
                continue
            for i in np.flatnonzero(part_scores[:, -1] == scores[:, -1]):
                # FAISS keeps any of the equal ones: take them all, then the smallest ids.
                more_scores, more_ids = part.at_least(queries[i], scores[i, -1])
                others = ~np.isin(ids[i], part.segment.ids)
                scores[i], ids[i] = best_of(
                    [scores[i, others], more_scores], [ids[i, others], more_ids], k
                )
        return scores, ids

    def scores(self, queries: Scores, *, weights: ArrayLike | None = None) -> tuple[Ids, Scores]:
        """The ids of all live vectors, ascending [n], and every score [q, n].

        `weights` is as in `search`.

        Raises:
            InputError: the shape of the queries or a weight is wrong, or a query is not finite.
            CorruptIndexError: a segment holds vectors that cannot be compared.
        """
        queries = self.checked(queries)
        table = None if weights is None else self._table(weights)
        out = np.empty((len(queries), self.ntotal), np.float32)

        def fill(part: _Part) -> None:
            for start, scores, ids in part.every(queries):
                columns = np.searchsorted(self._live, ids)
                if table is not None:
                    scores *= table[ids]
                np.put_along_axis(out[start : start + len(ids)], columns, scores, axis=1)

        if len(queries):
            self._map(fill, self._parts)
        return self._live, out

    def scores_of(self, queries: Scores, ids: Ids, *, weights: ArrayLike | None = None) -> Scores:
        """The scores of chosen samples: of each query with each id of its row, [q, m].

        To the bit those of `search` and `scores`; `ids` is [q, m], `weights` as in `search`.

        Raises:
            InputError: an id is not live, or as in `search`.
        """
        queries = self.checked(queries)
        table = None if weights is None else self._table(weights)
        ids = np.asarray(ids, np.int64)
        out = np.empty(ids.shape, np.float32)
        if not ids.size:
            return out
        lib = faiss()
        kind, metric = lib.ScalarQuantizer.QT_fp16, lib.METRIC_INNER_PRODUCT
        step = max(1, _NUMBERS // (ids.shape[1] * self.dim))
        with one_thread():
            for start in range(0, len(queries), step):
                some = ids[start : start + step]
                each, places = np.unique(some, return_inverse=True)
                vectors, places = self.vectors(each), places.reshape(some.shape)
                for i, row in enumerate(places, start):
                    # In an index of their own the same code compares them as in a segment.
                    few = lib.IndexScalarQuantizer(self.dim, kind, metric)
                    few.add(vectors[row])
                    scores, found = few.search(queries[i : i + 1], len(row))
                    out[i, found[0]] = scores[0]
        return out if table is None else out * table[ids]

    def vectors(self, ids: ArrayLike) -> Scores:
        """The stored vectors of `ids` [m], in their order: [m, dim] float32.

        Raises:
            InputError: an id is not live.
        """
        ids = np.asarray(ids, np.int64)
        missing = ids[~_among(ids, self._live)]
        if len(missing):
            raise InputError(
                f"{len(missing)} samples are not in the index, id {missing.min()} first"
            )
        out = np.empty((len(ids), self.dim), np.float32)
        # The place of each among all vectors, segment after segment.
        places = np.searchsorted(self._every, ids)
        if self._order is not None:
            places = self._order[places]
        segments = np.searchsorted(self._starts, places, side="right") - 1
        for number in np.unique(segments):
            here = segments == number
            out[here] = self._opened[number].vectors(places[here] - self._starts[number])
        return out

    def blocks(self, ids: Ids | None = None) -> Iterator[tuple[Ids, Scores]]:
        """Yields `ids` (None: all live ones) and their vectors, some 64 MiB at a time."""
        ids = self._live if ids is None else ids
        step = max(1, _NUMBERS // self.dim)
        for start in range(0, len(ids), step):
            block = ids[start : start + step]
            yield block, self.vectors(block)

    def live(self, ids: ArrayLike) -> Ids:
        """Those of `ids` that can be an answer, ascending, each once."""
        wanted = np.asarray(ids, np.int64)
        if not _ascend(wanted):
            wanted = np.unique(wanted)
        return wanted[_among(wanted, self._live)]

    def ids_in(self, segments: Iterable[str]) -> Ids:
        """The ids in the segments of these names that can be an answer, ascending."""
        names = set(segments)
        ids = [opened.ids for opened in self._opened if opened.name in names]
        return self.live(np.concatenate([np.empty(0, np.int64), *ids]))

    def check_weights(self, weights: ArrayLike) -> Scores:
        """The weights, one for each of `ids`, [ntotal] float32.

        Raises:
            InputError: there are more or fewer, or one is not positive and finite.
        """
        values = np.asarray(weights, np.float32)
        if values.shape != self._live.shape:
            raise InputError(
                f"{values.shape} weights for {self.ntotal} samples: one each is needed"
            )
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise InputError(
                f"the weight of sample {self._live[bad[0]]} is {values[bad[0]]}: a weight must be "
                "positive and finite"
            )
        return values

    def _table(self, weights: ArrayLike) -> Scores:
        """The weight of each id, at the place of its number."""
        values = self.check_weights(weights)
        table = np.zeros(int(self._live[-1]) + 1 if self.ntotal else 0, np.float32)
        table[self._live] = values
        return table

    def checked(self, queries: Scores) -> Scores:
        """The queries as FAISS takes them, [q, dim] float32.

        Raises:
            InputError: their shape is wrong, or one is not finite.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InputError(
                f"queries have shape {queries.shape}, the index has vectors of {self.dim} numbers"
            )
        if not np.isfinite(queries).all():
            bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
            raise InputError(f"query {bad[0]} holds NaN or infinity: check the model and its dtype")
        return queries

    def _map(self, function: Callable[[_Part], T], parts: list[_Part]) -> list[T]:
        """`function` of each part, on all cores."""
        cores = faiss().omp_get_max_threads()
        if len(parts) < cores:  # FAISS itself shares out the queries
            return [function(part) for part in parts]
        one = faiss().omp_set_num_threads  # of the calling thread only
        with ThreadPoolExecutor(cores, initializer=one, initargs=(1,)) as pool:
            return list(pool.map(function, parts))


class _Part:
    """A segment and which of its vectors may be an answer."""

    def __init__(self, segment: OpenSegment, live: int, selector: Any) -> None:
        self.segment = segment
        self.live = live
        self._selector = selector  # faiss.IDSelector of ids; None: all of the segment

    def _parameters(self) -> Any:
        # New for each call: while IndexIDMap searches, it puts a selector of its own into them,
        # so that two threads with the same ones crash.
        return None if self._selector is None else faiss().SearchParameters(sel=self._selector)

    def search(self, queries: Scores, k: int) -> tuple[Scores, Ids]:
        """Scores and ids [q, min(k, live)], best first; equal scores in no order."""
        k = min(k, self.live)
        scores, ids = self.segment.index.search(queries, k, params=self._parameters())
        # FAISS fills up with -1 where it finds fewer, as when a score is NaN.
        if (ids < 0).any() or not np.isfinite(scores).all():
            raise CorruptIndexError(
                f"segment {self.segment.name} holds vectors whose scores are not finite: "
                "see `forvalue verify`"
            )
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
        below = float(np.nextafter(score, np.float32(-np.inf)))  # its radius is left out
        _, scores, ids = self.segment.index.range_search(
            query[None], below, params=self._parameters()
        )
        return scores, ids


def _parts(segments: Iterable[OpenSegment], wanted: Ids | None) -> list[_Part]:
    """The segments that hold some of `wanted` (ascending; None: everything), limited to these."""
    if wanted is None:
        return [_Part(segment, len(segment.ids), None) for segment in segments]
    bits = bits_of(wanted)
    selector = selector_of(bits)
    parts = []
    for segment in segments:
        inside = segment.ids[: np.searchsorted(segment.ids, len(bits))]
        live = int(np.count_nonzero(bits[inside]))
        if live:
            parts.append(_Part(segment, live, selector))
    return parts


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


def _ascend(ids: Ids) -> bool:
    return bool((ids[1:] > ids[:-1]).all())


def _among(ids: Ids, ascending: Ids) -> NDArray[np.bool_]:
    """Which of `ids` are among those that ascend; without sorting these, as np.isin would."""
    if not len(ascending):
        return np.zeros(ids.shape, bool)
    places = np.minimum(np.searchsorted(ascending, ids), len(ascending) - 1)
    return np.asarray(ascending[places] == ids)

"""Exact search over all segments on the CPU.

Answers from the segments and tombstones it was opened with, whatever a writer does meanwhile.
Knows nothing of rows, keys or models.

A segment is scanned vector by vector, so that a score does not depend on the segment that a vector
is in, nor on the other queries of a batch: the same query and vector give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forvalue_index.errors import CorruptIndexError, InputError
from forvalue_index.records import Segment
from forvalue_index.search.backend import faiss
from forvalue_index.search.segments import OpenSegment, open_segment

Scores = NDArray[np.float32]
Ids = NDArray[np.int64]
T = TypeVar("T")

_LABELS = 2**22  # ids that one call of `scores` holds at a time: 32 MiB


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
        opened = [open_segment(folder, segment, dim) for segment in segments]
        every = np.concatenate([np.empty(0, np.int64), *(segment.ids for segment in opened)])
        if len(np.unique(every)) != len(every):
            ids, times = np.unique(every, return_counts=True)
            raise CorruptIndexError(
                f"id {ids[times > 1][0]} is in more than one segment of {folder}: "
                "see `forvalue verify`, or build again"
            )
        self.dim = dim
        self._live = np.setdiff1d(every, np.asarray(removed, np.int64), assume_unique=False)
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
    ) -> tuple[Scores, Ids]:
        """The k best samples of each query: scores and ids, [q, min(k, live)] each.

        Best is the highest inner product, or with `opponents` the lowest. Of equal scores the
        smaller id comes first, also at the end of the list.

        Args:
            queries: [q, dim] float32.
            k: 1 or more.
            opponents: the samples that most speak against the query, the most adverse first.
            allowed: only these ids may be an answer; those that are not live are passed over.

        Raises:
            InputError: k or the shape of the queries is wrong, or a query is not finite.
            CorruptIndexError: a segment holds vectors that cannot be compared.
        """
        queries = self._checked(queries)
        if k < 1:
            raise InputError(f"k is {k}, but it counts samples: use 1 or more")
        parts, live = self._parts, self.ntotal
        if allowed is not None:
            wanted = np.intersect1d(self._live, np.asarray(allowed, np.int64))
            parts, live = _parts([part.segment for part in parts], wanted), len(wanted)
        k = min(k, live)
        if not k or not len(queries):
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        if opponents:
            queries = -queries  # exactly the negated inner products, so -score is exact too
        # One more than k, to see whether a tie goes on behind the last one.
        found = self._map(lambda part: part.search(queries, k + 1), parts)
        scores, ids = _best([scores for scores, _ in found], [ids for _, ids in found], k)
        for part, (part_scores, _) in zip(parts, found, strict=True):
            if part.live <= k:
                continue
            for i in np.flatnonzero(part_scores[:, -1] == scores[:, -1]):
                # FAISS keeps any of the equal ones: take them all, then the smallest ids.
                more_scores, more_ids = part.at_least(queries[i], scores[i, -1])
                others = ~np.isin(ids[i], part.segment.ids)
                scores[i], ids[i] = _best(
                    [scores[i, others], more_scores], [ids[i, others], more_ids], k
                )
        return (-scores if opponents else scores), ids

    def scores(self, queries: Scores) -> tuple[Ids, Scores]:
        """The ids of all live vectors, ascending [n], and every inner product [q, n].

        Raises:
            InputError: the shape of the queries is wrong, or one is not finite.
            CorruptIndexError: a segment holds vectors that cannot be compared.
        """
        queries = self._checked(queries)
        out = np.empty((len(queries), self.ntotal), np.float32)

        def fill(part: _Part) -> None:
            # A search for all of them: faster than range_search, and than decoding for BLAS
            # unless there are many queries (one query, 100,000 x 1024: 70, 240, 300 ms).
            step = max(1, _LABELS // part.live)
            for start in range(0, len(queries), step):
                scores, ids = part.search(queries[start : start + step], part.live)
                columns = np.searchsorted(self._live, ids)
                np.put_along_axis(out[start : start + step], columns, scores, axis=1)

        if len(queries):
            self._map(fill, self._parts)
        return self._live, out

    def vectors(self, ids: ArrayLike) -> Scores:
        """The stored vectors of `ids` [m], in their order: [m, dim] float32.

        Raises:
            InputError: an id is not live.
        """
        ids = np.asarray(ids, np.int64)
        missing = np.setdiff1d(ids, self._live)
        if len(missing):
            raise InputError(f"{len(missing)} samples are not in the index, id {missing[0]} first")
        out = np.empty((len(ids), self.dim), np.float32)
        for part in self._parts:
            own = part.segment.ids
            positions = np.minimum(np.searchsorted(own, ids), len(own) - 1)
            here = own[positions] == ids
            out[here] = part.segment.vectors(positions[here])
        return out

    def _checked(self, queries: Scores) -> Scores:
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
    lib = faiss()
    bits = np.zeros(int(wanted[-1]) + 1 if len(wanted) else 0, bool)
    bits[wanted] = True
    selector = lib.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
    counts = [(segment, np.isin(segment.ids, wanted).sum()) for segment in segments]
    return [_Part(segment, int(live), selector) for segment, live in counts if live]


def _best(scores: list[Scores], ids: list[Ids], k: int) -> tuple[Scores, Ids]:
    """The k highest of lists of scores [..., m] and ids; of equal scores the smaller ids."""
    every_score, every_id = np.concatenate(scores, axis=-1), np.concatenate(ids, axis=-1)
    order = np.lexsort((every_id, -every_score), axis=-1)[..., :k]
    return np.take_along_axis(every_score, order, -1), np.take_along_axis(every_id, order, -1)

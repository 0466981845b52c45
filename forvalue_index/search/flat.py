"""Exact search over all segments on the CPU.

Answers from the segments and tombstones it was opened with, whatever a writer does meanwhile.
Knows nothing of rows, keys or models.

One query is a scan of everything (`parts.py`). Many at a time get candidates from one product of
matrices (`many.py`), which the scan's own code then scores; where rounding leaves open whether
another sample belongs among the best, a scan decides. So both give the same ids, and the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forvalue_index.errors import CorruptIndexError, InputError
from forvalue_index.records import Segment
from forvalue_index.search.backend import faiss, one_thread
from forvalue_index.search.many import MANY, Proposal, propose
from forvalue_index.search.parts import Ids, Part, Scores, best_of, on_all_cores, parts_of
from forvalue_index.search.resident import Resident
from forvalue_index.search.segments import open_segment

_PIECE = 2**12  # vectors that a thread scans at a time, at least
_NUMBERS = 2**24  # of vectors that `blocks` holds at a time: 64 MiB
_SCORED = 2**21  # of vectors that a thread scores one by one: 8 MiB


class FlatSearch:
    """The vectors of an index, all of them compared with every query."""

    def __init__(
        self,
        folder: str | Path,
        segments: Iterable[Segment],
        dim: int,
        removed: ArrayLike = (),
        resident: Resident | None = None,
    ) -> None:
        """Maps the segments in `folder`; the ids in `removed` are in no answer.

        `resident` has, or gets, their vectors on GPUs.

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
        self._resident = resident
        self._every = every
        self._starts = np.cumsum([0, *(len(segment.ids) for segment in opened)])[:-1]
        gone = np.unique(np.asarray(removed, np.int64))
        self._live = every[~_among(every, gone)] if len(gone) else every
        size = max(_PIECE, len(every) // (16 * faiss().omp_get_max_threads()))
        self._pieces = [piece for segment in opened for piece in segment.pieces(size)]
        self._parts = parts_of(self._pieces, None if len(self._live) == len(every) else self._live)
        self._tabled: tuple[ArrayLike, Scores] | None = None  # the last weights, as a table

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
                scores of a single query are taken, which is slower than without. An array that
                cannot be written to is looked at once, however often it is given.

        Raises:
            InputError: k, the shape of the queries or a weight is wrong, or a query is not finite.
            CorruptIndexError: a segment holds vectors that cannot be compared.
        """
        queries = self.checked(queries)
        if k < 1:
            raise InputError(f"k is {k}, but it is a number of samples: use 1 or more")
        table = None if weights is None else self._table(weights)
        live = self._live if allowed is None else self.live(allowed)
        k = min(k, len(live))
        if not k or not len(queries):
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        if opponents:
            queries = -queries  # exactly the negated inner products, so -score is exact too
        scores, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        unsure = np.ones(len(queries), bool)
        m = k + max(8, k // 4)  # more than k, for those that rounding makes equal
        for way in (self._on_gpus, self._together):
            found = way(queries[unsure], m, live, table) if unsure.any() else None
            if found is not None:
                scores[unsure], ids[unsure] = self._confirmed(queries[unsure], k, found[0], table)
                unsure[unsure] = ~(found[1] < scores[unsure, -1])
        if unsure.any():
            scores[unsure], ids[unsure] = self._scanned(queries[unsure], k, live, table)
        return (-scores if opponents else scores), ids

    def _parts_with(self, wanted: Ids) -> list[Part]:
        """The pieces, limited to the live ids that are wanted."""
        return self._parts if wanted is self._live else parts_of(self._pieces, wanted)

    def _on_gpus(
        self, queries: Scores, m: int, wanted: Ids, table: Scores | None
    ) -> Proposal | None:
        """Candidates among the vectors on GPUs, if there are any and they are of use."""
        if self._resident is None or m > len(wanted):
            return None
        return self._resident.propose(queries, m, wanted, self._live, self._blocks, table)

    def _together(
        self, queries: Scores, m: int, wanted: Ids, table: Scores | None
    ) -> Proposal | None:
        """Candidates by products of matrices, if the queries are many."""
        if len(queries) < MANY or 8 * m > len(wanted):
            return None
        return propose(self._parts_with(wanted), queries, m, table)

    def _confirmed(
        self, queries: Scores, k: int, candidates: Ids, table: Scores | None
    ) -> tuple[Scores, Ids]:
        """The k best of each query's candidates [q, m], by their exact scores; -1 is none."""
        none = candidates < 0
        scores = self._scored(queries, np.where(none, self._live[0], candidates), table)
        scores[none] = -np.inf
        return best_of([scores], [candidates], k)

    def _scanned(
        self, queries: Scores, k: int, wanted: Ids, table: Scores | None
    ) -> tuple[Scores, Ids]:
        """The k best of each query, by comparing it with every vector that is wanted."""
        parts = self._parts_with(wanted)
        if table is not None:
            weighted = on_all_cores(lambda part: part.search_weighted(queries, k, table), parts)
            return best_of([scores for scores, _ in weighted], [ids for _, ids in weighted], k)
        # One more than k, to see whether a tie goes on behind the last one.
        found = on_all_cores(lambda part: part.search(queries, k + 1), parts)
        scores, ids = best_of([scores for scores, _ in found], [ids for _, ids in found], k)
        for part, (part_scores, _) in zip(parts, found, strict=True):
            if part.live <= k:
                continue
            for i in np.flatnonzero(part_scores[:, -1] == scores[:, -1]):
                # FAISS keeps any of the equal ones: take them all, then the smallest ids.
                more_scores, more_ids = part.at_least(queries[i], scores[i, -1])
                others = ~np.isin(ids[i], part.piece.ids)
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

        def fill(part: Part) -> None:
            for start, scores, ids in part.every(queries):
                columns = np.searchsorted(self._live, ids)
                if table is not None:
                    scores *= table[ids]
                np.put_along_axis(out[start : start + len(ids)], columns, scores, axis=1)

        if len(queries):
            on_all_cores(fill, self._parts)
        return self._live, out

    def scores_of(self, queries: Scores, ids: Ids, *, weights: ArrayLike | None = None) -> Scores:
        """The scores of chosen samples: of each query with each id of its row, [q, m].

        To the bit those of `search` and `scores`; `ids` is [q, m], `weights` as in `search`.

        Raises:
            InputError: an id is not live, or as in `search`.
        """
        table = None if weights is None else self._table(weights)
        return self._scored(self.checked(queries), np.asarray(ids, np.int64), table)

    def _scored(self, queries: Scores, ids: Ids, table: Scores | None) -> Scores:
        out = np.empty(ids.shape, np.float32)
        if not ids.size:
            return out
        lib = faiss()
        kind, metric = lib.ScalarQuantizer.QT_fp16, lib.METRIC_INNER_PRODUCT
        step = max(1, _SCORED // (ids.shape[1] * self.dim))

        def score(start: int) -> None:
            some = ids[start : start + step]
            each, places = np.unique(some, return_inverse=True)
            halves, places = self._halves(each), places.reshape(some.shape)
            with one_thread():
                for i, row in enumerate(places, start):
                    # In an index of their own the same code compares them as in a segment.
                    few = lib.IndexScalarQuantizer(self.dim, kind, metric)
                    few.add_sa_codes(halves[row].view(np.uint8))
                    scores, found = few.search(queries[i : i + 1], len(row))
                    out[i, found[0]] = scores[0]

        on_all_cores(score, range(0, len(queries), step))
        return out if table is None else out * table[ids]

    def vectors(self, ids: ArrayLike) -> Scores:
        """The stored vectors of `ids` [m], in their order: [m, dim] float32.

        Raises:
            InputError: an id is not live.
        """
        return self._halves(np.asarray(ids, np.int64)).astype(np.float32)

    def _halves(self, ids: Ids) -> NDArray[np.float16]:
        """As `vectors`, as they are stored: [m, dim]."""
        missing = ids[~_among(ids, self._live)]
        if len(missing):
            raise InputError(
                f"{len(missing)} samples are not in the index, the first with id {missing.min()}"
            )
        out = np.empty((len(ids), self.dim), np.float16)
        # The place of each among all vectors, segment after segment.
        places = np.searchsorted(self._every, ids)
        if self._order is not None:
            places = self._order[places]
        segments = np.searchsorted(self._starts, places, side="right") - 1
        for number in np.unique(segments):
            here = segments == number
            out[here] = self._opened[number].halves[places[here] - self._starts[number]]
        return out

    def blocks(self, ids: Ids | None = None) -> Iterator[tuple[Ids, Scores]]:
        """Yields `ids` (None: all live ones) and their vectors, some 64 MiB at a time."""
        for block, halves in self._blocks(self._live if ids is None else ids):
            yield block, halves.astype(np.float32)

    def _blocks(self, ids: Ids) -> Iterator[tuple[Ids, NDArray[np.float16]]]:
        """As `blocks`, as they are stored."""
        step = max(1, _NUMBERS // self.dim)
        for start in range(0, len(ids), step):
            block = ids[start : start + step]
            yield block, self._halves(block)

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
        if self._tabled is not None and self._tabled[0] is weights:
            return self._tabled[1]
        values = self.check_weights(weights)
        table = np.zeros(int(self._live[-1]) + 1 if self.ntotal else 0, np.float32)
        table[self._live] = values
        if isinstance(weights, np.ndarray) and not weights.flags.writeable:
            self._tabled = weights, table
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


def _ascend(ids: Ids) -> bool:
    return bool((ids[1:] > ids[:-1]).all())


def _among(ids: Ids, ascending: Ids) -> NDArray[np.bool_]:
    """Which of `ids` are among those that ascend; without sorting these, as np.isin would."""
    if not len(ascending):
        return np.zeros(ids.shape, bool)
    places = np.minimum(np.searchsorted(ascending, ids), len(ascending) - 1)
    return np.asarray(ascending[places] == ids)

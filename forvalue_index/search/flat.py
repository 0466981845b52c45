"""Exact search over all segments on the CPU.

Answers from the segments and tombstones it was opened with, whatever a writer does meanwhile.
Knows nothing of rows, keys or models.

Scores are computed in float64, so that they do not depend on what else is compared, and equal
vectors have equal scores. Most vectors need none: candidates for one query come from the highest
bits of the codes (`first_pass.py`), for many from products of integers (`batch.py`). If others
could be among the best, all that could are compared as integers, and at last in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forvalue_index.errors import CorruptIndexError, InputError
from forvalue_index.records import Segment
from forvalue_index.search.common import Ids, Scores, best_of, on_all_cores
from forvalue_index.search.first_pass import FirstPass
from forvalue_index.search.gpu import Resident
from forvalue_index.search.segment import OpenSegment
from forvalue_index.search.side import Side
from forvalue_index.search.stored import StoredVectors

MANY = 16
"""Queries from which products of matrices are faster than one query at a time."""

_COMPARED = 2**21  # of vectors that are compared at a time: 16 MiB in float64
_DECODED = 2**24  # of vectors that are compared with many queries at a time: 16 MiB of integers
_FIRST = 256  # candidates of a query, beside those that are asked for
_SOME = 8  # candidates pay if they are fewer than one in so many vectors


class FlatSearch(StoredVectors):
    """Search that returns what comparing every vector with every query would."""

    def __init__(
        self,
        folder: str | Path,
        segments: Iterable[Segment],
        dim: int,
        bits: int,
        removed: ArrayLike = (),
        resident: Resident | None = None,
        opened: Sequence[OpenSegment] | None = None,
        sides: Callable[[], Sequence[Side]] | None = None,
    ) -> None:
        """Takes the arguments of `StoredVectors`; `resident` has, or gets, the vectors on GPUs."""
        super().__init__(folder, segments, dim, bits, removed, opened, sides)
        self._resident = resident
        self._tabled: tuple[ArrayLike, Scores] | None = None  # the last weights, as a table
        self._lock = Lock()
        self._passes: dict[bool, tuple[Scores | None, FirstPass]] = {}  # without, with last table

    def search(
        self,
        queries: Scores,
        k: int,
        *,
        opponents: bool = False,
        allowed: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> tuple[Scores, Ids]:
        """Returns the k best samples of each query: scores and ids, [q, min(k, live)] each.

        Best is the highest score, or with `opponents` the lowest; a score is the inner product,
        times the sample's weight if there are any. Of equal scores the smaller id comes first,
        also at the end of the list.

        Args:
            queries: [q, dim] float32.
            k: 1 or more.
            opponents: the samples with the lowest scores, the lowest first.
            allowed: only these ids may be an answer; those that are not live are passed over.
            weights: a positive number for each of `ids`, in their order [ntotal]: 1 / length of
                the vector makes the metric cosine. A read-only array is checked only once.

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
        left = self._among_resident(queries, k, live, table, scores, ids)
        if len(left) < MANY:
            for i in left:
                scores[i], ids[i] = self._among_few(queries[i : i + 1], k, live, table)
        else:
            scores[left], ids[left] = self._among_many(queries[left], k, live, table)
        return (-scores if opponents else scores), ids

    def _among_resident(
        self, queries: Scores, k: int, live: Ids, table: Scores | None, scores: Scores, ids: Ids
    ) -> NDArray[np.intp]:
        """Fills in the k best of queries by GPUs; returns those of which it is not sure."""
        found = None
        if self._resident is not None and table is None:
            found = self._resident.propose(queries, k, live, self._live, self.blocks)
        if found is None:
            return np.arange(len(queries))
        candidates, most = found
        none = candidates < 0
        own = self._scored(queries, np.where(none, live[0], candidates), None)
        own[none] = -np.inf
        best, places = best_of([own], [candidates], k)
        if best.shape == scores.shape:
            scores[:], ids[:] = best, places
        return np.flatnonzero(~(most < best[:, -1]) | (best.shape[1] < k))

    def _among_few(
        self, query: Scores, k: int, live: Ids, table: Scores | None
    ) -> tuple[Scores, Ids]:
        """Returns scores and ids of the k best of a query [1, dim], [1, k] each."""
        m = _FIRST + 2 * k
        if _SOME * m >= len(live):
            return self._among_many(query, k, live, table)
        wanted = None
        if len(live) < len(self._every):
            wanted = np.zeros(len(self._every), bool)
            wanted[self._places(live)] = True
        first_pass = self._first_pass(table)
        places, most = first_pass.propose(query[0], m, wanted)
        ids, scores = self._best_of(query, self._ids_at[places][None], k, table)
        if most < scores[0, -1]:
            return scores, ids
        left = first_pass.above(query[0], float(scores[0, -1]), wanted)
        return self._among_many(query, k, np.union1d(self._ids_at[left], ids[0]), table)

    def _among_many(
        self, queries: Scores, k: int, ids: Ids, table: Scores | None
    ) -> tuple[Scores, Ids]:
        """Returns scores and ids of each query's k best of some samples, [q, k] each."""
        if _SOME * k >= len(ids):
            return self._among_all(queries, k, ids, table)
        from forvalue_index.search.batch import propose_many  # it needs torch

        step = max(1, _DECODED // self.dim)
        blocks = (
            (ids[s : s + step], self._data(ids[s : s + step])) for s in range(0, len(ids), step)
        )
        proposed, most = propose_many(self.codes, blocks, queries, k + max(8, k // 4), table)
        found, scores = self._best_of(queries, proposed, k, table)
        left = ~(most < scores[:, -1])
        if left.any():
            scores[left], found[left] = self._among_all(queries[left], k, ids, table)
        return scores, found

    def _best_of(
        self, queries: Scores, ids: Ids, k: int, table: Scores | None
    ) -> tuple[Ids, Scores]:
        """Returns ids and scores of the k best of each query's candidates [q, m]."""
        scores, ids = best_of([self._scored(queries, ids, table)], [ids], k)
        return ids, scores

    def _first_pass(self, table: Scores | None) -> FirstPass:
        with self._lock:
            weighted = table is not None
            if weighted not in self._passes or self._passes[weighted][0] is not table:
                weights = None if table is None else _padded(table, self._ids_at)
                self._passes[weighted] = table, FirstPass(self.codes, self.first_rows(), weights)
            return self._passes[weighted][1]

    def _among_all(
        self, queries: Scores, k: int, live: Ids, table: Scores | None
    ) -> tuple[Scores, Ids]:
        """Returns scores and ids of the k best of each query, by comparing it with all."""
        best_scores = np.empty((len(queries), 0), np.float32)
        best_ids = np.empty((len(queries), 0), np.int64)
        for ids, scores in self._compared(queries, live, table):
            kept = min(k, len(ids))
            # All that are equal to the last one, so that the smallest ids of them are kept.
            most = int((scores >= _nth(scores, kept)[:, None]).sum(1).max())
            places = np.argpartition(-scores, most - 1, axis=1)[:, :most]
            best_scores, best_ids = best_of(
                [best_scores, np.take_along_axis(scores, places, 1)], [best_ids, ids[places]], k
            )
        return best_scores, best_ids

    def _compared(
        self, queries: Scores, ids: Ids, table: Scores | None
    ) -> Iterator[tuple[Ids, Scores]]:
        """Yields ids and their scores with every query [q, some], in the order of `ids`.

        Raises:
            CorruptIndexError: a segment holds vectors that cannot be compared.
        """
        exact = queries.astype(np.float64)
        step = max(1, _COMPARED // max(self.dim, len(queries)))
        for start in range(0, len(ids), step):
            block = ids[start : start + step]
            vectors = self.codes.decode(self._data(block)).astype(np.float64)
            scores = (exact @ vectors.T).astype(np.float32)
            if table is not None:
                scores *= table[block]
            if not np.isfinite(scores).all():
                raise _not_finite(block[~np.isfinite(scores).all(0)][0])
            yield block, scores

    def scores(self, queries: Scores, *, weights: ArrayLike | None = None) -> tuple[Ids, Scores]:
        """Returns the ids of all live vectors, ascending [n], and every score [q, n].

        `weights` is as in `search`.

        Raises:
            InputError: the shape of the queries or a weight is wrong, or a query is not finite.
            CorruptIndexError: a segment holds vectors that cannot be compared.
        """
        queries = self.checked(queries)
        table = None if weights is None else self._table(weights)
        out = np.empty((len(queries), self.ntotal), np.float32)
        if len(queries):
            start = 0
            for ids, scores in self._compared(queries, self._live, table):
                out[:, start : start + len(ids)] = scores
                start += len(ids)
        return self._live, out

    def scores_of(self, queries: Scores, ids: Ids, *, weights: ArrayLike | None = None) -> Scores:
        """Returns the scores of chosen samples: of each query with each id of its row, [q, m].

        Those of `search` and `scores`; `ids` is [q, m], `weights` as in `search`.

        Raises:
            InputError: an id is not live, or as in `search`.
        """
        table = None if weights is None else self._table(weights)
        ids = np.asarray(ids, np.int64)
        self._require_live(ids.ravel())
        return self._scored(self.checked(queries), ids, table)

    def _scored(self, queries: Scores, ids: Ids, table: Scores | None) -> Scores:
        out, exact = np.empty(ids.shape, np.float32), queries.astype(np.float64)

        def score(i: int) -> None:
            out[i] = self.codes.decode(self._data(ids[i])).astype(np.float64) @ exact[i]

        on_all_cores(score, range(len(ids)))
        if table is not None:
            out *= table[ids]
        if not np.isfinite(out).all():
            raise _not_finite(ids[~np.isfinite(out)][0])
        return out

    def check_weights(self, weights: ArrayLike) -> Scores:
        """Returns the weights after a check, one for each of `ids`, [ntotal] float32.

        Raises:
            InputError: there are more or fewer, or one is not positive and finite.
        """
        values = np.asarray(weights, np.float32)
        if values.shape != self._live.shape:
            raise InputError(f"{values.shape} weights for {self.ntotal} samples: give one for each")
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise InputError(
                f"the weight of sample {self._live[bad[0]]} is {values[bad[0]]}: a weight must be "
                "positive and finite"
            )
        return values

    def _table(self, weights: ArrayLike) -> Scores:
        """Returns the weights as a table: that of an id is at the place of its number."""
        if self._tabled is not None and self._tabled[0] is weights:
            return self._tabled[1]
        values = self.check_weights(weights)
        table = np.zeros(int(self._live[-1]) + 1 if self.ntotal else 0, np.float32)
        table[self._live] = values
        if isinstance(weights, np.ndarray) and not weights.flags.writeable:
            self._tabled = weights, table
        return table

    def checked(self, queries: Scores) -> Scores:
        """Returns the queries after a check, [q, dim] float32, contiguous.

        Raises:
            InputError: their shape is wrong, or one is not finite.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InputError(
                f"queries have shape {queries.shape}, but the index has vectors of {self.dim} "
                f"numbers: give an array of shape [q, {self.dim}]"
            )
        if not np.isfinite(queries).all():
            bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
            raise InputError(f"query {bad[0]} holds NaN or infinity: check the model and its dtype")
        return queries


def _not_finite(id: int) -> CorruptIndexError:
    return CorruptIndexError(
        f"the stored vector of sample {id} has a score that is not finite: see `forvalue verify`"
    )


def _padded(table: Scores, ids: Ids) -> Scores:
    """Returns the weights of ids; 0 for removed samples, whose ids may be beyond the table."""
    weights = np.zeros(len(ids), np.float32)
    inside = ids < len(table)
    weights[inside] = table[ids[inside]]
    return weights


def _nth(scores: Scores, k: int) -> Scores:
    """Returns the k-th highest score of each row, [q]."""
    nth: Scores = np.partition(scores, -k, axis=1)[:, -k]
    return nth

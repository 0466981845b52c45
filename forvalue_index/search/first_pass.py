"""Candidates for one query: the vectors that may score highest, by the highest bits of their codes.

These bits are a quarter of 4-bit codes, and FAISS compares them with a query by counting bits. The
score that they give has an error whose usual size is known for each vector (`codes.py`). Vectors
are proposed by an upper bound, the given score plus DEVIATIONS of that size: a vector that is not
proposed does not score more than the bound of the last one that is.

The bits are dim / 8 + 8 bytes a vector. Few stay in memory as FAISS has them; many are copied for
each query, a piece at a time, which takes less time than to compare them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.search.backend import faiss
from forvalue_index.search.common import Ids, Scores, on_all_cores, selector_of
from forvalue_index.search.segment import QUERY_BITS, OpenSegment, rabitq
from forvalue_index.vectors.codes import Bytes, Codes

DEVIATIONS = 4.5
"""Of the usual error of a score: more are met once in 300,000 vectors."""

_ROUNDING = 1e-5  # of a bound in float32, relative
_PIECE = 2**13  # vectors that a thread compares at a time, at least
_KEPT = 2**28  # bytes of all vectors, up to which FAISS's copy stays in memory


def first_rows(codes: Codes, vectors: OpenSegment | Bytes) -> Bytes:
    """Returns the highest bits of vectors, [n, size], as `FirstPass` takes them."""
    data = vectors.data if isinstance(vectors, OpenSegment) else vectors
    return codes.first_pass(data, DEVIATIONS)


class FirstPass:
    """The highest bits of all vectors, which count from 0 on in the order of the segments."""

    def __init__(self, codes: Codes, rows: Sequence[Bytes], weights: Scores | None = None) -> None:
        """Takes what `first_rows` made of each segment.

        `weights` [n] are what the scores of each vector are multiplied by.
        """
        self._dim, self._weights = codes.dim, weights
        self._pieces: list[tuple[int, Bytes]] = []  # place of the first, and the bits
        total = sum(map(len, rows))
        few = total * (codes.dim // 8 + 8) <= _KEPT
        size = max(_PIECE, -(-total // faiss().omp_get_max_threads())) if few else _PIECE
        start = 0
        for part in rows:
            for at in range(0, len(part), size):
                self._pieces.append((start + at, part[at : at + size]))
            start += len(part)
        self._kept: dict[int, Any] | None = None
        if few:
            self._kept = dict(
                on_all_cores(lambda piece: (piece[0], self._index(piece)), self._pieces)
            )

    def _index(self, piece: tuple[int, Bytes]) -> Any:
        """Returns FAISS's index of a piece."""
        start, rows = piece
        if self._weights is not None:
            rows = rows.copy()
            factors = np.ascontiguousarray(rows[:, -8:]).view(np.float32)
            factors *= self._weights[start : start + len(rows), None]
            rows[:, -8:] = factors.view(np.uint8)
        index = rabitq(self._dim, 1)
        index.add_sa_codes(np.ascontiguousarray(rows))
        return index

    def propose(self, query: Scores, m: int, wanted: NDArray[np.bool_] | None) -> tuple[Ids, float]:
        """Returns the places of the m vectors of the highest bounds, and the most another may have.

        Args:
            query: [dim].
            m: 1 or more.
            wanted: [n] whether a place may be an answer; None: all may.
        """
        unit, length = _unit(query)

        def look(piece: tuple[int, Bytes]) -> tuple[Ids, NDArray[np.float32], bool]:
            start, rows = piece
            count, parameters = self._parameters(start, len(rows), wanted)
            if not count:
                return np.empty(0, np.int64), np.empty(0, np.float32), True
            index = self._opened(piece)
            scores, places = index.search(unit, min(m, count), params=parameters)
            return places[0] + start, scores[0], m >= count

        found = on_all_cores(look, self._pieces)
        places = np.concatenate([places for places, *_ in found])
        scores = np.concatenate([scores for _, scores, _ in found])
        if len(places) <= m and all(whole for *_, whole in found):
            return places, -np.inf
        best = np.argpartition(-scores, m - 1)[:m]
        return places[best], float(scores[best].min()) * length

    def above(self, query: Scores, least: float, wanted: NDArray[np.bool_] | None) -> Ids:
        """Returns the places of the vectors whose bound is `least` or more, in any order.

        Other arguments are those of `propose`.
        """
        unit, length = _unit(query)
        least = least / length - _ROUNDING * abs(least / length)

        def look(piece: tuple[int, Bytes]) -> Ids:
            start, rows = piece
            count, parameters = self._parameters(start, len(rows), wanted)
            if not count:
                return np.empty(0, np.int64)
            _, _, places = self._opened(piece).range_search(unit, least, params=parameters)
            return np.asarray(places + start)

        return np.concatenate(on_all_cores(look, self._pieces))

    def _opened(self, piece: tuple[int, Bytes]) -> Any:
        return self._index(piece) if self._kept is None else self._kept[piece[0]]

    @staticmethod
    def _parameters(start: int, n: int, wanted: NDArray[np.bool_] | None) -> tuple[int, Any]:
        """Returns how many of a piece's vectors are wanted, and how FAISS looks at these only."""
        parameters = faiss().RaBitQSearchParameters()
        parameters.qb = QUERY_BITS
        if wanted is None:
            return n, parameters
        own = wanted[start : start + n]
        count = int(np.count_nonzero(own))
        if count < n:
            parameters.sel = selector_of(own)
        return count, parameters


def _unit(query: Scores) -> tuple[Scores, float]:
    """Returns a query [dim] as FAISS takes it, of length 1 [1, dim], and its length."""
    length = max(float(np.linalg.norm(query)), 1e-30)
    return query[None] / np.float32(length), length

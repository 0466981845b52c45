"""Candidates for one query: the vectors that may score highest, by the highest bits of their codes.

These bits are a quarter of 4-bit codes, and FAISS compares them with a query by counting bits. The
score that they give has an error whose usual size is known for each vector (`codes.py`). Vectors
are proposed by an upper bound, the given score plus DEVIATIONS of that size: a vector that is not
proposed does not score more than the bound of the last one that is.

The bits are a copy in memory, dim / 8 + 8 bytes a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.search.backend import faiss
from forvalue_index.search.common import Ids, Scores, on_all_cores, selector_of
from forvalue_index.search.segment import QUERY_BITS, OpenSegment, rabitq
from forvalue_index.vectors.codes import Codes

DEVIATIONS = 4.5
"""Of the usual error of a score: more are met once in 300,000 vectors."""

_PIECE = 2**13  # vectors that a thread compares at a time, at least


class FirstPass:
    """The highest bits of all vectors, which count from 0 on in the order of the segments."""

    def __init__(
        self, codes: Codes, segments: Sequence[OpenSegment], weights: Scores | None = None
    ) -> None:
        """Copies them; `weights` [n] are what the scores of each vector are multiplied by."""
        total = sum(len(segment.ids) for segment in segments)
        rows = np.empty((total, -(-codes.dim // 8) + 8), np.uint8)
        start = 0
        for segment in segments:
            part = slice(start, start := start + len(segment.ids))
            own = None if weights is None else weights[part]
            rows[part] = codes.first_pass(segment.data, DEVIATIONS, own)
        size = max(_PIECE, -(-total // faiss().omp_get_max_threads()))
        self._pieces: list[tuple[int, Any]] = []
        for start in range(0, total, size):
            piece = rabitq(codes.dim, 1)
            piece.add_sa_codes(rows[start : start + size])
            self._pieces.append((start, piece))

    def propose(self, query: Scores, m: int, wanted: NDArray[np.bool_] | None) -> tuple[Ids, float]:
        """Returns the places of m vectors of each piece, and the most that any other may score.

        Args:
            query: [dim].
            m: 1 or more.
            wanted: [n] whether a place may be an answer; None: all may.
        """
        length = float(np.linalg.norm(query))
        unit = query[None] / np.float32(max(length, 1e-30))

        def look(piece: tuple[int, Any]) -> tuple[Ids, NDArray[np.float32]]:
            start, index = piece
            count, selector = index.ntotal, None
            if wanted is not None:
                own = wanted[start : start + count]
                count, selector = int(np.count_nonzero(own)), selector_of(own)
            if not count:
                return np.empty(0, np.int64), np.empty(0, np.float32)
            parameters = faiss().RaBitQSearchParameters()
            parameters.qb, parameters.sel = QUERY_BITS, selector
            scores, places = index.search(unit, min(m, count), params=parameters)
            return places[0] + start, scores[0] if m < count else scores[0][:0]

        found = on_all_cores(look, self._pieces)
        rest = [float(scores[-1]) for _, scores in found if len(scores)]
        return np.concatenate([places for places, _ in found]), max(rest, default=-np.inf) * length

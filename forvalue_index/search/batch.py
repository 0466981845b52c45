"""Candidates for many queries at a time, by products of matrices.

Codes of 2 to 8 bits are multiplied as 8-bit integers with queries that are rounded to 8 bits, which
is several times as fast as float32; float16 is multiplied in float32. For each query there is a
bound of the scores of all vectors that are not proposed. A few queries are rounded to 16 bits, in
two numbers of 8: the products are less of the work, and a rough bound of lengths is enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.search.common import Ids, Scores, on_all_cores
from forvalue_index.vectors.codes import Bytes, Codes

_DEVIATIONS = 6.0  # of the usual error of a score that rounding makes
_EPSILON = 2.0**-20  # of float32 sums, relative to the lengths of both vectors
_DECODED = 256  # vectors that a thread decodes at a time
_FEW = 8  # queries that are rounded to 16 bits, at most
_SECOND = 254  # of the second number's unit make one of the first's


def propose_many(
    codes: Codes,
    blocks: Iterable[tuple[Ids, Bytes]],
    queries: Scores,
    m: int,
    table: Scores | None,
) -> tuple[Ids, NDArray[np.float64]]:
    """Returns the ids of the m best of each query [q, m], and the most that any other may score.

    Args:
        codes: how vectors are stored.
        blocks: ids and codes of all vectors, at least m together.
        queries: [q, dim].
        m: 1 or more.
        table: the weight of each id, at its place; None: 1.
    """
    asked = _Queries(codes, torch.from_numpy(queries))
    best = torch.empty(len(queries), 0)
    ids = torch.empty(len(queries), 0, dtype=torch.int64)
    longest = 0.0
    for block, data in blocks:
        scores, lengths = asked.scores(data)
        if table is not None:
            weights = torch.from_numpy(table[block])
            scores *= weights
            lengths = lengths * weights
        longest = max(longest, float(lengths.max()))
        found, places = scores.topk(min(m, len(block)), dim=1)
        both = torch.cat([best, found], 1)
        owners = torch.cat([ids, torch.from_numpy(block)[places]], 1)
        best, places = both.topk(min(m, both.shape[1]), dim=1)
        ids = owners.gather(1, places)
    return ids.numpy(), best[:, -1].double().numpy() + asked.errors * longest


class _Queries:
    """Queries as they are multiplied with codes."""

    def __init__(self, codes: Codes, queries: Tensor) -> None:
        self._codes = codes
        lengths = torch.linalg.vector_norm(queries.double(), dim=1).numpy()
        self.errors: NDArray[np.float64] = lengths * _EPSILON
        """[q] of a score, for vectors of length 1."""
        self._factors = queries.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
        self._whole = (queries / self._factors).round()
        self._fine: Tensor | None = None
        self._decoded = codes.bits == 16 or codes.dim == 1  # torch._int_mm is wrong for one number
        if self._decoded:
            self._factors, self._whole = torch.ones(len(queries), 1), queries
            return
        rest = queries - self._factors * self._whole
        self._halves = 0.5 * self._whole.sum(1, keepdim=True)
        if len(queries) <= _FEW:
            fine = (rest * (_SECOND / self._factors)).round()
            rest -= self._factors / _SECOND * fine
            self._halves += 0.5 / _SECOND * fine.sum(1, keepdim=True)
            self._fine = fine.to(torch.int8)
        rounded = torch.linalg.vector_norm(rest.double(), dim=1).numpy()
        self.errors = self.errors + _DEVIATIONS * rounded / codes.dim**0.5
        self._whole = self._whole.to(torch.int8)

    def scores(self, data: Bytes) -> tuple[Tensor, Tensor]:
        """Returns the scores of codes [n, size] with each query [q, n], and their lengths [n]."""
        codes = self._codes
        if self._decoded:
            vectors = torch.from_numpy(codes.decode(data))
            return self._whole @ vectors.T, torch.linalg.vector_norm(vectors, dim=1)
        levels = np.empty((len(data), codes.dim), np.int8)

        def decode(start: int) -> None:
            part = slice(start, start + _DECODED)
            # From the middle on, so that they fit into 8 bits; the half is added to all at once.
            levels[part] = codes.whole(data[part])

        on_all_cores(decode, range(0, len(data), _DECODED))
        scales, others = codes.scales(data), torch.from_numpy(levels).T
        products: Any = torch._int_mm(self._whole, others).float()
        if self._fine is not None:
            products += torch._int_mm(self._fine, others).float().div_(_SECOND)
        scores = products.add_(self._halves).mul_(self._factors).mul_(torch.from_numpy(scales))
        return scores, torch.from_numpy(scales * self._longest(levels))

    def _longest(self, levels: NDArray[np.int8]) -> Any:
        """Returns what the lengths of levels [n, dim], from the middle on, are at most."""
        codes = self._codes
        if self._fine is not None:
            return (2 ** (codes.bits - 1) - 0.5) * codes.dim**0.5
        # All levels of a vector are within a half of these.
        squares = np.einsum("nd,nd->n", levels, levels, dtype=np.float32)
        return np.sqrt(squares + np.abs(levels.sum(1, dtype=np.float32)) + codes.dim / 4)

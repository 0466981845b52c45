"""The metric "decorrelated": queries in which what the samples have in common is damped.

A direction that many samples share makes all of them look helpful, though any of them would do.
Here a query's vector q goes through the samples' second moment first, as the Hessian's inverse does
in influence functions, with the vectors v of the n samples in the place of gradients (arXiv
2303.14186):

    score = mu q (C + mu)^-1 v    C: the mean of v v^T, [D, D]    mu: tr(C C) / tr(C)

mu is the eigenvalue of C that a unit of the vectors' energy meets on average. So it depends neither
on n nor on D, and directions that are no more common than that keep most of their share. As mu is
at least 1 / sqrt(D) of the largest eigenvalue, the condition is at most 1 + sqrt(D), and float32 is
enough.

The sum of v v^T is kept in a file: see `moment.py`.
"""

from __future__ import annotations

import numpy as np
import torch

from forvalue_index.errors import CorruptIndexError
from forvalue_index.search.common import Scores
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.moment import KeptMoment, Writing


class Decorrelation:
    """mu (C + mu)^-1, by which queries are multiplied."""

    def __init__(self, flat: FlatSearch, moments: KeptMoment, writing: Writing):
        """Takes the live vectors of `flat`; see `KeptMoment.of`.

        Raises:
            CorruptIndexError: the vectors are too large for it.
        """
        self._vectors: torch.Tensor | None = None  # [n, D]
        if 2 * flat.ntotal <= flat.dim:  # their inner products have the same eigenvalues
            self._vectors = torch.from_numpy(flat.vectors(flat.ids))
            total = self._vectors @ self._vectors.T  # [n, n]
        else:
            total = torch.from_numpy(moments.of(flat, writing).total.copy())  # [D, D]
        energy = float(total.diagonal().sum(dtype=torch.float64))
        squares = float(torch.linalg.vector_norm(total, dtype=torch.float64)) ** 2
        self._damping = squares / energy if energy else 1.0  # n mu
        total.diagonal().add_(self._damping)
        self._factor, failed = torch.linalg.cholesky_ex(total)
        if failed:
            raise CorruptIndexError(
                "the second moment of the vectors is not finite: see `forvalue verify`"
            )

    def __call__(self, queries: Scores) -> Scores:
        """Returns queries [q, D] as they are compared with the stored vectors."""
        given = torch.from_numpy(np.ascontiguousarray(queries, np.float32))
        if self._vectors is None:
            solved = self._damping * torch.cholesky_solve(given.T, self._factor).T
        else:
            shares = torch.cholesky_solve(self._vectors @ given.T, self._factor)  # [n, q]
            solved = given - shares.T @ self._vectors
        turned: Scores = solved.contiguous().numpy()
        return turned

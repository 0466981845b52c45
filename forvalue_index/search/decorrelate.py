"""Queries with what the samples have in common damped: what each sample adds to the others.

A direction that many samples share makes all of them look helpful, though any of them would do.
Here a query's vector q goes through the samples' second moment first, as the Hessian's inverse does
in influence functions, with the vectors v of the n samples in the place of gradients (arXiv
2303.14186):

    score = mu q (C + mu)^-1 v    C: the mean of v v^T, [D, D]    mu: tr(C C) / tr(C)

mu is the eigenvalue of C that a unit of the vectors' energy meets on average. So it depends neither
on n nor on D, and directions that are no more common than that keep most of their share.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forvalue_index.search.flat import FlatSearch


def decorrelation(flat: FlatSearch) -> NDArray[np.float64]:
    """Returns what queries are multiplied by from the right, [dim, dim]: mu (C + mu)^-1.

    Reads every live vector once.
    """
    moment = np.zeros((flat.dim, flat.dim))
    for ids, vectors in flat.blocks():
        moment += vectors.T @ vectors / np.float32(len(ids)) * (len(ids) / flat.ntotal)
    energy = np.trace(moment)
    if energy == 0:
        return np.eye(flat.dim)
    damping = float((moment**2).sum() / energy)
    moment[np.diag_indices(flat.dim)] += damping
    # At most 1 + sqrt(D) of condition, so that the inverse is as good as a solve.
    return np.asarray(damping * np.linalg.inv(moment), np.float64)

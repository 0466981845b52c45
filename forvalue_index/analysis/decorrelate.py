"""Influence with what training samples have in common taken out: what each adds to the others.

A direction that most samples share makes all of them look helpful, though any of them would do.
Here a query's vector q goes through the samples' second moment first, as the Hessian's inverse does
in influence functions, with the vectors X [n, D] in the place of gradients (arXiv 2303.14186):

    scores = mu q (X^T X + mu)^-1 X^T        mu: the samples' mean self-influence

A sample that is like no other keeps its influence; similar ones share theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Sample


def decorrelated_scores(index: InfluenceIndex, queries: Sequence[Sample]) -> NDArray[np.float32]:
    """Returns the decorrelated influence of all training samples on queries, [q, n].

    In the order of the samples' ids. Reads the stored vectors twice; memory: D x D in float64.
    """
    vectors = index.vectors(list(queries)).astype(np.float64)  # [q, D]

    def ask() -> NDArray[np.float32]:
        moment = np.zeros((vectors.shape[1], vectors.shape[1]))
        for _, block in index.flat.blocks(index.flat.ids):
            moment += block.T.astype(np.float64) @ block
        damping = np.trace(moment) / len(index.flat.ids)
        np.fill_diagonal(moment, moment.diagonal() + damping)
        turned = damping * np.linalg.solve(moment, vectors.T).T
        scores: NDArray[np.float32] = index.flat.scores(turned.astype(np.float32))[1]
        return scores / np.float32(index.vectoriser.scale**2)

    return index.store.answer(ask)

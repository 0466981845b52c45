"""Scores of many training samples by the exact form of the recipe, and the order of re-ranking.

The samples are run forward again, a block at a time: their texts need not fit in memory together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.evaluate.metrics import top
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Progress, Sample

BLOCK = 1024  # training samples; the queries are run forward again for each block


@dataclass(frozen=True, slots=True)
class ExactScores:
    """Exact influences, and the lengths |G| of the gradients whose inner products they are."""

    scores: NDArray[np.float32]  # [q, n]
    query_lengths: NDArray[np.float32]  # [q]
    sample_lengths: NDArray[np.float32]  # [n]


def exact_scores(
    index: InfluenceIndex,
    queries: Sequence[Sample],
    ids: NDArray[np.int64],
    progress: Progress | None = None,
) -> ExactScores:
    """Returns the exact influence of the training samples `ids` on the queries.

    It takes two forward passes of every sample: one for the scores, one for the lengths.
    """
    queries = list(queries)
    scores = np.empty((len(queries), len(ids)), np.float32)
    lengths = np.empty(len(ids), np.float32)
    tokens = 0
    for start in range(0, len(ids), BLOCK):
        part = slice(start, start + BLOCK)
        samples = index.training_samples(ids[part].tolist())
        scores[:, part] = index.influence(queries, samples)
        lengths[part] = index.passes.lengths(samples)
        tokens += sum(len(sample.input_ids) for sample in samples)
        if progress is not None:
            progress("exact", start + len(samples), len(ids), tokens)
    return ExactScores(scores, index.passes.lengths(queries), lengths)


def reranked(
    stored: NDArray[np.float32], exact: NDArray[np.float32], candidates: int
) -> NDArray[np.float64]:
    """Returns scores [q, n] whose order is that of re-ranking; their size has no meaning.

    For each query, the best `candidates` by the stored vectors come first, in the order of their
    exact scores; the others follow in the order of the stored ones.
    """
    result = np.empty(stored.shape)
    for row, first, true in zip(result, stored, exact, strict=True):
        order = top(first, len(first))
        best = order[:candidates]
        row[best[top(true[best], len(best))]] = -np.arange(len(best))
        row[order[candidates:]] = -np.arange(len(best), len(order))
    return result

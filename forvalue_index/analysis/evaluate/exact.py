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

BLOCK = 256  # training samples whose texts are in memory together


@dataclass(frozen=True, slots=True)
class ExactScores:
    """Exact influences, the lengths |G| of the gradients whose inner products they are, and more.

    All of it comes from one forward pass of the queries and the training samples.
    """

    scores: NDArray[np.float32]  # [q, n]
    query_lengths: NDArray[np.float32]  # [q]
    sample_lengths: NDArray[np.float32]  # [n]
    last_layer: NDArray[np.float32]  # [q, n], inner products of the unembedding's gradients
    embedding: NDArray[np.float32]  # [q, n], cosines of the mean last hidden states


def exact_scores(
    index: InfluenceIndex,
    queries: Sequence[Sample],
    ids: NDArray[np.int64],
    progress: Progress | None = None,
) -> ExactScores:
    """Returns the exact influence of the training samples `ids` on the queries.

    It takes one forward pass of every sample.
    """
    queries = list(queries)
    exact = index.passes.exact(queries)
    scores, last_layer, cosines = np.empty((3, len(queries), len(ids)), np.float32)
    squares = np.empty(len(ids), np.float32)
    tokens = 0
    for start in range(0, len(ids), BLOCK):
        part = slice(start, start + BLOCK)
        samples = index.training_samples(ids[part].tolist())
        found = exact.scores(samples)
        own, raw = found.pairs
        scores[:, part], squares[part] = own.influence, own.squares
        last_layer[:, part], cosines[:, part] = raw.influence, found.cosines
        tokens += sum(len(sample.input_ids) for sample in samples)
        if progress is not None:
            progress("exact", start + len(samples), len(ids), tokens)
    lengths = [np.sqrt(np.maximum(own, 0)) for own in (exact.query_squares()[0], squares)]
    return ExactScores(scores, lengths[0], lengths[1], last_layer, cosines)


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

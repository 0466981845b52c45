"""The exact form of an index's recipe for many training samples, and what re-ranking makes of it.

The samples are run forward again, a block at a time, so that their texts need not fit in memory
and long work can be shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.evaluate.metrics import top
from forvalue_index.index import InfluenceIndex
from forvalue_index.pipeline.add import Progress
from forvalue_index.records import Sample

BLOCK = 1024  # training samples; the queries are run forward once for each block


@dataclass(frozen=True, slots=True)
class Exact:
    """Exact influences, and the lengths |G| of the samples they are inner products of."""

    scores: NDArray[np.float32]  # [q, n]
    query_lengths: NDArray[np.float32]  # [q]
    sample_lengths: NDArray[np.float32]  # [n]


def exact_scores(
    index: InfluenceIndex,
    queries: Sequence[Sample],
    ids: NDArray[np.int64],
    progress: Progress | None = None,
) -> Exact:
    """Returns the exact influence of the training samples `ids` on the queries.

    Costs two forward passes of every sample: one for the scores, one for the lengths.
    """
    queries = list(queries)
    scores = np.empty((len(queries), len(ids)), np.float32)
    lengths = np.empty(len(ids), np.float32)
    tokens = 0
    for start in range(0, len(ids), BLOCK):
        part = slice(start, start + BLOCK)
        samples = index.training_samples(ids[part].tolist())
        scores[:, part] = index.influence(queries, samples)
        lengths[part] = _lengths(index, samples)
        tokens += sum(len(sample.input_ids) for sample in samples)
        if progress is not None:
            progress("exact", start + len(samples), len(ids), tokens)
    return Exact(scores, _lengths(index, queries), lengths)


def reranked(
    stored: NDArray[np.float32], exact: NDArray[np.float32], candidates: int
) -> NDArray[np.float64]:
    """Returns scores [q, n] that order as re-ranking does; they mean nothing beyond that.

    Of each query the best `candidates` by stored vectors come first, among themselves by their
    exact scores; the rest follows as the stored vectors have it.
    """
    result = np.empty(stored.shape)
    for row, first, true in zip(result, stored, exact, strict=True):
        order = top(first, len(first))
        best = order[:candidates]
        row[best[top(true[best], len(best))]] = -np.arange(len(best))
        row[order[candidates:]] = -np.arange(len(best), len(order))
    return result


def _lengths(index: InfluenceIndex, samples: list[Sample]) -> NDArray[np.float32]:
    squares = index.session.encoder.self_influence(samples, index.vectoriser.parts)
    return np.sqrt(np.maximum(squares, 0))

"""How well inner products of stored vectors approximate the exact form of the recipe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.evaluate.exact import exact_scores
from forvalue_index.analysis.evaluate.metrics import NAN, Figure, kept, pearson, spearman
from forvalue_index.config import FormatConfig
from forvalue_index.data.sources import Data
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Progress


@dataclass(frozen=True, slots=True)
class FidelityResult:
    """How stored scores compare with exact ones. Every figure is over the queries.

    A figure about the top k is undefined if there are no more than k samples.
    """

    recipe: str
    dim: int
    bits: int
    bytes_per_sample: int  # of the vector alone
    queries: int
    samples: int  # training samples that were compared
    pearson: Figure
    spearman: Figure
    overlap_10: Figure  # share of the exact top 10 in the stored top 10
    overlap_100: Figure
    top_10_in_100: Figure  # share of the exact top 10 in the stored top 100
    error: Figure  # rms over the samples of (stored - exact) / (|v| |i|)


def fidelity(
    index: InfluenceIndex,
    data: Data,
    *,
    sample: int | None = None,
    seed: int = 0,
    format: FormatConfig | None = None,
    progress: Progress | None = None,
) -> FidelityResult:
    """Returns how stored scores compare with exact ones; see `Evaluation.fidelity`."""
    queries = index.samples(data, format)
    ids, stored = index.scores(queries)
    if sample is not None and sample < len(ids):
        chosen = np.random.default_rng(seed).choice(len(ids), max(sample, 0), replace=False)
        ids, stored = ids[chosen], stored[:, chosen]
    if len(ids) < 2:
        raise InputError(f"{len(ids)} training samples: a comparison needs 2 or more; give more")
    exact = exact_scores(index, queries, ids, progress)
    errors = [
        _rms(stored[i], exact.scores[i], length * exact.sample_lengths)
        for i, length in enumerate(exact.query_lengths)
    ]
    pairs = list(zip(exact.scores, stored, strict=True))
    return FidelityResult(
        recipe=index.config.vector.recipe,
        dim=index.vectoriser.dim,
        bits=index.config.vector.bits,
        bytes_per_sample=index.snapshot.bytes_per_vector,
        queries=len(queries),
        samples=len(ids),
        pearson=Figure.of(pearson(*pair) for pair in pairs),
        spearman=Figure.of(spearman(*pair) for pair in pairs),
        overlap_10=Figure.of(kept(*pair, 10) for pair in pairs),
        overlap_100=Figure.of(kept(*pair, 100) for pair in pairs),
        top_10_in_100=Figure.of(kept(*pair, 10, among=100) for pair in pairs),
        error=Figure.of(errors),
    )


def _rms(
    scores: NDArray[np.float32], exact: NDArray[np.float32], lengths: NDArray[np.float32]
) -> float:
    """Returns the root mean square of (scores - exact) / lengths, over lengths that are not 0."""
    there = lengths > 0
    errors = (scores[there].astype(np.float64) - exact[there]) / lengths[there]
    return float(np.sqrt(np.mean(errors**2))) if len(errors) else NAN

"""How suspicious rows are, all signs together.

Each sign counts by its ranks. Its weight is how far the usual row is from zero, where an unrelated
prompt and response would be, in units of the spread.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from forvalue_index.analysis.audit.estimate import place_among
from forvalue_index.analysis.audit.unit_vectors import Floats


def suspicion_in(scores: dict[str, Floats], loss: Floats) -> Floats:
    """Returns the weighted mean of the scores' ranks, [n] in 0 .. 1.

    Without prompts the loss is used too, with the weight of all others together.
    """
    ranks, weights = [_ranks(score) for score in scores.values()], _weights(scores)
    if "needless prompt" not in scores:
        ranks.append(_ranks(loss))
        weights.append(sum(weights))
    return _mean(ranks, weights)


def suspicion_of(others: Mapping[str, Floats], scores: Mapping[str, Floats]) -> Floats:
    """Returns the suspicion that other rows would have among those with these scores, [m]."""
    weights = _weights(scores)
    ranks = [place_among(score, others[name]) for name, score in scores.items()]
    return _mean(ranks, weights)


def _weights(scores: Mapping[str, Floats]) -> list[float]:
    """Returns how far each score's median is below zero, over its median absolute deviation."""
    weights = []
    for score in scores.values():
        usual = float(np.median(score))
        spread = float(np.median(np.abs(score - usual)))
        weights.append(max(-usual, 0.0) / spread if spread > 0 else 0.0)
    return weights


def _mean(ranks: list[Floats], weights: list[float]) -> Floats:
    used = weights if any(weights) else None
    return np.asarray(np.average(ranks, axis=0, weights=used), np.float64)


def _ranks(values: Floats) -> Floats:
    """Returns the share of the other values that are lower, ties counting half, [n] in 0 .. 1."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    return np.asarray((below + (counts - 1) / 2)[inverse] / (len(values) - 1), np.float64)

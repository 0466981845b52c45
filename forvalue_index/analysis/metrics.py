"""How well scores find what is known to be there. Plain arrays in, plain numbers out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Returns the chance that a positive scores above a negative, ties counting half.

    Args:
        scores: [n], higher is more likely positive.
        positive: [n] bool.

    Raises:
        ValueError: there is no positive, or nothing else.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=np.bool_)
    n_positive = int(truth.sum())
    n_negative = len(truth) - n_positive
    if not n_positive or not n_negative:
        raise ValueError(f"AUC needs both kinds: {n_positive} positive, {n_negative} negative")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # from 1, ties share their mean
    return float(
        (ranks[truth].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    )


def recall(scores: ArrayLike, positive: ArrayLike) -> float:
    """Returns the share of the n positives that are among the n highest scores."""
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=np.bool_)
    top = np.argsort(-values, kind="stable")[: int(truth.sum())]
    return float(truth[top].mean())

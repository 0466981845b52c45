"""Metrics of rankings and correlations. Plain arrays in, plain numbers out; knows no index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric over several queries. None where there are too few of them."""

    mean: float | None
    sd: float | None  # spread over the queries
    se: float | None  # standard error of the mean
    n: int  # queries for which the metric is defined

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        """Returns the figure of one value per query; NaN where the metric is undefined.

        The spread is that of a sample (n - 1), so it needs two queries.
        """
        array = np.array(list(values), dtype=np.float64)
        array = array[~np.isnan(array)]
        n = len(array)
        sd = float(array.std(ddof=1)) if n > 1 else None
        return cls(
            mean=float(array.mean()) if n else None,
            sd=sd,
            se=None if sd is None else sd / n**0.5,
            n=n,
        )


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
    above = _ranks(values)[truth].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * n_negative))


def recall(scores: ArrayLike, positive: ArrayLike) -> float:
    """Returns the share of the n positives that are among the n highest scores."""
    truth = np.asarray(positive, dtype=np.bool_)
    return float(truth[top(scores, int(truth.sum()))].mean())


def reciprocal_rank(scores: ArrayLike, positive: ArrayLike) -> float:
    """Returns 1 / rank of the highest positive; equal scores keep their order.

    Raises:
        ValueError: there is no positive.
    """
    truth = np.asarray(positive, dtype=np.bool_)
    if not truth.any():
        raise ValueError("the reciprocal rank needs a positive")
    return 1 / (1 + int(truth[top(scores, len(truth))].argmax()))


def hit(scores: ArrayLike, positive: ArrayLike, k: int) -> float:
    """Returns 1 if a positive is among the k highest scores, else 0."""
    return float(np.asarray(positive, dtype=np.bool_)[top(scores, k)].any())


def top(scores: ArrayLike, k: int) -> NDArray[np.intp]:
    """Returns the positions of the k highest scores, best first; equal scores keep their order."""
    return np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")[:k]


def kept(exact: ArrayLike, approximate: ArrayLike, k: int, among: int | None = None) -> float:
    """Returns the share of the exact top k that is in the approximate top `among` (default k).

    NaN if there are no more than `among` scores, so that none could be missed.
    """
    among = k if among is None else among
    if among >= len(np.asarray(exact)):
        return NAN
    return float(np.isin(top(exact, k), top(approximate, among)).mean())


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the linear correlation of two arrays [n]; NaN where one of them is constant."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    x, y = x - x.mean(), y - y.mean()
    length = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / length) if length else NAN


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the correlation of the ranks of two arrays [n], ties sharing their mean rank."""
    return pearson(_ranks(np.asarray(a)), _ranks(np.asarray(b)))


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns ranks from 1, ascending; ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks

"""How far the influence of training rows agrees with that of rows with similar prompts.

A position below the number of training rows is one of these, in the order of their ids; the
positions of the trusted rows follow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.audit.unit_vectors import Floats, Positions, Vectors
from forvalue_index.store.similar import most_similar

_ROUNDS = 8  # how often the rows that agree less than their neighbours are left out


def nearest(
    states: Vectors, classes: NDArray[np.int64], pool: Positions, n: int, k: int
) -> Positions:
    """Returns the positions of the k states of `pool` most like each of the first n, [n, k].

    The nearest comes first. A row is not its own neighbour, and all are of its class; -1 where
    there are fewer than k.
    """
    result = np.full((n, k), -1, np.int64)
    for own in np.unique(classes[:n]):
        asking = np.flatnonzero(classes[:n] == own)
        members = pool[classes[pool] == own]
        count = min(k + 1, len(members))
        if not count:
            continue
        found = most_similar(states[asking], states[members], count)
        for row, near in zip(asking, found, strict=True):
            others = members[near[near >= 0]]
            others = others[others != row][:k]
            result[row, : len(others)] = others
    return result


def agreement(centred: Vectors, near: Positions) -> Floats:
    """Returns the mean cosine of each row with its reliable neighbours, [n].

    Trusted rows are reliable, and so are rows whose own agreement is at least the median of their
    neighbours'. At first all rows count as reliable; the result of a round decides for the next.

    Args:
        centred: [n, k] centred cosines of the n training rows with their neighbours.
        near: [n, k] positions of the neighbours; n or more is a trusted row, -1 is none.
    """
    reliable = np.ones(max(len(near), int(near.max(initial=-1)) + 1), np.bool_)
    result = np.zeros(len(near))
    for _ in range(_ROUNDS):
        result = agreement_with(centred, near, reliable)
        reliable = reliable_rows(result, near, len(reliable))
    return result


def agreement_with(centred: Vectors, near: Positions, reliable: NDArray[np.bool_]) -> Floats:
    """Returns the mean cosine of any rows with their reliable neighbours, [m].

    `centred` and `near` are [m, k]; `reliable` tells it of every position. Where no neighbour is
    reliable, all of them count.
    """
    there = near >= 0
    counted = reliable[near] & there
    counted[~counted.any(1)] = there[~counted.any(1)]
    return np.asarray((centred * counted).sum(1) / np.maximum(counted.sum(1), 1), np.float64)


def reliable_rows(agreed: Floats, near: Positions, count: int) -> NDArray[np.bool_]:
    """Returns which of `count` positions are reliable, given the training rows' agreement [n]."""
    n = len(near)
    inside = (near >= 0) & (near < n)
    around = np.where(inside, agreed[np.minimum(near, n - 1)], np.nan)
    around[np.isnan(around).all(1)] = -np.inf  # all neighbours are trusted: the row is reliable
    reliable = np.ones(count, np.bool_)
    reliable[:n] = agreed >= np.nanmedian(around, 1)
    return reliable

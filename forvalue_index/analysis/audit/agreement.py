"""How far the influence of training rows agrees with that of rows with similar prompts.

A position below the number of training rows is one of these, in the order of their ids; the
positions of the trusted rows follow.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from forvalue_index.store.similar import most_similar
from forvalue_index.store.snapshot import Snapshot

_ROUNDS = 8  # how often the rows that agree less than their neighbours are left out
_BLOCK = 512  # rows whose neighbours' vectors are in memory at a time

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]
Vectors = NDArray[np.float32]


class UnitVectors:
    """The unit vectors of training rows, read when needed, and of trusted rows."""

    def __init__(
        self, view: Snapshot, ids: NDArray[np.int64], known: NDArray[np.float32] | None = None
    ) -> None:
        """Takes the index and the ids of the training rows; `known`: vectors of trusted rows."""
        self._view, self._ids = view, ids
        self.count, dim = len(ids), view.dim
        self.known = np.zeros((0, dim), np.float32) if known is None else unit(known)
        total = np.zeros(dim)
        for _, vectors in self._blocks():
            total += vectors.sum(0, dtype=np.float64)
        self.mean = total / len(ids)  # of the training rows

    def __call__(self, positions: Positions) -> Vectors:
        """Returns the vectors at `positions` [m], [m, dim]."""
        out = np.empty((len(positions), len(self.mean)), np.float32)
        stored = positions < self.count
        out[stored] = unit(self._view.vectors(self._ids[positions[stored]]))
        out[~stored] = self.known[positions[~stored] - self.count]
        return out

    def with_the_rest(self) -> Floats:
        """Returns the cosine of every training row with the mean of all others, [n]."""
        out = np.empty(self.count)
        for part, vectors in self._blocks():
            others = self.mean * self.count - vectors
            lengths = np.maximum(np.linalg.norm(others, axis=1), 1e-30)
            out[part] = np.einsum("nd,nd->n", vectors, others) / lengths
        return out

    def _blocks(self) -> Iterator[tuple[slice, Vectors]]:
        at = 0
        for block, vectors in self._view.blocks(self._ids):
            yield slice(at, at + len(block)), unit(vectors)
            at += len(block)


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


def cosines(vectors: UnitVectors, near: Positions) -> tuple[Vectors, Vectors]:
    """Returns the cosines of rows with those at `near`, [n, k]: plain, and centred.

    Centred: after the mean of all training rows was subtracted. 0 where `near` is -1.
    """
    plain, centred = np.zeros(near.shape, np.float32), np.zeros(near.shape, np.float32)
    for start in range(0, len(near), _BLOCK):
        part = slice(start, start + _BLOCK)
        own = vectors(np.arange(start, min(start + _BLOCK, len(near))))
        plain[part], centred[part] = cosines_with(vectors, own, near[part])
    return plain, centred


def cosines_with(vectors: UnitVectors, own: Vectors, near: Positions) -> tuple[Vectors, Vectors]:
    """Returns the cosines of the unit vectors `own` [m, dim] with those at `near` [m, k].

    Plain and centred, as `cosines`.
    """
    shift = vectors.mean.astype(np.float32)
    others = vectors(np.maximum(near, 0).ravel()).reshape(*near.shape, -1)
    there = near >= 0
    plain = np.einsum("nd,nkd->nk", own, others)
    centred = np.einsum("nd,nkd->nk", unit(own - shift), unit(others - shift))
    return plain * there, centred * there


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


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Returns vectors scaled to length 1, [..., dim]."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-30), np.float32)

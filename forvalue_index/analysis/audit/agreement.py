"""How far the influence of training rows agrees with that of rows with similar prompts.

Positions count the training rows first, in the order of their ids, then the trusted ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from forvalue_index.search.backend import faiss
from forvalue_index.search.flat import FlatSearch

_ROUNDS = 8  # of leaving out the rows that agree less than their neighbours
_BLOCK = 512  # rows whose neighbours' vectors are in memory together

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]
Vectors = NDArray[np.float32]


class UnitVectors:
    """The unit vectors of training rows, read as they are needed, and of trusted ones."""

    def __init__(
        self, flat: FlatSearch, ids: NDArray[np.int64], known: NDArray[np.float32] | None = None
    ) -> None:
        """Takes the stored vectors and the training rows' ids; `known`: trusted rows' vectors."""
        self._flat, self._ids = flat, ids
        self.count = len(ids)
        self.known = np.zeros((0, flat.dim), np.float32) if known is None else unit(known)
        total = np.zeros(flat.dim)
        for _, vectors in self._blocks():
            total += vectors.sum(0, dtype=np.float64)
        self.mean = total / len(ids)  # of the training rows

    def __call__(self, positions: Positions) -> Vectors:
        """Returns the vectors at `positions` [m], [m, dim]."""
        out = np.empty((len(positions), len(self.mean)), np.float32)
        stored = positions < self.count
        out[stored] = unit(self._flat.vectors(self._ids[positions[stored]]))
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
        for block, vectors in self._flat.blocks(self._ids):
            yield slice(at, at + len(block)), unit(vectors)
            at += len(block)


def nearest(
    states: Vectors, classes: NDArray[np.int64], pool: Positions, n: int, k: int
) -> Positions:
    """Returns the positions of the k states of `pool` most like each of the first n, [n, k].

    The nearest first, never a state's own, and of its own class; -1 where there are fewer.
    """
    result = np.full((n, k), -1, np.int64)
    lib = faiss()
    for own in np.unique(classes[:n]):
        asking = np.flatnonzero(classes[:n] == own)
        members = pool[classes[pool] == own]
        count = min(k + 1, len(members))
        if not count:
            continue
        metric = lib.METRIC_INNER_PRODUCT
        _, found = lib.knn(states[asking], states[members], count, metric=metric)
        for row, near in zip(asking, members[found], strict=True):
            others = near[near != row][:k]
            result[row, : len(others)] = others
    return result


def cosines(vectors: UnitVectors, near: Positions) -> tuple[Vectors, Vectors]:
    """Returns the cosines of rows with those at `near`, [n, k]: as they are, and centred.

    Centred: after the mean of all training rows was taken out. 0 where `near` is -1.
    """
    plain, centred = np.zeros(near.shape, np.float32), np.zeros(near.shape, np.float32)
    shift = vectors.mean.astype(np.float32)
    for start in range(0, len(near), _BLOCK):
        part = slice(start, start + _BLOCK)
        own = vectors(np.arange(start, min(start + _BLOCK, len(near))))
        others = vectors(np.maximum(near[part], 0).ravel()).reshape(*near[part].shape, -1)
        plain[part] = np.einsum("nd,nkd->nk", own, others)
        centred[part] = np.einsum("nd,nkd->nk", unit(own - shift), unit(others - shift))
    there = near >= 0
    return plain * there, centred * there


def agreement(centred: Vectors, near: Positions) -> Floats:
    """Returns the mean cosine of each row with those neighbours that can be relied on, [n].

    These are the trusted ones, and those that agree with their own neighbours at least as much as
    is usual around the row. All are relied on at first; then it is done again with what was found.

    Args:
        centred: [n, k] centred cosines of the n training rows with their neighbours.
        near: [n, k] positions of these; n or more is a trusted row, -1 none.
    """
    n, there = len(near), near >= 0
    reliable = np.ones(max(n, int(near.max(initial=-1)) + 1), np.bool_)
    result = np.zeros(n)
    for _ in range(_ROUNDS):
        counted = reliable[near] & there
        counted[~counted.any(1)] = there[~counted.any(1)]
        result = (centred * counted).sum(1) / np.maximum(counted.sum(1), 1)
        around = np.where(there & (near < n), result[np.minimum(near, n - 1)], np.nan)
        around[np.isnan(around).all(1)] = -np.inf  # trusted rows alone: the row may be relied on
        reliable[:n] = result >= np.nanmedian(around, 1)
    return result


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Returns vectors at length 1, [..., dim]."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-30), np.float32)

"""The unit vectors of training and of trusted rows, and their cosines.

Passes over all rows are computed where the vectors are: see `Snapshot.compute`. Positions are those
of `agreement.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.store.snapshot import Snapshot
from forvalue_index.store.work import VectorsOf

_BLOCK = 512  # rows whose neighbours' vectors are in memory at a time
_NONE = -1  # in the place of an id: no neighbour
_KNOWN = -2  # trusted row t has _KNOWN - t

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
        for _, found in view.compute(_Sum(), ids):
            total += found
        self.mean = total / len(ids)  # of the training rows

    def __call__(self, positions: Positions) -> Vectors:
        """Returns the vectors at some positions, [..., dim]."""
        out = np.empty((*positions.shape, len(self.mean)), np.float32)
        stored = positions < self.count
        out[stored] = unit(self._view.vectors(self._ids[positions[stored]]))
        out[~stored] = self.known[positions[~stored] - self.count]
        return out

    def with_the_rest(self) -> Floats:
        """Returns the cosine of every training row with the mean of all others, [n]."""
        out = np.empty(self.count)
        for places, found in self._view.compute(_WithTheRest(self.mean, self.count), self._ids):
            out[places] = found
        return out

    def cosines(self, near: Positions) -> tuple[Vectors, Vectors]:
        """Returns the cosines of training rows with those at `near`, [n, k]: plain, and centred.

        Centred: after the mean of all training rows was subtracted. 0 where `near` is -1.
        """
        plain, centred = np.empty(near.shape, np.float32), np.empty(near.shape, np.float32)
        stored = near < self.count
        beside = np.where(stored, self._ids[np.where(stored, near, 0)], _KNOWN - near + self.count)
        beside[near < 0] = _NONE
        work = _WithNeighbours(self.known, self.mean.astype(np.float32))
        for places, found in self._view.compute(work, self._ids, beside):
            plain[places], centred[places] = found[:, 0], found[:, 1]
        return plain, centred

    def cosines_of(self, own: Vectors, near: Positions) -> Vectors:
        """Returns the centred cosines of any unit vectors [m, dim] with those at `near`, [m, k]."""
        return _cosines(own, self(np.maximum(near, 0)), near >= 0, self.mean.astype(np.float32))[1]


class _Sum:
    """The sum of the unit vectors of rows, [dim]."""

    def __call__(self, vectors: VectorsOf, ids: NDArray[np.int64], _: object) -> Floats:
        total: Floats = unit(vectors(ids)).sum(0, dtype=np.float64)
        return total


@dataclass(frozen=True, slots=True)
class _WithTheRest:
    """The cosine of each row's vector with the mean of all `count` others, [m]."""

    mean: Floats
    count: int

    def __call__(self, vectors: VectorsOf, ids: NDArray[np.int64], _: object) -> Floats:
        own = unit(vectors(ids))
        others = self.mean * self.count - own
        lengths = np.maximum(np.linalg.norm(others, axis=1), 1e-30)
        return np.asarray(np.einsum("nd,nd->n", own, others) / lengths)


@dataclass(frozen=True, slots=True)
class _WithNeighbours:
    """The plain and the centred cosine of each row with its neighbours, [m, 2, k].

    Beside each row are the ids of its neighbours [k], _NONE, or _KNOWN and less.
    """

    known: Vectors  # of trusted rows
    mean: Vectors  # of the training rows

    def __call__(
        self, vectors: VectorsOf, ids: NDArray[np.int64], beside: NDArray[Any] | None
    ) -> Vectors:
        assert beside is not None
        out = np.empty((len(ids), 2, beside.shape[1]), np.float32)
        for start in range(0, len(ids), _BLOCK):
            part = slice(start, start + _BLOCK)
            near = beside[part]
            others = np.zeros((*near.shape, len(self.mean)), np.float32)
            if (stored := near >= 0).any():
                others[stored] = unit(vectors(near[stored]))
            trusted = near <= _KNOWN
            others[trusted] = self.known[_KNOWN - near[trusted]]
            own = unit(vectors(ids[part]))
            out[part, 0], out[part, 1] = _cosines(own, others, near != _NONE, self.mean)
        return out


def _cosines(
    own: Vectors, others: Vectors, there: NDArray[np.bool_], mean: Vectors
) -> tuple[Vectors, Vectors]:
    """Returns the cosines of unit vectors [m, dim] with others [m, k, dim]: plain, and centred."""
    plain = np.einsum("nd,nkd->nk", own, others)
    centred = np.einsum("nd,nkd->nk", unit(own - mean), unit(others - mean))
    return plain * there, centred * there


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Returns vectors scaled to length 1, [..., dim]."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-30), np.float32)

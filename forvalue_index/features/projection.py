"""Projections: the last step of a vector, from the wide sketch to the numbers that are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

OVERSAMPLING = 32  # directions tried beyond those that are kept (arXiv 0909.4061, section 4.2)
BLOCK = 256  # sketches that are in memory at a time
COLUMNS = 2048  # numbers of all sketches that are in memory at a time, where the sketches are few
LEARNED = 7 / 8  # of the numbers in a vector, at most; the rest is for what they miss
RESIDUAL = 0.05  # weight of the inner products of what they miss: few numbers, much noise


class Projection:
    """A linear map from S numbers to `dim`: learned directions, then random ones for the rest."""

    def __init__(self, matrix: Tensor, learned: int, expected: float = 1.0) -> None:
        self.matrix = matrix  # [S, dim] float32
        self.learned = learned  # the first columns, orthonormal
        self.expected = expected  # share of energy to keep of rows that it was not fitted to

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.matrix.shape[1]

    def __call__(self, sketches: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the vectors [n, dim] of sketches [n, S], and the share of energy kept [n]."""
        vectors = sketches @ self.matrix
        inside = vectors[:, : self.learned].square().sum(1)
        return vectors, inside / sketches.square().sum(1).clamp_min(1e-30)


def aligned(numbers: NDArray[Any]) -> Tensor:
    """Returns a copy where torch puts its tensors, at a multiple of 64 bytes.

    NumPy's arrays lie anywhere, and the last bits of a product by MKL depend on where its factors
    lie: the same rows would be given other vectors in the next run.
    """
    return torch.tensor(numbers)


def fit_projection(
    sketches: NDArray[np.float32], dim: int, seed: int, device: torch.device
) -> Projection:
    """Returns the projection to `dim` numbers that keeps most of sketches [n, S].

    Uncentred principal components by a randomised range finder with one power iteration. The
    sketches are read in blocks, so they may lie on disk; no n x n and no S x S matrix is formed.
    The other numbers hold random directions of the rest of the space, with a small weight: they
    are what an index knows of rows that are unlike those it was fitted to.
    """
    width = sketches.shape[1]
    rank = min(dim + OVERSAMPLING, width)
    span = _span_of_few if len(sketches) <= rank else partial(_span_of_many, rank=rank, seed=seed)
    values, inside, directions = span(sketches, device=device)
    most = max(1, int(LEARNED * dim))
    n_learned = max(1, min(most, int((values > 1e-9 * values[0]).sum())))
    learned = directions(n_learned)
    room = dim - n_learned
    rest = _random(width, room, seed + 1).to(device) / width**0.5
    rest -= learned @ (learned.T @ rest)
    # At weight 1 the random directions would estimate the inner products they miss without bias.
    rest *= (RESIDUAL * width / max(room, 1)) ** 0.5  # one number has no room
    expected = _expected(inside, most)
    return Projection(torch.cat([learned, rest], 1), n_learned, expected)


Span = tuple[Tensor, Tensor, Callable[[int], Tensor]]
"""Energies [r] of orthonormal directions, largest first; the rows' coordinates in some basis of
theirs, [n, r]; and what gives the first k directions themselves, [S, k]."""


def _span_of_few(sketches: NDArray[np.float32], *, device: torch.device) -> Span:
    """Returns the span of few sketches, from their inner products in float64.

    That takes less time and memory than an orthonormal basis of them.
    """
    n, width = sketches.shape
    products = torch.zeros(n, n, dtype=torch.float64, device=device)
    for start in range(0, width, COLUMNS):
        some = aligned(sketches[:, start : start + COLUMNS].astype(np.float64)).to(device)
        products.addmm_(some, some.T)
    values, vectors = torch.linalg.eigh(products)
    values = values.flip(0).clamp_min(0)
    inside = vectors.flip(1) * values.sqrt()

    def directions(k: int) -> Tensor:
        shares = (inside[:, :k] / values[:k].clamp_min(1e-30)).float()
        found = torch.zeros(width, k, device=device)
        for block, part in zip(_blocks(sketches, device), shares.split(BLOCK), strict=True):
            found.addmm_(block.T, part)
        return found

    return values, inside.float(), directions


def _span_of_many(
    sketches: NDArray[np.float32], *, rank: int, seed: int, device: torch.device
) -> Span:
    """Returns the span of most of more sketches than `rank`, of so many directions."""
    basis = _range(sketches, rank, seed, device)  # [S, rank]
    inside = torch.cat([block @ basis for block in _blocks(sketches, device)])
    values, vectors = _principal(inside)
    return values, inside, lambda k: basis @ vectors[:, :k]


def _principal(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the energies [r] and principal directions [r, r] of rows [n, r], largest first."""
    values, vectors = torch.linalg.eigh((inside.T @ inside).double())
    return values.flip(0), vectors.flip(1).float()


def _expected(inside: Tensor, dim: int) -> float:
    """Returns the share of energy that directions learned from half of the rows keep of the rest.

    The rows that a projection was fitted to say nothing of others: up to `dim` are kept whole.
    """
    known, other = inside[::2], inside[1::2]
    if not len(other):
        return 1.0
    directions = _principal(known)[1][:, : min(dim, len(known))]
    return float((other @ directions).square().sum() / other.square().sum().clamp_min(1e-30))


def _orthonormal(columns: Tensor) -> Tensor:
    """Returns orthonormal columns with the same span."""
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def _range(sketches: NDArray[np.float32], rank: int, seed: int, device: torch.device) -> Tensor:
    """Returns orthonormal directions that hold nearly all of more sketches, [S, rank]."""
    n, width = sketches.shape
    mix = _random(n, rank, seed)
    start = torch.zeros(width, rank, device=device)
    for number, block in enumerate(_blocks(sketches, device)):
        start += block.T @ mix[number * BLOCK : (number + 1) * BLOCK].to(device)
    start = _orthonormal(start)
    grown = torch.zeros_like(start)
    for block in _blocks(sketches, device):
        grown += block.T @ (block @ start)
    return _orthonormal(grown)


def _blocks(sketches: NDArray[np.float32], device: torch.device) -> Iterator[Tensor]:
    for start in range(0, len(sketches), BLOCK):
        yield aligned(sketches[start : start + BLOCK]).to(device)


def _random(rows: int, columns: int, seed: int) -> Tensor:
    """Returns standard normal numbers, [rows, columns], the same for every device."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    return aligned(generator.standard_normal((rows, columns), dtype=np.float32))

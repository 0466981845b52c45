"""Projections: from the wide sketch of a sample to the fewer numbers that are stored.

A sketch is blocks of equally many numbers. Each block has principal directions of its own, learned
from second moments that are summed while sketches are read; the directions of all blocks compete
for three quarters of a vector's numbers by their energy. What lies outside of these directions, the
rest, is added up with random signs in the last quarter. It counts where a row has less in the
directions than is usual: sums with random signs are noise beside what was learned, and the only
signal where nothing was. Then all numbers are rotated, so that each is a sum of many and nearly
normal, as `codes.py` wants them. This module knows neither samples nor codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CANDIDATES, LEAST = 4, 16
"""Directions of a block among which it is chosen: for each that blocks are given on average, and
at least."""

REST, FEWEST = 4, 64
"""One in so many numbers is for the rest, if these are so many: sums in fewer are only noise."""

FADING = 2
"""Power of what the rest is multiplied by, 1 - share / usual: see `Projection.expecting`."""

LOUD = 2.0
"""Times the mean energy of a block: one with more may be given any number of directions."""


class Moments:
    """The second moment of each block of unit sketches, summed as they come."""

    def __init__(self, blocks: int, width: int, device: torch.device) -> None:
        self.n = 0  # sketches
        self.sums = torch.zeros(blocks, width, width, device=device)  # float32

    def update(self, sketches: Tensor) -> None:
        """Takes in sketches [n, blocks * width], each at length 1.

        Else a few long ones, as there are under the recipe `raw`, decide on all directions.
        """
        blocks, width = self.sums.shape[:2]
        lengths = torch.linalg.vector_norm(sketches, dim=1, keepdim=True)
        rows = (
            (sketches / lengths.clamp_min(1e-30)).view(-1, blocks, width).transpose(0, 1)
        )  # [blocks, n, width]
        self.sums.baddbmm_(rows.transpose(1, 2), rows)
        self.n += len(sketches)

    def shrunk(self) -> Tensor:
        """Returns the moments, drawn to what all blocks share, [blocks, width, width].

        The fewer sketches there are beside the numbers of a block, the more: directions that a
        block shares with the others are met again in other rows, its own may be chance.
        """
        width = self.sums.shape[1]
        weight = width / (width + self.n)
        energy = self.sums.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]  # of each block
        shared = (self.sums / energy.clamp_min(1e-30)).mean(0)
        return self.sums * (1 - weight) + shared * (weight * energy)


class Projection:
    """A map from sketches to vectors: directions of the blocks and the rest, then a rotation.

    Without directions the sketch is kept whole. `tensors` hold all that it is; those of older
    indexes have nothing for the rest.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self._signs = tensors["signs"].float()  # [rounds, dim]
        self._directions: list[tuple[int, Tensor]] = []  # block, its directions [k, width]
        if "directions" in tensors:
            counts = tensors["counts"].tolist()
            split = torch.split(tensors["directions"].float(), counts)
            self._directions = [(i, part) for i, part in enumerate(split) if len(part)]
        self._rest: tuple[Tensor, Tensor] | None = None
        if "rest_signs" in tensors:
            self._usual = tensors["usual"].float()
            signs = tensors["rest_signs"].float()  # [S]
            self._rest = signs, self._folded_directions(signs)

    @classmethod
    def fit(cls, moments: Moments, dim: int, seed: int) -> Projection:
        """Returns the projection to `dim` numbers, or to as many as a sketch has."""
        blocks, width = moments.sums.shape[:2]
        dim, device = min(dim, blocks * width), moments.sums.device
        draws = np.random.Generator(np.random.Philox(key=seed))
        signs = draws.integers(0, 2, (2, dim)).astype(np.int8) * 2 - 1
        tensors = {"signs": torch.from_numpy(signs).to(device)}
        if dim < blocks * width:
            values, vectors = _principal(
                moments.shrunk(), max(LEAST, CANDIDATES * dim // blocks), draws
            )
            rest = dim // REST if dim // REST >= FEWEST else 0
            best = torch.argsort(values.flatten(), descending=True, stable=True)[: dim - rest]
            chosen = torch.zeros_like(values, dtype=torch.bool).view(-1)
            chosen[best] = True
            chosen = chosen.view_as(values)
            tensors["counts"] = chosen.sum(1)
            tensors["directions"] = vectors.mT[chosen].half().contiguous()  # [dim - rest, width]
            if rest:
                signs = draws.integers(0, 2, blocks * width).astype(np.int8) * 2 - 1
                tensors["rest_signs"] = torch.from_numpy(signs).to(device)
                tensors["usual"] = torch.ones(1, device=device)
        return cls(tensors)

    def expecting(self, sketches: Iterable[Tensor]) -> Projection:
        """Returns itself, told how large a share of their energy rows have in the directions.

        Rows that have as much or more have nothing of the rest in their vectors. Without any
        sketches, only rows that lie wholly in the directions have nothing of it.

        Args:
            sketches: of rows like those that were learned from, but not learned from, [n, S] each.
        """
        shares = [self._inside(some)[1] for some in sketches] if self._rest is not None else []
        if not shares:
            return self
        usual = torch.cat(shares).mean().clamp_min(1e-6)[None]
        return Projection(self.tensors | {"usual": usual})

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._signs.shape[1]

    def __call__(self, sketches: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the vectors [n, dim] of sketches [n, S], and the share in the directions [n]."""
        inside, share = self._inside(sketches)
        if self._rest is not None:
            inside = torch.cat([inside, self._folded(sketches, inside, share)], 1)
        return self._rotated(inside), share

    def _inside(self, sketches: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what sketches [n, S] have in the directions, and what share of their energy."""
        inside = sketches
        if self._directions:
            width = self._directions[0][1].shape[1]
            rows = sketches.view(len(sketches), -1, width)
            inside = torch.cat([rows[:, i] @ part.T for i, part in self._directions], 1)
        return inside, inside.square().sum(1) / sketches.square().sum(1).clamp_min(1e-30)

    def _folded(self, sketches: Tensor, inside: Tensor, share: Tensor) -> Tensor:
        """Returns what sketches [n, S] have outside of the directions, in few numbers [n, rest].

        Inner products of these are those of the rest on average, times what it counts.
        """
        assert self._rest is not None
        signs, directions = self._rest
        left, rest = -(inside @ directions), directions.shape[1]
        for numbers, own in zip(
            torch.split(sketches, rest, 1), torch.split(signs, rest), strict=True
        ):
            left[:, : len(own)].addcmul_(numbers, own)
        return left * (1 - share / self._usual).clamp(0, 1)[:, None] ** FADING

    def _folded_directions(self, signs: Tensor) -> Tensor:
        """Returns the directions, added up as `_folded` does with sketches, [dim - rest, rest]."""
        count = sum(len(part) for _, part in self._directions)
        result, start = signs.new_zeros(count, self.dim - count), 0
        for i, part in self._directions:
            own = torch.arange(i * part.shape[1], (i + 1) * part.shape[1], device=signs.device)
            places = own % result.shape[1]
            result[start : start + len(part)].index_add_(1, places, part * signs[own])
            start += len(part)
        return result

    def _rotated(self, vectors: Tensor) -> Tensor:
        """Returns vectors [n, dim] rotated: signs, then a Walsh-Hadamard transform.

        That has a power of two numbers; the others are in a second one, which begins later.
        """
        dim = self.dim
        size = 1 << (dim.bit_length() - 1)
        vectors = vectors * self._signs[0]
        vectors[:, :size] = hadamard(vectors[:, :size])
        if size < dim:
            vectors *= self._signs[1]
            vectors[:, dim - size :] = hadamard(vectors[:, dim - size :])
        return vectors


def _principal(moments: Tensor, k: int, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Returns eigenvalues [blocks, width] and eigenvectors, in columns, of each block's moment.

    Of a block without much energy only the k largest, the others are 0: one step of subspace
    iteration finds them well enough in a quarter of the time, as few of them are chosen.
    """
    blocks, width = moments.shape[:2]
    if 2 * k >= width:
        values, vectors = torch.linalg.eigh(moments)
        return values, vectors
    values, vectors = moments.new_zeros(blocks, width), torch.zeros_like(moments)
    energy = moments.diagonal(dim1=1, dim2=2).sum(1)
    loud = energy > LOUD * energy.mean()
    values[loud], vectors[loud] = torch.linalg.eigh(moments[loud])
    others = moments[~loud]
    start = torch.from_numpy(draws.standard_normal((width, k), np.float32))
    start = start.to(moments.device, moments.dtype)
    basis = torch.linalg.qr(others @ (others @ start))[0]  # [blocks, width, k]
    found, turned = torch.linalg.eigh(basis.mT @ (others @ basis))
    values[~loud, :k], vectors[~loud, :, :k] = found, basis @ turned
    return values, vectors


def hadamard(vectors: Tensor) -> Tensor:
    """Returns the orthonormal Walsh-Hadamard transform of vectors [n, a power of two]."""
    n, size = vectors.shape
    half = 1
    while half < size:
        pairs = vectors.reshape(n, -1, 2, half)
        vectors = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2)
        half *= 2
    result: Tensor = vectors.reshape(n, size) / size**0.5
    return result


def aligned(numbers: NDArray[Any]) -> Tensor:
    """Returns a copy where torch puts its tensors, at a multiple of 64 bytes.

    NumPy's arrays lie anywhere, and the last bits of a product by MKL depend on where its factors
    lie: the same rows would be given other vectors in the next run.
    """
    return torch.tensor(numbers)

"""Projections: the last step of a vector, from the wide sketch to the numbers that are stored."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Projection(Protocol):
    """What every projection offers."""

    dim: int

    def __call__(self, sketches: Tensor) -> Tensor:
        """Returns the vectors [n, dim] of sketches [n, S]."""


class Identity:
    """Stores the sketch itself."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, sketches: Tensor) -> Tensor:
        """Returns the sketches as they are."""
        return sketches

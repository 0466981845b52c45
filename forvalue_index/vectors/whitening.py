"""Mean states made comparable: zero mean, and the loudest directions made shorter.

The mean state of a sample is the mean of the states that predict its scored tokens. As they are,
all of them point much the same way. A few directions may have most of the rest; to make all of
them equally long would lose what tells rows apart (tools/EXPERIMENTS.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

DIRECTIONS = 256
"""Numbers of a state, at most: the directions with the largest variance."""

DAMPING = 100.0
"""Times the mean variance: directions with less than that keep their lengths beside each other."""

LEAST = 1e-12
"""Of the energy of the states: a direction with less variance is rounding."""


class Whitening:
    """A linear map from mean states to states of length 1. `tensors` hold all that it is."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self._mean, self._directions = tensors["mean"], tensors["directions"]  # [d], [d, m]
        if self._directions.shape[:1] != self._mean.shape or not self._directions.shape[1]:
            raise ValueError("the directions of states and their mean differ in length")

    @classmethod
    def fit(cls, means: Tensor) -> Whitening | None:
        """Returns what the mean states [n, d] of some samples teach; None: they are all the same.

        Each direction is divided by the root of its variance and of DAMPING times the mean
        variance of all directions together.
        """
        wide = means.double()
        mean = wide.mean(0)
        centred = (wide - mean) / len(wide) ** 0.5
        # Of rows or columns, the fewer: both have the same variances.
        variances, inside = torch.linalg.eigh(
            centred @ centred.T if len(wide) < wide.shape[1] else centred.T @ centred
        )
        variances, inside = variances.flip(0)[:DIRECTIONS], inside.flip(1)[:, :DIRECTIONS]
        there = variances > LEAST * (mean.square().mean() + variances[0])
        if not bool(there.any()):
            return None
        variances, inside = variances[there], inside[:, there]
        directions = inside
        if len(wide) < wide.shape[1]:
            directions = centred.T @ inside / variances.sqrt()
        mean_variance = centred.square().sum() / wide.shape[1]
        damped = (variances + DAMPING * mean_variance).sqrt()
        return cls({"mean": mean.float(), "directions": (directions / damped).float()})

    @property
    def hidden(self) -> int:
        """Numbers of a mean state."""
        return self._mean.shape[0]

    @property
    def dim(self) -> int:
        """Numbers of a state."""
        return self._directions.shape[1]

    def __call__(self, means: Tensor) -> Tensor:
        """Returns the states [n, m] of samples, from their mean states [n, d] float32."""
        states: Tensor = (means - self._mean) @ self._directions
        lengths: Tensor = torch.linalg.vector_norm(states, dim=1, keepdim=True)
        return states / lengths.clamp_min(1e-30)

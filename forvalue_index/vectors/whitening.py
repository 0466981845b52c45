"""Mean states made comparable: zero mean, and the loudest directions made shorter.

The mean state of a sample is the mean of the states that predict its scored tokens. As they are,
all of them point much the same way. A few directions may have most of the rest; to make all of
them equally long would lose what tells rows apart (tools/EXPERIMENTS.md). Some numbers are of
random directions among those that were not learned: rows unlike those that were learned from, or
learned from few, differ there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DIRECTIONS, LEARNED = 256, 192
"""Numbers of a state, at most, and those of the directions with the largest variance, where the
model has more hidden units. The others are of random directions beside them."""

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
        variance of all directions together; the random ones count as without variance, and are
        made longer to stand for all that were not learned.
        """
        wide = means.double()
        mean, hidden = wide.mean(0), wide.shape[1]
        centred = (wide - mean) / len(wide) ** 0.5
        # Of rows or columns, the fewer: both have the same variances.
        variances, inside = torch.linalg.eigh(
            centred @ centred.T if len(wide) < hidden else centred.T @ centred
        )
        variances, inside = variances.flip(0), inside.flip(1)
        there = variances > LEAST * (mean.square().mean() + variances[0])
        if not bool(there.any()):
            return None
        most = LEARNED if hidden > DIRECTIONS else DIRECTIONS
        variances, inside = variances[there][:most], inside[:, there][:, :most]
        directions = inside
        if len(wide) < hidden:
            directions = centred.T @ inside / variances.sqrt()
        damping = DAMPING * centred.square().sum() / hidden
        others = _beside(directions, min(DIRECTIONS, hidden) - len(variances))
        scaled = torch.cat(
            [directions / (variances + damping).sqrt(), others / damping.sqrt()], dim=1
        )
        return cls({"mean": mean.float(), "directions": scaled.float()})

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


def _beside(directions: Tensor, count: int) -> Tensor:
    """Returns random directions [d, count] at right angles to all given [d, m] and each other.

    Their length makes lengths in them those in all directions that are not given, on average.
    """
    hidden, learned = directions.shape
    draws = np.random.Generator(np.random.Philox(key=0)).standard_normal((hidden, count))
    others = torch.from_numpy(draws).to(directions.device, directions.dtype)
    for _ in range(2):  # the second time for what rounding left
        others = others - directions @ (directions.T @ others)
    basis: Tensor = torch.linalg.qr(others)[0]
    basis *= ((hidden - learned) / max(1, count)) ** 0.5
    return basis

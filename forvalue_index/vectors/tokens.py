"""The scored tokens of some samples: what a forward pass leaves for the closed form.

This module knows of no model and no file; it only names the tensors and their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenFactors:
    """The factors h and e of n scored tokens that belong to `n_samples` samples.

    The gradient of a sample's summed response log-likelihood with respect to the unembedding is
    G = sum over its tokens of e h^T (Eq. 2, arXiv 2508.10180). It is never formed: everything is
    computed from these factors.
    """

    hidden: Tensor  # [n, d] float32, the input of the unembedding
    errors: Tensor  # [n, v] float32, onehot(target) - softmax(logits), through the logits' chain
    owner: Tensor  # [n] int64, which sample (0 .. n_samples - 1) a token belongs to
    n_samples: int
    known_runs: list[tuple[int, int]] | None = None
    """What `runs` returns, where the host knows it."""

    def runs(self) -> list[tuple[int, int]]:
        """Returns the samples in the order of their tokens, each with the number of its tokens.

        What is not known has to be fetched from the device.
        """
        if self.known_runs is not None:
            return self.known_runs
        owners, counts = torch.unique_consecutive(self.owner, return_counts=True)
        return list(zip(owners.tolist(), counts.tolist(), strict=True))


Transform: TypeAlias = Callable[[TokenFactors], TokenFactors]
"""What changes the factors of every token by itself, such as a recipe."""


def joined(parts: Sequence[TokenFactors], *, shared: bool = False) -> TokenFactors:
    """Returns the factors of the tokens of all parts, in their order.

    `shared`: all parts have the same samples; otherwise, each has samples of its own.
    """
    if len(parts) == 1:
        return parts[0]
    n_samples = [part.n_samples for part in parts]
    starts = [0 if shared else sum(n_samples[:number]) for number in range(len(parts))]
    return TokenFactors(
        torch.cat([part.hidden for part in parts]),
        torch.cat([part.errors for part in parts]),
        torch.cat([part.owner + start for part, start in zip(parts, starts, strict=True)]),
        n_samples[0] if shared else sum(n_samples),
    )

"""The scored tokens of some samples: what a forward pass leaves for the closed form.

This module knows of no model and no file; it only names the tensors and their shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor


class Groups:
    """Entries of the vocabulary whose errors are added up."""

    def __init__(self, of: Tensor, count: int) -> None:
        """`of` is the group of each entry, [v] int64, below `count`."""
        self.of = of
        self.count = count

    @cached_property
    def entries(self) -> Tensor:
        """The entries of the first group, then those of the second, and so on, [v] int64."""
        return torch.argsort(self.of, stable=True)

    @cached_property
    def starts(self) -> Tensor:
        """Where each group begins among `entries`, and where the last one ends, [count + 1]."""
        ends = torch.bincount(self.of, minlength=self.count).cumsum(0)
        return torch.cat([ends.new_zeros(1), ends])


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

    def lengths(self) -> Tensor:
        """Returns the lengths of the errors, [n]."""
        lengths: Tensor = torch.linalg.vector_norm(self.errors, dim=1)
        return lengths

    def grouped(self, groups: Groups) -> Tensor:
        """Returns the errors, their entries added up by group, [n, groups]."""
        sums = self.errors.new_zeros(len(self.errors), groups.count)
        return sums.scatter_add_(1, groups.of.expand(len(sums), -1), self.errors)


@dataclass(frozen=True, slots=True)
class FoldedFactors(TokenFactors):
    """Factors of which only the grouped errors are known, [n, groups], and the lengths."""

    known_lengths: Tensor = field(kw_only=True)  # [n]

    def lengths(self) -> Tensor:
        """Returns the lengths of the errors, [n]."""
        return self.known_lengths

    def grouped(self, groups: Groups) -> Tensor:
        """Returns the errors, [n, groups]; `groups` are those that they were made for."""
        return self.errors


Transform: TypeAlias = Callable[[TokenFactors], TokenFactors]
"""What changes the factors of every token by itself, such as a recipe."""

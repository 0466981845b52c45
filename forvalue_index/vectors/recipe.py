"""Recipes: what influence means, as a change of every token's (h, e) before anything is summed.

A recipe maps the factors of one token to new factors, looking at no other token of the batch; that
keeps a sample's vector independent of what it is batched with, and the influence an inner product.
What it learned from a part of the training set is in its tensors, which belong to the fingerprint.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from forvalue_index.vectors.statistics import TokenStatistics
from forvalue_index.vectors.tokens import TokenFactors

DAMPING = 1.0
"""Of both curvatures, relative to their mean eigenvalue. Weaker dampings were better in some
studies and much worse in others (tools/EXPERIMENTS.md)."""

ERROR_FLOOR = 2e-4
"""Of the length of a token's error. Absolute: the best floor was the same for models whose mean
error lay anywhere between 0.003 and 1 (tools/EXPERIMENTS.md)."""


class Recipe(ABC):
    """What every recipe offers."""

    name: ClassVar[str]
    form: ClassVar[int] = 1
    """Raised with every change of what it makes of a token: indexes of another form are refused."""

    def __init__(self, tensors: dict[str, Tensor] | None = None) -> None:
        self.tensors = tensors or {}

    @classmethod
    @abstractmethod
    def fit(cls, statistics: TokenStatistics) -> Self:
        """Returns the recipe with what it takes from the statistics."""

    @staticmethod
    @abstractmethod
    def energy(statistics: TokenStatistics) -> Tensor:
        """Returns what each vocabulary entry adds to the squared length of an error, [v]."""

    @abstractmethod
    def __call__(self, tokens: TokenFactors) -> TokenFactors:
        """Returns the factors whose inner products are the influence under this recipe."""


class Raw(Recipe):
    """The paper's closed form: the gradient of the unembedding, unchanged (Eq. 2, 2508.10180)."""

    name = "raw"

    @classmethod
    def fit(cls, statistics: TokenStatistics) -> Self:
        """Returns the recipe: it learns nothing."""
        return cls()

    @staticmethod
    def energy(statistics: TokenStatistics) -> Tensor:
        """Returns the mean squared error of each vocabulary entry, [v]."""
        return statistics.error_square

    def __call__(self, tokens: TokenFactors) -> TokenFactors:
        """Returns the factors as they are."""
        return tokens


class Kfac(Recipe):
    """The curvature of the unembedding on both sides, as Kronecker factors.

    <G_a, G_b> becomes <G_a, (B + b)^-1 G_b (A + a)^-1>, with A = E[h h^T], B the diagonal of
    E[e e^T], and dampings a, b relative to their mean eigenvalues (K-FAC, arXiv 1503.05671). An
    entry of the vocabulary that is never seen has the damping alone.
    """

    name = "kfac"

    @classmethod
    def fit(cls, statistics: TokenStatistics) -> Self:
        """Returns the recipe with the inverse roots of both factors."""
        square = statistics.error_square
        scale = (square + DAMPING * square.mean()).rsqrt()
        return cls({"whitening": _whitening(statistics), "error_scale": scale.float()})

    @staticmethod
    def energy(statistics: TokenStatistics) -> Tensor:
        """Returns what each vocabulary entry adds to the squared length of an error, [v]."""
        square = statistics.error_square
        return square / (square + DAMPING * square.mean())

    def __call__(self, tokens: TokenFactors) -> TokenFactors:
        """Returns the factors, each multiplied by the inverse root of its curvature."""
        return replace(
            tokens,
            hidden=tokens.hidden @ self.tensors["whitening"],
            errors=tokens.errors * self.tensors["error_scale"],
        )


class Balanced(Recipe):
    """Every token counts about the same: what it predicted, and in which whitened state.

    The error keeps its direction and nearly loses its length, e -> e / (|e| + floor), so that
    neither the badly predicted tokens nor those known by heart decide alone; the state is whitened
    under a strong damping. States that many rows share are short after that, so that what stands
    in every row (a form of words, a mark at the end) counts less.
    """

    name = "balanced"
    form = 2

    @classmethod
    def fit(cls, statistics: TokenStatistics) -> Self:
        """Returns the recipe with its whitening."""
        return cls({"whitening": _whitening(statistics)})

    @staticmethod
    def energy(statistics: TokenStatistics) -> Tensor:
        """Returns what each vocabulary entry adds to the squared length of an error, [v]."""
        return statistics.error_share

    def __call__(self, tokens: TokenFactors) -> TokenFactors:
        """Returns the factors, the state whitened and the error's length taken out.

        The state is divided by it: only products of state and error matter, and it is short.
        """
        norms = torch.linalg.vector_norm(tokens.errors, dim=1, keepdim=True)  # [n, 1]
        hidden = tokens.hidden @ self.tensors["whitening"]
        return replace(tokens, hidden=hidden / (norms + ERROR_FLOOR))


RECIPES: dict[str, type[Recipe]] = {recipe.name: recipe for recipe in (Raw, Kfac, Balanced)}


def _whitening(statistics: TokenStatistics) -> Tensor:
    """Returns (C + damping)^-1/2 of the hidden states' second moment, [d, d] float32."""
    values, vectors = statistics.directions()
    roots = (values + DAMPING * values.mean()).rsqrt()
    return ((vectors * roots) @ vectors.T).float()

"""Recipes: what influence means, as a change of every token's (h, e) before anything is summed.

A recipe maps the factors of one token to new factors, looking at no other token of the batch; that
keeps a sample's vector independent of what it is batched with, and the influence an inner product.
"""

from __future__ import annotations

from typing import Protocol

from forvalue_index.features.tokens import TokenFactors


class Recipe(Protocol):
    """What every recipe offers."""

    name: str

    def __call__(self, tokens: TokenFactors) -> TokenFactors:
        """Returns the factors whose inner products are the influence under this recipe."""


class Raw:
    """The paper's closed form: the gradient of the unembedding, unchanged."""

    name = "raw"

    def __call__(self, tokens: TokenFactors) -> TokenFactors:
        """Returns the factors as they are."""
        return tokens

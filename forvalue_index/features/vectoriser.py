"""From the factors of a sample's tokens to its vector: recipe, then sketch, then projection.

Each step is one seam: a new recipe, sketch or projection is added in its own file and chosen here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from forvalue_index.config import VectorConfig
from forvalue_index.features.projection import Identity, Projection
from forvalue_index.features.recipe import Raw, Recipe
from forvalue_index.features.sketch import TensorSketch
from forvalue_index.features.tokens import TokenFactors


class Vectoriser:
    """Sums tokens into the vectors of their samples.

    Vectors are made for storing as float16, so they come multiplied by `scale`, a power of two:
    the influence of two samples is the inner product of their vectors over `scale` squared.

    Usage: `state = zeros(n)`, any number of `update(state, tokens)`, then `finish(state)`.
    """

    def __init__(self, recipe: Recipe, sketch: TensorSketch, projection: Projection) -> None:
        self.recipe = recipe
        self.sketch = sketch
        self.projection = projection
        # The norm before an unembedding leaves states of a length near sqrt(d).
        self.scale = 2.0 ** -math.ceil(math.log2(sketch.hidden) / 2)

    @classmethod
    def build(
        cls, config: VectorConfig, *, vocabulary: int, hidden: int, device: torch.device
    ) -> Vectoriser:
        """Returns the vectoriser that `config` describes, for a head of the given size."""
        sketch = TensorSketch(vocabulary, hidden, config.dim, config.seed).to(device)
        return cls(Raw(), sketch, Identity(config.dim))

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.projection.dim

    def fingerprint(self) -> dict[str, Any]:
        """Returns what two vectors must share for their inner product to mean anything."""
        return {
            "recipe": self.recipe.name,
            "sketch": f"tensorsketch {self.sketch.dim} of {self.sketch.vocabulary} x "
            f"{self.sketch.hidden}, seed {self.sketch.seed}",
            "dim": self.dim,
        }

    def zeros(self, n_samples: int) -> Tensor:
        """Returns the state of `n_samples` samples with no tokens yet."""
        return self.sketch.zeros(n_samples)

    def update(self, state: Tensor, tokens: TokenFactors) -> None:
        """Adds tokens to the state of the samples that own them, in place."""
        self.sketch.update(state, self.recipe(tokens))

    def finish(self, state: Tensor) -> Tensor:
        """Returns the vectors, [n_samples, dim] float32."""
        return self.projection(self.sketch.finish(state)) * self.scale

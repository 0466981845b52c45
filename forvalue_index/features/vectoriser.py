"""From the factors of a sample's tokens to its vector: recipe, then sketch, then projection.

Each step is one seam: a new recipe, sketch or projection is added in its own file and chosen here.
What the three learned from a part of the training set is saved beside the index and hashed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from forvalue_index.config import VectorConfig
from forvalue_index.features.projection import Projection, fit_projection
from forvalue_index.features.recipe import RECIPES, Recipe
from forvalue_index.features.sketch import SKETCHES, Sketch
from forvalue_index.features.statistics import TokenStatistics
from forvalue_index.features.tokens import TokenFactors

MEDIAN_NORM, LARGEST_NORM = 64.0, 8192.0
"""Of the stored vectors, unless the largest would be too near the end of float16."""


class Vectoriser:
    """Sums tokens into the vectors of their samples.

    Vectors are made for storing as float16, so they come multiplied by `scale`, a power of two:
    the influence of two samples is the inner product of their vectors over `scale` squared.

    Usage: `state = zeros(n)`, any number of `update(state, tokens)`, then `finish(state)`.
    """

    def __init__(
        self, recipe: Recipe, sketch: Sketch, projection: Projection | None, scale: float = 1.0
    ) -> None:
        self.recipe = recipe
        self.sketch = sketch
        self.projection = projection  # None: the sketch is stored as it is
        self.scale = scale

    @classmethod
    def fit(cls, config: VectorConfig, statistics: TokenStatistics) -> Vectoriser:
        """Returns recipe and sketch with what they take from the statistics, and no projection."""
        recipe = RECIPES[config.recipe]
        sketch = SKETCHES[config.sketch].fit(
            recipe.energy(statistics), statistics.directions()[1], config.sketch_dim, config.seed
        )
        return cls(recipe.fit(statistics), sketch, None)

    def fit_projection(
        self, config: VectorConfig, sketches: NDArray[np.float32], device: torch.device
    ) -> Vectoriser:
        """Returns itself with a projection of sketches [n, S] and a scale that suits float16."""
        norms = np.linalg.norm(sketches, axis=1)
        wanted = min(
            MEDIAN_NORM / max(np.median(norms), 1e-30), LARGEST_NORM / max(norms.max(), 1e-30)
        )
        scale = 2.0 ** np.floor(np.log2(wanted))
        projection = None
        if config.dim < self.sketch.dim:
            projection = fit_projection(sketches, config.dim, config.seed, device)
            # As it will be after it was saved as float16, for the same vectors before and after.
            projection.matrix = projection.matrix.half().float()
        return Vectoriser(self.recipe, self.sketch, projection, scale)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.projection.dim if self.projection is not None else self.sketch.dim

    def zeros(self, n_samples: int) -> Tensor:
        """Returns the state of `n_samples` samples with no tokens yet."""
        return self.sketch.zeros(n_samples)

    def update(self, state: Tensor, tokens: TokenFactors) -> None:
        """Adds tokens to the state of the samples that own them, in place."""
        self.sketch.update(state, self.recipe(tokens))

    def finish(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the vectors [n, dim] float32, and the share of the sketch's energy kept [n]."""
        return self.project(self.sketch.finish(state))

    def project(self, sketches: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what `finish` does, of sketches [n, S] that were made before."""
        if self.projection is None:
            return sketches * self.scale, sketches.new_ones(len(sketches))
        vectors, retained = self.projection(sketches)
        return vectors * self.scale, retained

    def to_bytes(self) -> bytes:
        """Returns all that was learned, as a safetensors file; equal vectorisers, equal bytes."""
        tensors = {f"recipe.{name}": value for name, value in self.recipe.tensors.items()}
        tensors |= {f"sketch.{name}": value for name, value in self.sketch.tensors.items()}
        if self.projection is not None:
            tensors["projection.matrix"] = self.projection.matrix.half()
            tensors["projection.learned"] = torch.tensor(self.projection.learned)
        tensors["scale"] = torch.tensor(self.scale)
        return save({name: value.contiguous().cpu() for name, value in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes, config: VectorConfig, device: torch.device) -> Vectoriser:
        """Returns the vectoriser that `to_bytes` wrote.

        Raises:
            SafetensorError: the data are damaged.
        """
        tensors = {name: value.to(device) for name, value in load(data).items()}
        scale = float(tensors.pop("scale"))
        parts: dict[str, dict[str, Tensor]] = {"recipe": {}, "sketch": {}, "projection": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        projection = None
        if parts["projection"]:
            matrix, learned = parts["projection"]["matrix"], parts["projection"]["learned"]
            projection = Projection(matrix.float(), int(learned))
        sketch = SKETCHES[config.sketch](parts["sketch"])
        return cls(RECIPES[config.recipe](parts["recipe"]), sketch, projection, scale)

"""From the factors of a sample's tokens to its vector: recipe, then sketch, then projection.

Each step is one seam: a new recipe, sketch or projection is added in its own file and chosen here.
What the three learned from a part of the training set is saved beside the index and hashed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from forvalue_index.config import VectorConfig
from forvalue_index.vectors.projection import Moments, Projection
from forvalue_index.vectors.recipe import RECIPES, Recipe
from forvalue_index.vectors.scale import STATES
from forvalue_index.vectors.sketch import SKETCHES, Sketch
from forvalue_index.vectors.statistics import TokenStatistics
from forvalue_index.vectors.tokens import TokenFactors
from forvalue_index.vectors.whitening import Whitening

MEDIAN_NORM, LARGEST_NORM = 64.0, 8192.0
"""Of the vectors, unless the largest would be too near the end of float16."""


@dataclass(frozen=True)
class Part:
    """How the tokens of one checkpoint enter a vector."""

    recipe: Recipe
    sketch: Sketch
    weight: float = 1.0  # of the checkpoint's influence in the sum

    def __call__(self, tokens: TokenFactors) -> TokenFactors:
        """Returns the factors whose inner products are the checkpoint's share of the influence."""
        tokens = self.recipe(tokens)
        if self.weight == 1:
            return tokens
        return replace(tokens, hidden=tokens.hidden * self.weight**0.5)


class Vectoriser:
    """Sums tokens into the vectors of their samples.

    A model that is read at several checkpoints has a part for each. Their sketches are drawn
    independently and added up, so that inner products estimate the sum of the checkpoints'
    influences: what is between two checkpoints has mean zero.

    Vectors may be stored as float16, so they come multiplied by `scale`, a power of two: the
    influence of two samples is the inner product of their vectors over `scale` squared.

    Usage: `state = zeros(n)`, any number of `update(state, tokens)`, then `finish(state)`.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        projection: Projection | None,
        scale: float = 1.0,
        whitening: Whitening | None = None,
    ) -> None:
        self.parts = tuple(parts)
        self.projection = projection  # None: not fitted yet, vectors are sketches
        self.scale = scale
        self.whitening = whitening  # of the mean states; None: there are no states

    @classmethod
    def fit(
        cls,
        config: VectorConfig,
        statistics: Sequence[TokenStatistics],
        weights: Sequence[float] = (1.0,),
    ) -> Vectoriser:
        """Returns recipes and sketches with what they take from the statistics, no projection.

        There are statistics and a weight for each checkpoint.
        """
        recipe, sketch = RECIPES[config.recipe], SKETCHES[config.sketch]
        parts = []
        for number, (own, weight) in enumerate(zip(statistics, weights, strict=True)):
            seed = config.seed + (number << 64)
            energy, directions = recipe.energy(own), own.directions()[1]
            fitted = sketch.fit(energy, directions, config.sketch_dim, seed)
            parts.append(Part(recipe.fit(own), fitted, weight))
        return cls(parts, None)

    def moments(self) -> Moments:
        """Returns the second moments of no sketches yet, for `fit_projection`."""
        sketch = self.parts[0].sketch
        device = sketch.zeros(0).device
        return Moments(sketch.dim // sketch.width, sketch.width, device)

    def fit_projection(
        self,
        config: VectorConfig,
        moments: Moments,
        norms: NDArray[np.float32],
        whitening: Whitening | None = None,
        others: Iterable[Tensor] = (),
    ) -> Vectoriser:
        """Returns itself with a projection, a scale that suits float16, and a whitening.

        `moments` are those of some sketches, `norms` the lengths of these or of others, [n], and
        `others` sketches of rows that are not in the moments, [n, S] each.
        """
        wanted = min(
            MEDIAN_NORM / max(float(np.median(norms)), 1e-30),
            LARGEST_NORM / max(float(norms.max()), 1e-30),
        )
        scale = float(2.0 ** np.floor(np.log2(wanted)))
        projection = Projection.fit(moments, config.dim, config.seed).expecting(others)
        return Vectoriser(self.parts, projection, scale, whitening)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.projection.dim if self.projection is not None else self.parts[0].sketch.dim

    def zeros(self, n_samples: int) -> Tensor:
        """Returns the state of `n_samples` samples with no tokens yet."""
        return self.parts[0].sketch.zeros(n_samples)

    def update(self, state: Tensor, tokens: TokenFactors, checkpoint: int = 0) -> None:
        """Adds a checkpoint's tokens to the state of the samples that own them, in place."""
        part = self.parts[checkpoint]
        part.sketch.update(state, part(tokens))

    def finish(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the vectors [n, dim] float32, and the share of the sketch's energy kept [n]."""
        return self.project(self.parts[0].sketch.finish(state))

    def project(self, sketches: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what `finish` does, of sketches [n, S] that were made before."""
        if self.projection is None:
            return sketches * self.scale, sketches.new_ones(len(sketches))
        vectors, retained = self.projection(sketches)
        return vectors * self.scale, retained

    def states(self, means: Tensor) -> Tensor:
        """Returns the states [n, m] of samples from their mean states [n, d]; m may be 0.

        Without a projection they are the mean states themselves.
        """
        if self.projection is None:
            return means
        return means[:, :0] if self.whitening is None else self.whitening(means)

    def to_bytes(self) -> bytes:
        """Returns all that was learned, as a safetensors file; equal vectorisers, equal bytes."""
        tensors: dict[str, Tensor] = {}
        for number, part in enumerate(self.parts):
            for kind, values in (("recipe", part.recipe.tensors), ("sketch", part.sketch.tensors)):
                tensors |= {f"{number}.{kind}.{name}": value for name, value in values.items()}
            tensors[f"{number}.weight"] = torch.tensor(part.weight, dtype=torch.float64)
        if self.projection is not None:
            for name, value in self.projection.tensors.items():
                tensors[f"projection.{name}"] = value
        if self.whitening is not None:
            for name, value in self.whitening.tensors.items():
                tensors[f"{STATES}{name}"] = value
        tensors["scale"] = torch.tensor(self.scale)
        return save({name: value.contiguous().cpu() for name, value in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes, config: VectorConfig, device: torch.device) -> Vectoriser:
        """Returns the vectoriser that `to_bytes` wrote.

        Raises:
            SafetensorError: the data are damaged.
        """
        # Copied to where torch puts its tensors, for the same vectors in each run (see `aligned`).
        tensors = {name: value.to(device, copy=True) for name, value in load(data).items()}
        scale = float(tensors.pop("scale"))
        learned = _under(tensors, "projection.")
        projection = Projection(learned) if learned else None
        states = _under(tensors, STATES)  # those of indexes of before have none
        whitening = Whitening(states) if states else None
        parts: list[Part] = []
        while (weight := tensors.get(f"{len(parts)}.weight")) is not None:
            recipe = RECIPES[config.recipe](_under(tensors, f"{len(parts)}.recipe."))
            sketch = SKETCHES[config.sketch](_under(tensors, f"{len(parts)}.sketch."))
            parts.append(Part(recipe, sketch, float(weight)))
        return cls(parts, projection, scale, whitening)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }

"""Gradients of the whole model, which influence by one forward pass approximates.

They take a backward pass for each sample. A gradient has as many numbers as the model has weights,
so a CountSketch of it is kept: its inner products are unbiased, with an error of about
1 / sqrt(SKETCH) of the product of the two lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.model.language_model import LanguageModel
from forvalue_index.model.model_lock import model_lock
from forvalue_index.model.training import token_losses
from forvalue_index.records import Progress, Sample

SKETCH = 1 << 16


def gradient_scores(
    lm: LanguageModel,
    queries: Sequence[Sample],
    samples: Sequence[Sample],
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Returns the inner products of log-likelihood gradients by all weights of a model, [q, n].

    Memory: 256 KB a sample, and nine bytes a weight.
    """
    sketches = gradient_sketches(lm, [*queries, *samples], progress)
    return sketches[: len(queries)] @ sketches[len(queries) :].T


def gradient_sketches(
    lm: LanguageModel, samples: Sequence[Sample], progress: Progress | None = None
) -> NDArray[np.float32]:
    """Returns sketches of the log-likelihood gradients by all weights of a model, [n, SKETCH].

    Inner products of those of one model stand for inner products of the gradients.
    """
    sketches = np.empty((len(samples), SKETCH), np.float32)
    weights = list(lm.model.parameters())
    cells = _cells(weights)
    tokens = 0
    for number, (row, sample) in enumerate(zip(sketches, samples, strict=True), start=1):
        row[:] = _sketch(lm, weights, cells, sample).cpu().numpy()
        tokens += len(sample.input_ids)
        if progress is not None:
            progress("gradients", number, len(samples), tokens)
    return sketches


def _sketch(
    lm: LanguageModel, weights: list[Tensor], cells: list[tuple[Tensor, Tensor]], sample: Sample
) -> Tensor:
    """Returns the sketch of one sample's gradient, [SKETCH]."""
    batch = lm.collate([sample], [0]).to(lm.device)
    with model_lock():
        before = [weight.requires_grad for weight in weights]
        try:
            for weight in weights:
                weight.requires_grad_(True)
            gradients = torch.autograd.grad(
                token_losses(lm, batch).sum(), weights, allow_unused=True
            )
        finally:
            for weight, wanted in zip(weights, before, strict=True):
                weight.requires_grad_(wanted)
    result = torch.zeros(SKETCH, device=lm.device)
    for gradient, (places, signs) in zip(gradients, cells, strict=True):
        if gradient is not None:  # the sample does not reach the weight
            own = torch.zeros(SKETCH, device=gradient.device)
            own.index_add_(0, places, gradient.flatten().float() * signs)
            result += own.to(lm.device)
    return result


def _cells(weights: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Returns the cell and the sign of every number in the weights."""
    generator = torch.Generator().manual_seed(0)
    cells = []
    for weight in weights:
        count = (weight.numel(),)
        places = torch.randint(SKETCH, count, generator=generator, dtype=torch.int32)
        signs = torch.randint(2, count, generator=generator, dtype=torch.int8) * 2 - 1
        cells.append((places.to(weight.device), signs.to(weight.device)))
    return cells

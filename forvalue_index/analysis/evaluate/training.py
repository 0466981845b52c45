"""Fine-tuning that is small and the same every time: what an evaluation holds predictions against.

Rows become tokens as they do in an index, and only scored tokens are in the loss, so that what is
trained on is what was valued.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from forvalue_index.errors import InputError, ModelError
from forvalue_index.model.batching import Batch, plan_batches
from forvalue_index.model.encoder import TOKEN_BUDGET
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.model.model_lock import model_lock
from forvalue_index.pipeline.add import Progress
from forvalue_index.records import Sample

WARMUP = 0.1  # share of the steps
CLIP = 1.0  # longest gradient


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a model is fine-tuned: AdamW, a short warm-up, then linearly down to nothing."""

    epochs: int = 3
    learning_rate: float = 1e-4
    batch_size: int = 16  # samples
    seed: int = 0  # of the order of the samples

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "batch_size"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}, but must be positive")


def fine_tune(
    lm: LanguageModel,
    samples: Sequence[Sample],
    config: TrainConfig,
    progress: Progress | None = None,
) -> LanguageModel:
    """Returns a copy of a model, in float32, fine-tuned on samples; `lm` stays as it is.

    The loss of a step is the mean over its scored tokens. Nothing is dropped out: equal samples
    and settings give equal weights, on one machine with one number of threads.

    Raises:
        InputError: there is no sample.
        ModelError: the model has adapters, or the loss became NaN or infinity.
    """
    if not samples:
        raise InputError("there is no row to fine-tune on")
    if lm.checkpoints[0].adapter is not None:
        raise ModelError("a model with adapters cannot be fine-tuned here: give the merged model")
    with model_lock():  # not with the hooks of a pass
        tuned = copy.deepcopy(lm)
    weights = list(tuned.model.float().requires_grad_(True).parameters())
    order = _order(len(samples), config)
    steps = len(order)
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    done = tokens = 0
    for positions in order:
        loss = _step_losses(tuned, [samples[i] for i in positions]).mean()
        if not torch.isfinite(loss):
            raise ModelError("the loss became NaN or infinity: try a smaller --learning-rate")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        schedule.step()
        done += len(positions)
        tokens += sum(len(samples[i].input_ids) for i in positions)
        if progress is not None:
            progress("training", done, config.epochs * len(samples), tokens)
    tuned.model.zero_grad(set_to_none=True)
    tuned.model.requires_grad_(False)
    return tuned


def sample_losses(lm: LanguageModel, samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Returns the mean negative log-likelihood of each sample's scored tokens, [n], in nats."""
    result = np.zeros(len(samples))
    budget = TOKEN_BUDGET["cuda" if lm.device.type == "cuda" else "cpu"]
    for positions in plan_batches(samples, budget, same_length=lm.length_matters, kind=lm.kind):
        batch = lm.collate(samples, positions).to(lm.device)
        with torch.no_grad():
            losses = token_losses(lm, batch).double()
        sums = losses.new_zeros(len(positions)).index_add_(0, batch.owner, losses)
        counts = torch.bincount(batch.owner, minlength=len(positions))
        result[positions] = (sums / counts).cpu().numpy()
    return result


def _step_losses(lm: LanguageModel, samples: Sequence[Sample]) -> Tensor:
    """Returns the losses of a step's scored tokens, of samples that may not share a batch."""
    batches = plan_batches(samples, sys.maxsize, same_length=lm.length_matters, kind=lm.kind)
    return torch.cat(
        [token_losses(lm, lm.collate(samples, part).to(lm.device)) for part in batches]
    )


def token_losses(lm: LanguageModel, batch: Batch) -> Tensor:
    """Returns the negative log-likelihoods of a batch's scored tokens, [n] float32.

    Those of rejected texts are the log-likelihoods, for training makes these smaller.
    They carry gradients where the model's weights want some.
    """
    with model_lock():
        hidden = lm.predicting(batch, 0, gradients=torch.is_grad_enabled())  # [n, d]
        losses = cross_entropy(lm.head.logits(hidden), batch.targets, reduction="none")
        return losses if batch.signs is None else losses * batch.signs


def _order(count: int, config: TrainConfig) -> list[list[int]]:
    """Returns the positions of the samples of every step."""
    generator = torch.Generator().manual_seed(config.seed)

    def epochs() -> Iterator[list[int]]:
        for _ in range(config.epochs):
            shuffled = torch.randperm(count, generator=generator)
            yield from (part.tolist() for part in torch.split(shuffled, config.batch_size))

    return list(epochs())


def _rate(step: int, steps: int) -> float:
    """Returns the share of the full learning rate at a step."""
    warmup = max(1, round(WARMUP * steps))
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))

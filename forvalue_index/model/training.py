"""Fine-tuning for studies: small, and with the same result every time.

Only scored tokens are in the loss, as in an index.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from forvalue_index.config import TrainConfig
from forvalue_index.errors import InputError, ModelError
from forvalue_index.model.batching import Batch, plan_batches
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.model.model_lock import model_lock
from forvalue_index.records import Progress, Sample

WARMUP = 0.1  # share of the steps
CLIP = 1.0  # longest gradient


def fine_tune(
    lm: LanguageModel,
    samples: Sequence[Sample],
    config: TrainConfig,
    progress: Progress | None = None,
) -> LanguageModel:
    """Returns a copy of a model, in float32, fine-tuned on samples; `lm` stays as it is.

    The loss of a step is the mean over its scored tokens. There is no dropout: equal samples and
    settings give equal weights, on the same machine with the same number of threads.

    Raises:
        InputError: there is no sample.
        ModelError: the model has adapters, or the loss became NaN or infinity.
    """
    if not samples:
        raise InputError("there is no row to fine-tune on: give more rows")
    if lm.checkpoints[0].adapter is not None:
        raise ModelError("a model with adapters cannot be fine-tuned here: give the merged model")
    with model_lock():  # a forward pass adds hooks, which must not be copied
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


def weights_of(lm: LanguageModel) -> dict[str, Tensor]:
    """Returns the parameters of a model by name, without their gradients."""
    return {name: value.detach() for name, value in lm.model.named_parameters()}


def with_weights(lm: LanguageModel, weights: dict[str, Tensor]) -> LanguageModel:
    """Returns a copy of a model, in float32, with other weights; `lm` stays as it is."""
    with model_lock():
        result = copy.deepcopy(lm)
    result.model.float()
    for name, value in weights_of(result).items():
        value.copy_(weights[name])
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

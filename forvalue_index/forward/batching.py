"""Batches of samples: longest together, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forvalue_index.records import Sample


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples padded on the right to one length, and where their scored tokens are.

    A causal model never sees what is to the right of a token, so padding on the right contributes
    nothing and no attention mask is needed, whatever the id that stands there.
    """

    positions: list[int]  # of the samples in the sequence that was batched
    input_ids: Tensor  # [b, t] int64
    predictors: Tensor  # [n] int64, indices into the flattened [b * t] states: one before a token
    targets: Tensor  # [n] int64, the tokens that are scored
    owner: Tensor  # [n] int64, the sample (0 .. b - 1) that each belongs to

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on `device`."""
        return Batch(
            self.positions,
            self.input_ids.to(device, non_blocking=True),
            self.predictors.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.owner.to(device, non_blocking=True),
        )


def plan_batches(
    samples: Sequence[Sample], token_budget: int, *, same_length: bool
) -> list[list[int]]:
    """Returns positions of samples, grouped: a group times its longest is within the budget.

    Longest first, so that a budget that is too large for the memory shows at once. A sample over
    the budget is a group of its own. With `same_length`, no group needs padding.
    """
    order = sorted(range(len(samples)), key=lambda i: -len(samples[i].input_ids))
    groups: list[list[int]] = []
    for position in order:
        if groups:
            longest = len(samples[groups[-1][0]].input_ids)
            fits = (len(groups[-1]) + 1) * longest <= token_budget
            if fits and not (same_length and len(samples[position].input_ids) != longest):
                groups[-1].append(position)
                continue
        groups.append([position])
    return groups


def collate(samples: Sequence[Sample], positions: list[int]) -> Batch:
    """Returns the batch of the samples at `positions`."""
    members = [samples[i] for i in positions]
    length = max(len(sample.input_ids) for sample in members)
    input_ids = np.zeros((len(members), length), dtype=np.int64)
    predictors, targets, owner = [], [], []
    for row, sample in enumerate(members):
        input_ids[row, : len(sample.input_ids)] = sample.input_ids
        tokens = np.flatnonzero(sample.scored)
        predictors.append(row * length + tokens - 1)
        targets.append(sample.input_ids[tokens].astype(np.int64))
        owner.append(np.full(len(tokens), row, dtype=np.int64))
    return Batch(
        positions,
        torch.from_numpy(input_ids),
        torch.from_numpy(np.concatenate(predictors)),
        torch.from_numpy(np.concatenate(targets)),
        torch.from_numpy(np.concatenate(owner)),
    )

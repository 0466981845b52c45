"""Batches of samples: longest together, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.records import Sample

TOKENS = 4096  # whose states are in float32 at a time


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples padded on the right to one length, and where their scored tokens are."""

    positions: list[int]  # of the samples in the sequence that was batched
    inputs: dict[str, Tensor]  # of the model's forward pass; input_ids is [b, t] int64
    predictors: Tensor  # [n] int64, indices into the flattened states: what a target is read from
    targets: Tensor  # [n] int64, the tokens or classes that are scored
    owner: Tensor  # [n] int64, the sample (0 .. b - 1) that each belongs to
    counts: list[int]  # [b], how many targets each sample has, on the host
    signs: Tensor | None = None  # [n] float32, -1 where influence is subtracted; None: nowhere
    lengths: list[int] | None = None  # of each text, with signs: a sample may have two texts

    def runs(self, part: slice) -> list[tuple[int, int]]:
        """Returns the samples that a part of the targets belongs to, each with its number there."""
        ends = np.cumsum(self.counts)
        start, stop, _ = part.indices(int(ends[-1]))
        counts = np.minimum(ends, stop) - np.maximum(ends - self.counts, start)
        samples = np.flatnonzero(counts > 0)
        return list(zip(samples.tolist(), counts[samples].tolist(), strict=True))

    def whole(self, most: int) -> Iterator[slice]:
        """Yields parts of the targets with all of some samples, `most` targets or one sample."""
        start = stop = 0
        for count in self.counts:
            if stop > start and stop + count - start > most:
                yield slice(start, stop)
                start = stop
            stop += count
        if stop > start:
            yield slice(start, stop)

    def means(self, hidden: Tensor) -> Tensor:
        """Returns the mean of each sample's states, of those of all targets [n, d], [b, d] float32.

        Those of rejected texts are subtracted.
        """
        b = len(self.positions)
        total = hidden.new_zeros(b, hidden.shape[1], dtype=torch.float32)
        counts = hidden.new_zeros(b, 1, dtype=torch.float32)
        for start in range(0, len(hidden), TOKENS):
            part = slice(start, start + TOKENS)
            states, owner = hidden[part].float(), self.owner[part]
            if self.signs is not None:
                states = states * self.signs[part, None]
            total.index_add_(0, owner, states)
            counts.index_add_(0, owner, counts.new_ones(len(owner), 1))
        return total / counts

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Returns the batch in pinned memory, from which a GPU copies while it computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            self.positions,
            {name: change(value) for name, value in self.inputs.items()},
            change(self.predictors),
            change(self.targets),
            change(self.owner),
            self.counts,
            None if self.signs is None else change(self.signs),
            self.lengths,
        )


@dataclass(frozen=True)
class Reading:
    """A batch that the model has read, on the device."""

    batch: Batch  # without inputs
    states: list[Tensor]  # that its targets are read from, [n, d] for each checkpoint

    def means(self) -> NDArray[np.float32]:
        """Returns the mean of each sample's states by the first checkpoint, [b, d]."""
        means: NDArray[np.float32] = self.batch.means(self.states[0]).cpu().numpy()
        return means


def plan_batches(
    samples: Sequence[Sample],
    token_budget: int,
    *,
    same_length: bool,
    kind: Callable[[Sample], Hashable] = lambda _: None,
) -> list[list[int]]:
    """Returns positions of samples, grouped: the texts of a group times its longest are within
    the budget.

    Longest first, so that a budget that is too large for the memory shows at once. A sample over
    the budget is a group of its own. With `same_length`, no group needs padding. All samples of a
    group are of one kind.
    """
    lengths = [sample.lengths for sample in samples]
    order = sorted(range(len(samples)), key=lambda i: -max(lengths[i]))
    n_texts: dict[int, int] = {}  # of each group, by its place
    groups: list[list[int]] = []
    growing: dict[Hashable, int] = {}  # the last group of each kind
    for position in order:
        own = kind(samples[position]), lengths[position] if same_length else None
        group, texts = growing.get(own), len(lengths[position])
        if group is None or (n_texts[group] + texts) * max(lengths[groups[group][0]]) > (
            token_budget
        ):
            group = growing[own] = len(groups)
            n_texts[group] = 0
            groups.append([])
        groups[group].append(position)
        n_texts[group] += texts
    return groups


def collate(samples: Sequence[Sample], positions: list[int]) -> Batch:
    """Returns the batch of the samples at `positions`, of which the model predicts tokens.

    A causal model never sees what is to the right of a token, so padding on the right contributes
    nothing and no attention mask is needed, whatever the id of the padding.
    """
    members = [samples[i] for i in positions]
    texts = [
        (number, sample.input_ids[part], np.flatnonzero(sample.scored[part]), sign)
        for number, sample in enumerate(members)
        for part, sign in sample.texts
    ]
    lengths = [len(ids) for _, ids, _, _ in texts]
    length = max(lengths)
    predictors = [row * length + tokens - 1 for row, (_, _, tokens, _) in enumerate(texts)]
    targets = [ids[tokens].astype(np.int64) for _, ids, tokens, _ in texts]
    n_targets = list(map(len, targets))
    owner = np.repeat([number for number, _, _, _ in texts], n_targets)
    counts = np.bincount(owner, minlength=len(members))
    signed = any(sample.rejected is not None for sample in members)
    signs = np.repeat([sign for _, _, _, sign in texts], n_targets).astype(np.float32)
    return Batch(
        positions,
        {"input_ids": padded([ids for _, ids, _, _ in texts], 0)},
        torch.from_numpy(np.concatenate(predictors)),
        torch.from_numpy(np.concatenate(targets)),
        torch.from_numpy(owner),
        counts.tolist(),
        torch.from_numpy(signs) if signed else None,
        lengths if signed else None,
    )


def padded(rows: Sequence[NDArray[np.int32]], fill: int) -> Tensor:
    """Returns rows of ids as one tensor [b, t] int64, filled up on the right."""
    result = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for place, row in zip(result, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(result)

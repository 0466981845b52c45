"""What a selection is worth: fine-tune on it, and see what the targets' loss becomes.

The targets are parted at random: the rows are chosen for one half, the loss is the other's.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.evaluate.baselines import require_bm25
from forvalue_index.analysis.evaluate.methods import influences, rivals, stored_samples
from forvalue_index.analysis.evaluate.metrics import Figure, top
from forvalue_index.analysis.evaluate.training import TrainConfig, fine_tune, sample_losses
from forvalue_index.analysis.select import select_rows
from forvalue_index.config import FormatConfig
from forvalue_index.data.sources import Data
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.pipeline.add import Progress
from forvalue_index.records import Sample, StoredSample

NAMES = {"loss": "highest loss", "length": "longest"}


@dataclass(frozen=True, slots=True)
class Tuned:
    """What training on one method's selection did. Every figure is over the seeds."""

    loss: Figure  # of the held-out targets, mean nats a token


@dataclass(frozen=True, slots=True)
class Selection:
    """The methods side by side."""

    recipe: str
    samples: int  # to choose from
    budget: int
    targets: int  # half of them held out
    seeds: int
    methods: dict[str, Tuned]


def evaluate_selection(
    index: InfluenceIndex,
    data: Data,
    budget: int,
    *,
    seeds: int = 3,
    train: TrainConfig | None = None,
    exact: bool = False,
    gradient: bool = False,
    format: FormatConfig | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Returns the targets' loss after fine-tuning on the selections of all methods.

    All fine-tuning begins with the index's model.

    Args:
        index: the index of the rows to choose from.
        data: the targets.
        budget: how many rows are chosen.
        seeds: how many times the targets are parted anew, and the rows trained on in another order.
        train: how models are fine-tuned, but for the seed.
        exact: also choose by the exact forms, which runs all rows forward again.
        gradient: also by the gradients of the whole model, a backward pass a sample.
        format: how targets become tokens, if not as the index's rows do.
        progress: called as the work goes on.

    Raises:
        DependencyError: the library for BM25 is not installed.
        InputError: the budget is not below the number of rows, or there are fewer than two targets.
        RowError: a target lacks a field or holds nothing to score.
    """
    if not 0 < budget < len(index):
        raise InputError(f"the budget is {budget}, but there are {len(index)} rows to choose from")
    require_bm25()  # before the first forward pass
    targets = index.samples(data, format)
    if len(targets) < 2:
        raise InputError(
            "only one target: one is held out from the choice, so at least 2 are needed"
        )
    stored = stored_samples(index, index.flat.ids)
    train = train or TrainConfig()
    losses: dict[str, list[float]] = defaultdict(list)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(targets))
        half = len(targets) // 2
        known, held_out = ([targets[i] for i in part] for part in (order[:half], order[half:]))
        losses["no fine-tuning"].append(float(sample_losses(index.lm, held_out).mean()))
        asked = format or index.config.format
        for name, chosen in _choices(
            index, known, stored, budget, asked, exact, gradient, seed, progress
        ):
            samples = index.training_samples(stored[i].id for i in chosen)
            tuned = fine_tune(index.lm, samples, replace(train, seed=seed), progress)
            losses[name].append(float(sample_losses(tuned, held_out).mean()))
    return Selection(
        recipe=index.config.vector.recipe,
        samples=len(stored),
        budget=budget,
        targets=len(targets),
        seeds=seeds,
        methods={name: Tuned(Figure.of(values)) for name, values in losses.items()},
    )


def _choices(
    index: InfluenceIndex,
    known: Sequence[Sample],
    stored: Sequence[StoredSample],
    budget: int,
    format: FormatConfig,
    exact: bool,
    gradient: bool,
    seed: int,
    progress: Progress | None,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields the names and the chosen positions of all methods.

    "selected" is what `forvalue select` chooses; the others are plain highest scores.
    """
    yield "all rows", np.arange(len(stored))
    ids = [item.id for item in stored]
    yield "selected", np.searchsorted(ids, select_rows(index, list(known), budget))
    for name, scores in itertools.chain(
        influences(index, known, stored, exact=exact, progress=progress),
        rivals(
            index,
            known,
            stored,
            format,
            last_layer=exact,
            gradient=gradient,
            seed=seed,
            progress=progress,
        ),
    ):
        yield NAMES.get(name, name), top(scores.mean(0), budget)

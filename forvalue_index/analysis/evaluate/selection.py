"""What a selection is worth: the targets' loss after fine-tuning on it.

The targets are split at random: rows are chosen for one half, the loss is that of the other.
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
from forvalue_index.analysis.evaluate.methods import (
    all_stored,
    exact_of,
    influence_scores,
    other_scores,
)
from forvalue_index.analysis.evaluate.metrics import Figure, top
from forvalue_index.analysis.select import select
from forvalue_index.config import FormatConfig, TrainConfig
from forvalue_index.data.sources import Data
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Progress, Sample, StoredSample

NAMES = {"loss": "highest loss", "length": "longest"}


@dataclass(frozen=True, slots=True)
class SelectionLoss:
    """The loss after training on the selections of one method. The figure is over the seeds."""

    loss: Figure  # of the held-out targets, mean nats per token


@dataclass(frozen=True, slots=True)
class SelectionResult:
    """The methods side by side."""

    recipe: str
    samples: int  # to choose from
    budget: int
    targets: int  # half of them held out
    seeds: int
    methods: dict[str, SelectionLoss]


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
) -> SelectionResult:
    """Returns the targets' loss after fine-tuning on selections; see `Evaluation.select`."""
    if not 0 < budget < len(index):
        raise InputError(
            f"the budget is {budget}, but there are {len(index)} rows to choose from: give a "
            "positive one below that"
        )
    require_bm25()  # before the first forward pass
    targets = index.samples(data, format)
    if len(targets) < 2:
        raise InputError("only one target: one is held out from the choice, so give at least 2")
    stored = all_stored(index)
    train, passes = train or TrainConfig(), index.passes
    losses: dict[str, list[float]] = defaultdict(list)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(targets))
        half = len(targets) // 2
        known, held_out = ([targets[i] for i in part] for part in (order[:half], order[half:]))
        losses["no fine-tuning"].append(float(passes.losses(held_out).mean()))
        query_format = format or index.config.format
        for name, chosen in _choices(
            index, known, stored, budget, query_format, exact, gradient, seed, progress
        ):
            samples = index.training_samples(stored[i].id for i in chosen)
            tuned = passes.fine_tuned(samples, replace(train, seed=seed), progress)
            losses[name].append(float(passes.losses(held_out, tuned).mean()))
    return SelectionResult(
        recipe=index.config.vector.recipe,
        samples=len(stored),
        budget=budget,
        targets=len(targets),
        seeds=seeds,
        methods={name: SelectionLoss(Figure.of(values)) for name, values in losses.items()},
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
    """Yields the name of each method and the positions of the rows that it chooses.

    "selected" is the choice of `InfluenceIndex.select`, and "selected, mean" that with "mean"; the
    others take the highest scores.
    """
    yield "all rows", np.arange(len(stored))
    ids = [item.id for item in stored]
    for name, combine in (("selected", "each"), ("selected, mean", "mean")):
        chosen = select(index, list(known), budget=budget, combine=combine)
        yield name, np.searchsorted(ids, chosen.ids)
    true = exact_of(index, known, stored, progress) if exact else None
    for name, scores in itertools.chain(
        influence_scores(index, known, stored, exact=true),
        other_scores(
            index,
            known,
            stored,
            format,
            exact=true,
            gradient=gradient,
            seed=seed,
            progress=progress,
        ),
    ):
        yield NAMES.get(name, name), top(scores.mean(0), budget)

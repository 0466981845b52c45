"""Linear datamodeling score: whether the sum of influences predicts the effect of training.

Models are fine-tuned on random subsets of the rows. For each target, their final losses are
rank-correlated with the predictions: the summed influence of the rows of each subset
(arXiv 2303.14186). 1 is a perfect prediction, 0 is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.evaluate.baselines import require_bm25
from forvalue_index.analysis.evaluate.methods import (
    empty_index,
    exact_of,
    influence_scores,
    other_scores,
    temporary_index,
)
from forvalue_index.analysis.evaluate.metrics import Figure, spearman
from forvalue_index.analysis.evaluate.subsets import SubsetConfig, SubsetRuns, seed_noise
from forvalue_index.config import RECIPES, FormatConfig, VectorConfig
from forvalue_index.data.images import with_images
from forvalue_index.data.sources import Data, open_rows
from forvalue_index.errors import InputError
from forvalue_index.records import Progress, Row, Sample

if TYPE_CHECKING:
    from forvalue_index.index import LanguageModel


@dataclass(frozen=True, slots=True)
class LdsFigure:
    """How well one method predicts the targets' losses."""

    lds: Figure  # over the targets; the standard error is over the subsets


@dataclass(frozen=True, slots=True)
class LdsResult:
    """The methods, and the losses that they are compared with."""

    rows: int
    targets: int
    subsets: int
    share: float  # of the rows, that a subset keeps
    trainings: int  # of each subset, each with another seed
    loss_before: float  # of the targets, mean, nats
    loss_all: float  # after fine-tuning on all rows
    loss_subsets: float  # after fine-tuning on a subset, mean over them
    loss_spread: float  # over the subsets, of a target's loss, mean over the targets
    noise: float | None  # standard deviation of a loss over seeds of one subset; None of one seed
    methods: dict[str, LdsFigure]


def lds(
    lm: LanguageModel,
    data: Data,
    targets: Data,
    work: Path,
    format: FormatConfig,
    *,
    subsets: int = 32,
    trainings: int = 1,
    config: SubsetConfig | None = None,
    vector: VectorConfig | None = None,
    recipes: Sequence[str] = RECIPES,
    at: str = "tuned",
    gradient: bool = False,
    progress: Progress | None = None,
) -> LdsResult:
    """Returns the linear datamodeling scores of all recipes, and of other methods.

    Args:
        lm: the model that all fine-tuning begins with.
        data: rows to fine-tune on.
        targets: rows whose loss is predicted.
        work: folder that keeps finished runs; a second call continues where the first stopped.
        format: how rows become tokens.
        subsets: how many subsets of the rows are trained on.
        trainings: how many models are fine-tuned on each subset, each with another seed; their
            losses are averaged.
        config: which rows they are fine-tuned on, and how.
        vector: how vectors are made, but for the recipe.
        recipes: names of recipes.
        at: which model gives the influence: "tuned", fine-tuned on all rows, or "base", `lm`.
        gradient: also score by the gradients of the whole model, a backward pass per sample.
        progress: called as the work goes on.

    Raises:
        DependencyError: the library for BM25 is not installed.
        InputError: there are too few rows or subsets, or no target.
        RowError: a row lacks a field or holds nothing to score.
    """
    if subsets < 3:
        raise InputError(f"{subsets} subsets: a rank correlation needs 3 or more; give more")
    if trainings < 1:
        raise InputError(f"{trainings} trainings: a subset is trained on once or more; give 1")
    require_bm25()  # before the first training
    config, vector = config or SubsetConfig(), vector or VectorConfig()
    rows = [row for _, row in with_images(open_rows(data), format)]
    with empty_index(lm, format) as base:
        samples, queries = base.samples(rows), base.samples(targets)
        runs = SubsetRuns(base, samples, queries, config, work)
        tuned = runs.full(progress)
        every = runs.losses(subsets, progress, seeds=trainings)
        before, after = base.passes.losses(queries), base.passes.losses(queries, tuned)
    measured, chosen = every.mean(0), runs.indicator(subsets)
    scored = _methods(
        tuned if at == "tuned" else lm, rows, queries, format, vector, recipes, gradient, progress
    )
    return LdsResult(
        rows=len(rows),
        targets=len(queries),
        subsets=subsets,
        share=config.share,
        trainings=trainings,
        loss_before=float(before.mean()),
        loss_all=float(after.mean()),
        loss_subsets=float(measured.mean()),
        loss_spread=float(measured.std(0, ddof=1).mean()),
        noise=seed_noise(every),
        methods={name: LdsFigure(lds_of(chosen @ scores.T, -measured)) for name, scores in scored},
    )


def lds_of(predicted: NDArray[Any], measured: NDArray[Any]) -> Figure:
    """Returns the rank correlation of predictions and measurements [subsets, targets].

    The mean and spread are over the targets. All of them depend on the same subsets, so the
    standard error is the jackknife over the subsets. A target with the same prediction for every
    subset counts 0.
    """

    def correlations(kept: NDArray[np.bool_]) -> list[float]:
        pairs = zip(predicted[kept].T, measured[kept].T, strict=True)
        return [float(np.nan_to_num(spearman(*pair))) for pair in pairs]

    n = len(predicted)
    everything = Figure.of(correlations(np.ones(n, np.bool_)))
    without = np.array([np.mean(correlations(np.arange(n) != left)) for left in range(n)])
    se = float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))
    return Figure(everything.mean, everything.sd, se, everything.n)


def _methods(
    lm: LanguageModel,
    rows: Sequence[Row],
    queries: Sequence[Sample],
    format: FormatConfig,
    vector: VectorConfig,
    recipes: Sequence[str],
    gradient: bool,
    progress: Progress | None,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields the names and scores [targets, rows] of all methods."""
    for recipe in recipes:
        settings = replace(vector, recipe=recipe)
        with temporary_index(rows, lm, format, settings, progress) as (index, stored):
            true = exact_of(index, queries, stored, progress)
            own = influence_scores(index, queries, stored, exact=true)
            yield from ((f"{recipe}, {name}", scores) for name, scores in own)
            if recipe == recipes[-1]:  # the other methods need no recipe: once
                yield from other_scores(
                    index, queries, stored, format, gradient=gradient, progress=progress
                )

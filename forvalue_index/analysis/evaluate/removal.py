"""What removing the rows that a method ranks first does: the truth that needs no labels.

For each query, a method's k first rows are removed and the model is trained again from where it
began. The more the query's loss rises, compared with removing k random rows, the more these rows
did (QLD, query loss difference).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.evaluate.baselines import baselines, require_bm25
from forvalue_index.analysis.evaluate.methods import (
    empty_index,
    exact_of,
    influence_scores,
    temporary_index,
)
from forvalue_index.analysis.evaluate.metrics import Figure, top
from forvalue_index.analysis.evaluate.subsets import KeptRuns, seed_noise
from forvalue_index.config import FormatConfig, TrainConfig, VectorConfig
from forvalue_index.data.images import with_images
from forvalue_index.data.sources import Data, open_rows
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.metric import METRICS
from forvalue_index.records import Progress, Sample, StoredSample

if TYPE_CHECKING:
    from forvalue_index.index import LanguageModel

SHARES = (0.01, 0.05)
METHODS = (
    *(f"stored {name}" for name, metric in METRICS.items() if metric.vectors),
    *("bm25", "embedding"),
)
RANDOM, SEED = "random", "same rows, another seed"


@dataclass(frozen=True, slots=True)
class RemovalResult:
    """How much the queries' loss rises when the rows that a method ranks first are removed.

    The rise is in nats per token, over the mean of the runs without random rows. Its standard error
    is over the queries. "random" compares one random removal with the other ones, "same rows,
    another seed" two trainings without the same random rows: both are 0, but for chance.
    """

    recipe: str
    at: str  # model that gives the influence: "tuned" or "base"
    rows: int
    queries: int
    draws: int  # random removals of each share, each trained with two seeds
    loss_before: float  # of the queries, mean, nats
    loss_all: float  # after fine-tuning on all rows
    loss_random: dict[str, float]  # share -> after fine-tuning without random rows
    noise: dict[str, float]  # share -> standard deviation of a query's loss over seeds
    removed: dict[str, int]  # share -> rows removed, k
    methods: dict[str, dict[str, Figure]]  # method -> share -> rise
    best: dict[str, str]  # share -> the method with the highest rise
    less: dict[str, dict[str, Figure]]
    """Method -> share -> the rise of the best less its own, query by query: what a query does to
    all methods cancels out."""


@dataclass(frozen=True, slots=True)
class _Baseline:
    """The queries' losses without random rows, [2 seeds, draws, q]."""

    losses: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        return np.asarray(self.losses.mean((0, 1)), np.float64)

    def of_chance(self) -> dict[str, NDArray[np.float64]]:
        """Returns the rises that are 0 but for chance."""
        first = self.losses[0]
        draws, q = first.shape
        # Each query has another draw as its own: the figure then hangs on no single run.
        own = first[np.arange(q) % draws, np.arange(q)]
        others = (first.sum(0) - own) / (draws - 1)
        seeds = (self.losses[1] - first)[np.arange(q) % draws, np.arange(q)]
        return {RANDOM: own - others, SEED: seeds}


def removal(
    lm: LanguageModel,
    data: Data,
    queries: Data,
    work: Path,
    format: FormatConfig,
    *,
    shares: Sequence[float] = SHARES,
    methods: Sequence[str] = (),
    draws: int = 4,
    train: TrainConfig | None = None,
    vector: VectorConfig | None = None,
    at: str = "tuned",
    exact: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> RemovalResult:
    """Returns how much a query's loss rises without the rows that each method ranks first for it.

    There is a fine-tuning for every query, method and share.

    Args:
        lm: the model that all fine-tuning begins with.
        data: rows to fine-tune on.
        queries: rows whose loss is measured.
        work: folder that keeps finished runs; a second call continues where the first stopped.
        format: how rows become tokens.
        shares: of the rows, to remove.
        methods: names of the methods, as in the result; default: all.
        draws: random removals of each share.
        train: how models are fine-tuned.
        vector: how vectors are made.
        at: which model gives the influence: "tuned", fine-tuned on all rows, or "base", `lm`.
        exact: also rank by the exact form of each metric.
        seed: of the random removals.
        progress: called as the work goes on.

    Raises:
        DependencyError: the library for BM25 is not installed.
        InputError: a share, the draws or a method's name is wrong, or there is no query.
        RowError: a row lacks a field or holds nothing to score.
    """
    require_bm25()  # before the first training
    if draws < 2:
        raise InputError(f"{draws} draws: a random removal is compared with another; use 2 or more")
    train, vector = train or TrainConfig(), vector or VectorConfig()
    chosen = _named(methods, exact)
    rows = [row for _, row in with_images(open_rows(data), format)]
    counts = {share: _count(share, len(rows)) for share in shares}
    with empty_index(lm, format) as base:
        samples, asked = base.samples(rows), base.samples(queries)
        runs = KeptRuns(base, samples, asked, work)
        tuned = runs.full(train, progress)
        before, after = base.passes.losses(asked), base.passes.losses(asked, tuned)
        model = tuned if at == "tuned" else lm
        with temporary_index(rows, model, format, vector, progress) as (index, stored):
            scored = {
                name: scores
                for name, scores in _scores(index, asked, stored, format, exact, progress)
                if name in chosen
            }
        chance, rises = _rises(runs, scored, counts, draws, seed, train, progress)
    best = {
        share: max(scored, key=lambda name: float(rises[name][share].mean()))
        for share in map(_key, counts)
    }
    return RemovalResult(
        recipe=vector.recipe,
        at=at,
        rows=len(rows),
        queries=len(asked),
        draws=draws,
        loss_before=float(before.mean()),
        loss_all=float(after.mean()),
        loss_random={_key(share): float(found.mean.mean()) for share, found in chance.items()},
        noise={_key(share): seed_noise(found.losses) or 0.0 for share, found in chance.items()},
        removed={_key(share): k for share, k in counts.items()},
        methods={name: _figures(found) for name, found in rises.items()},
        best=best,
        less={
            name: _figures({share: rises[best[share]][share] - own for share, own in found.items()})
            for name, found in rises.items()
        },
    )


def _figures(found: Mapping[str, NDArray[np.float64]]) -> dict[str, Figure]:
    return {share: Figure.of(values) for share, values in found.items()}


def _rises(
    runs: KeptRuns,
    scored: Mapping[str, NDArray[Any]],
    counts: Mapping[float, int],
    draws: int,
    seed: int,
    train: TrainConfig,
    progress: Progress | None,
) -> tuple[dict[float, _Baseline], dict[str, dict[str, NDArray[np.float64]]]]:
    """Returns the losses without random rows for each share, and the rises of all methods [q].

    Args:
        runs: the trainings.
        scored: name of a method -> scores [q, n].
        counts: share -> number of rows to remove.
        draws: random removals of each share.
        seed: of the random removals.
        train: how models are fine-tuned.
        progress: called after each training.
    """
    queries = sum(map(len, scored.values()))
    tell = _Count(progress, len(counts) * (2 * draws + queries))
    chance: dict[float, _Baseline] = {}
    rises: dict[str, dict[str, NDArray[np.float64]]] = {
        name: {} for name in (*scored, RANDOM, SEED)
    }
    for share, k in counts.items():
        random = _random(runs.rows, k, draws, seed)
        chance[share] = baseline = _Baseline(_twice(runs, random, train, tell))
        for name, scores in scored.items():
            found = [tell(runs.without(top(line, k), train))[q] for q, line in enumerate(scores)]
            rises[name][_key(share)] = np.array(found) - baseline.mean
        for name, rise in baseline.of_chance().items():
            rises[name][_key(share)] = rise
    return chance, rises


def _named(methods: Sequence[str], exact: bool) -> set[str]:
    """Returns the names of the methods to compare.

    Raises:
        InputError: there is no such method.
    """
    names = list(METHODS)
    if exact:
        names += [f"exact {name}" for name, metric in METRICS.items() if metric.has_exact]
    for name in methods:
        if name not in names:
            raise InputError(f"no method {name!r}; there are: {', '.join(names)}")
    return set(methods or names)


def _count(share: float, rows: int) -> int:
    """Returns how many rows a share is.

    Raises:
        InputError: it is not between 0 and 1, or none of the rows, or all of them.
    """
    if not 0 < share < 1:
        raise InputError(f"share is {share}, but must be above 0 and below 1")
    if not 0 < (count := round(share * rows)) < rows:
        raise InputError(
            f"{rows} rows are too few to remove {share:g} of them: give more, or another share"
        )
    return count


def _scores(
    index: InfluenceIndex,
    queries: Sequence[Sample],
    stored: Sequence[StoredSample],
    format: FormatConfig,
    exact: bool,
    progress: Progress | None,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields the names and scores [q, n] of all methods."""
    true = exact_of(index, queries, stored, progress) if exact else None
    yield from influence_scores(index, queries, stored, exact=true, hybrid=True)
    embedding = None if true is None else true.embedding
    yield from baselines(index, queries, stored, format, embedding=embedding, progress=progress)


def _random(rows: int, k: int, draws: int, seed: int) -> list[NDArray[np.intp]]:
    """Returns the positions of k random rows, for each draw."""
    drawn = (np.random.default_rng([seed, k, number]) for number in range(draws))
    return [rng.choice(rows, k, replace=False) for rng in drawn]


def _twice(
    runs: KeptRuns, lists: Sequence[NDArray[np.intp]], train: TrainConfig, tell: _Count
) -> NDArray[np.float64]:
    """Returns the queries' losses without each list of rows, with two seeds, [2, lists, q]."""
    seeds = (train, replace(train, seed=train.seed + 1))
    return np.array([[tell(runs.without(removed, seed)) for removed in lists] for seed in seeds])


class _Count:
    """Reports how many of the runs are finished."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        self._done += 1
        if self._progress is not None:
            self._progress("runs", self._done, self._total, 0)
        return losses


def _key(share: float) -> str:
    return f"{share:g}"

"""The value of every training sample for a set of targets: one pass over the stored vectors.

    targets -> query vectors -> their mean (or all of them, for the maximum) -> one inner product
    with every stored vector -> a value for each training sample

The scores of all pairs of target and sample are never in memory together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.field_values import field_values, label
from forvalue_index.config import FormatConfig
from forvalue_index.data.sources import Data
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.metric import Metric, metric_of
from forvalue_index.records import Progress, Row, Sample, listed
from forvalue_index.store.snapshot import Snapshot
from forvalue_index.store.work import VectorsOf, Work
from forvalue_index.system.temporary import keeping

COMBINES = ("mean", "max", "each")
_IN_MEMORY = 2**26  # values by group that are in memory, at most
_DIGITS = 5  # of shares: the best rows of two targets have the same, not one by chance more
_TARGETS = 512  # run forward, or compared with a block of vectors, at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SampleValues:
    """The training samples of an index with their values, in the order of their ids."""

    ids: NDArray[np.int64]
    value: Floats  # [n] for all targets
    loss: Floats  # [n] nats
    self_influence: Floats  # [n] by the stored vectors
    targets: int
    groups: dict[str, Floats] = field(default_factory=dict)  # group of targets -> its values [n]
    group_sizes: dict[str, int] = field(default_factory=dict)  # group -> number of its targets

    def best(self, k: int) -> NDArray[np.intp]:
        """Returns the positions of the k highest values, the highest first."""
        return np.argsort(-self.value, kind="stable")[:k]

    def worst(self, k: int) -> NDArray[np.intp]:
        """Returns the positions of the k lowest values, the lowest first."""
        return np.argsort(self.value, kind="stable")[:k]


@dataclass(frozen=True, slots=True)
class GroupValue:
    """The value of all training samples that have the same value of a field."""

    name: str
    samples: int
    mean: float
    se: float | None  # standard error of the mean; None for one sample
    sum: float
    helpful: float  # share of the samples whose value is positive


def sample_values(
    index: InfluenceIndex,
    targets: Data | list[Sample],
    *,
    combine: str = "mean",
    metric: str | Metric = "dot",
    target_group: str | None = None,
    where: str | Iterable[str] = (),
    format: FormatConfig | None = None,
    progress: Progress | None = None,
) -> SampleValues:
    """Returns the value of every training sample: its mean (or highest) score over the targets.

    By "each", the highest share that its score for a target has of the best score for that target.
    Memory: a vector for each target and a few numbers for each sample. Arguments are those of
    `InfluenceIndex.score`.

    Raises:
        InputError: there is no target, a target lacks the field, or a condition cannot be read.
        RowError: a target lacks a field or holds nothing to score.
    """
    metric = _checked(combine, metric)
    conditions = listed(where)
    samples = index.samples(targets, format)
    members = _members(samples, target_group)
    vectors = _vectors(index, samples, metric, progress)

    def ask(view: Snapshot) -> SampleValues:
        ids = view.where(conditions) if conditions else view.ids
        if not len(ids):
            raise InputError("no training sample is left to score: check --where")
        turned, weights = view.turned(vectors, metric), view.weights(metric)
        own = None if weights is None else weights[np.searchsorted(view.ids, ids)]
        if combine == "each":
            turned = _by_best(view, ids, turned, own)
        by_group = _scores(view, ids, [turned[rows] for rows in members.values()], combine)
        if own is not None:
            for row in by_group:
                row *= own
        if combine == "each":
            np.round(by_group, _DIGITS, out=by_group)
        sizes = {name: len(rows) for name, rows in members.items()}
        shares = np.array(list(sizes.values())) / len(samples)
        figures = view.figures(ids)
        return SampleValues(
            ids=ids,
            value=shares @ by_group if combine == "mean" else by_group.max(0),
            loss=figures.loss,
            self_influence=(figures.norm / index.vectoriser.scale) ** 2,
            targets=len(samples),
            groups={} if target_group is None else dict(zip(sizes, by_group, strict=True)),
            group_sizes={} if target_group is None else sizes,
        )

    return index.answer(ask)


def exact_values(
    index: InfluenceIndex,
    targets: Data | list[Sample],
    ids: Sequence[int],
    *,
    combine: str = "mean",
    metric: str | Metric = "dot",
    format: FormatConfig | None = None,
    progress: Progress | None = None,
) -> Floats:
    """Returns the values of the training samples `ids` by the exact form of the recipe, [n].

    Runs the targets forward, and the samples once for every _TARGETS of them. Arguments and errors
    are those of `sample_values`.
    """
    metric = _checked(combine, metric, exact=True)
    if combine == "each":
        raise InputError(
            "the exact best score for each target takes all rows forward: use mean or max"
        )
    queries, samples = index.samples(targets, format), index.training_samples(ids)
    result = np.full(len(samples), 0.0 if combine == "mean" else -np.inf)
    tokens = 0
    for start in range(0, len(queries), _TARGETS):
        part = queries[start : start + _TARGETS]
        scores = index.influence(part, samples, metric)
        if combine == "mean":
            result += scores.sum(0, dtype=np.float64) / len(queries)
        else:
            result = np.maximum(result, scores.max(0))
        tokens += sum(len(query.input_ids) for query in part)
        if progress is not None:
            progress("exact", start + len(part), len(queries), tokens)
    return result


def group_values(index: InfluenceIndex, found: SampleValues, name: str) -> list[GroupValue]:
    """Returns the groups of training rows by a field's value, the highest mean first.

    Raises:
        InputError: no row has the field.
    """
    groups = field_values(index, found.ids, name)
    order = np.argsort(groups.codes, kind="stable")
    values = np.split(found.value[order], groups.counts.cumsum()[:-1])
    result = []
    for group, own in zip(groups.names, values, strict=True):
        spread = float(own.std(ddof=1)) / len(own) ** 0.5 if len(own) > 1 else None
        total, helpful = float(own.sum()), float((own > 0).mean())
        result.append(GroupValue(group, len(own), float(own.mean()), spread, total, helpful))
    return sorted(result, key=lambda group: -group.mean)


def value_rows(
    index: InfluenceIndex,
    found: SampleValues,
    order: NDArray[np.intp],
    exact: dict[int, float] | None = None,
) -> Iterator[Row]:
    """Yields a row for each position in `order`: the values, the stored figures, the sample.

    `exact` has the exact values of some ids; those of the others are null.
    """
    stored = index.stored(found.ids[order])
    for place, sample in zip(order.tolist(), stored, strict=True):
        row: Row = {"id": sample.id, "key": sample.key, "value": float(found.value[place])}
        if found.groups:
            row["values"] = {name: float(own[place]) for name, own in found.groups.items()}
        if exact is not None:
            row["exact"] = exact.get(sample.id)
        yield row | {
            "loss": sample.loss,
            "tokens": sample.n_tokens,
            "scored": sample.n_scored,
            "self_influence": float(found.self_influence[place]),
            "sample": sample.row,
        }


def flat_row(row: Row) -> Row:
    """Returns a row of `value_rows` without nesting, for a table: value.GROUP, sample.FIELD."""
    result: Row = {}
    for name, value in row.items():
        if name in ("values", "sample"):
            prefix = name.removesuffix("s")
            result |= {f"{prefix}.{inner}": own for inner, own in value.items()}
        else:
            result[name] = value
    return result


def _checked(combine: str, metric: str | Metric, *, exact: bool = False) -> Metric:
    if combine not in COMBINES:
        raise InputError(f"combine {combine!r} is not one of {', '.join(COMBINES)}")
    return metric_of(metric, exact=exact, linear=True)


def _members(samples: Sequence[Sample], name: str | None) -> dict[str, list[int]]:
    """Returns group -> positions of its targets; groups are in the order of their first target."""
    if name is None:
        return {"": list(range(len(samples)))}
    members: dict[str, list[int]] = {}
    for position, sample in enumerate(samples):
        group = label(sample.row, name)
        if group is None:
            there = ", ".join(sample.row)
            raise InputError(f"{sample.source}: no field {name!r}; the row's fields are: {there}")
        members.setdefault(group, []).append(position)
    return members


def _vectors(
    index: InfluenceIndex, samples: list[Sample], metric: Metric, progress: Progress | None
) -> NDArray[np.float32]:
    """Returns the targets' vectors [q, dim], times the weights that the metric gives queries."""
    out = np.empty((len(samples), index.vectoriser.dim), np.float32)
    tokens = 0
    for start in range(0, len(samples), _TARGETS):
        part = samples[start : start + _TARGETS]
        vectors = index.vectors(part)
        n_scored = np.array([sample.n_scored for sample in part])
        weights = metric.query_weights(vectors, n_scored, index.vectoriser.scale)
        out[start : start + len(part)] = vectors * weights[:, None]
        tokens += sum(len(sample.input_ids) for sample in part)
        if progress is not None:
            progress("targets", start + len(part), len(samples), tokens)
    return out


def _scores(
    view: Snapshot,
    ids: NDArray[np.int64],
    groups: list[NDArray[np.float32]],
    combine: str,
) -> Floats:
    """Returns the mean or highest inner product of every sample with each group, [groups, n]."""
    work: Work = _Highest(groups)
    if combine == "mean":
        means = np.stack([own.mean(0, dtype=np.float64) for own in groups])
        work = _Products(means.astype(np.float32))
    out = _table(len(groups), len(ids))
    for places, found in view.compute(work, ids):
        out[:, places] = found.T
    return out


def _by_best(
    view: Snapshot,
    ids: NDArray[np.int64],
    targets: NDArray[np.float32],
    own: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Returns the vectors of targets [q, dim], each divided by the size of its best score.

    `own` are the weights that the metric gives samples [n]; None: all the same.
    """
    best = np.full(len(targets), -np.inf)
    for start in range(0, len(targets), _TARGETS):
        part = slice(start, start + _TARGETS)
        for places, found in view.compute(_Products(targets[part]), ids):
            scores = found if own is None else found * own[places][:, None]
            best[part] = np.maximum(best[part], scores.max(0))
    return (targets / np.where(best, np.abs(best), 1)[:, None]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Products:
    """The inner product of each row with each query, [m, q]."""

    queries: NDArray[np.float32]

    def __call__(self, vectors: VectorsOf, ids: NDArray[np.int64], _: object) -> NDArray[Any]:
        return (self.queries @ vectors(ids).T).T


@dataclass(frozen=True, slots=True)
class _Highest:
    """The highest inner product of each row with a query of each group, [m, groups]."""

    groups: list[NDArray[np.float32]]

    def __call__(self, vectors: VectorsOf, ids: NDArray[np.int64], _: object) -> NDArray[Any]:
        out, rows = np.full((len(ids), len(self.groups)), -np.inf), vectors(ids)
        for highest, own in zip(out.T, self.groups, strict=True):
            for start in range(0, len(own), _TARGETS):
                np.maximum(highest, (own[start : start + _TARGETS] @ rows.T).max(0), out=highest)
        return out


def _table(groups: int, n: int) -> Floats:
    """Returns room for numbers [groups, n]: in a temporary file, of which few are in memory."""
    if groups * n <= _IN_MEMORY:
        return np.empty((groups, n))
    with keeping("the values of all samples"), tempfile.TemporaryFile() as file:
        file.truncate(groups * n * 8)
        return np.memmap(file, np.float64, "r+", shape=(groups, n))

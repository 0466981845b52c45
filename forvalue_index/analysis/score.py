"""The answer of `InfluenceIndex.score`: values of all samples, of groups, and the extremes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from forvalue_index.analysis.values import (
    GroupValue,
    SampleValues,
    exact_values,
    group_values,
    sample_values,
    value_rows,
)
from forvalue_index.config import FormatConfig
from forvalue_index.data.sources import Data
from forvalue_index.index import InfluenceIndex
from forvalue_index.metric import Metric, metric_of
from forvalue_index.records import Progress, Row, Sample


@dataclass(frozen=True, slots=True)
class Score:
    """What every training sample is worth for a set of targets."""

    values: SampleValues
    groups: list[GroupValue]  # of the training rows by `group_by`, the highest mean first
    best: list[Row]  # the k highest, as `rows` has them; by their exact values if these are known
    worst: list[Row]  # the k lowest of the others, the lowest first
    combine: str
    metric: str
    exact: dict[int, float] | None  # id -> exact value, of the samples in `best` and `worst`
    _index: InfluenceIndex = field(repr=False)

    def rows(self) -> Iterator[Row]:
        """Yields a row for each training sample, the highest value first.

        The index must still be open. A row has id, key, value, values (by target group), exact,
        loss, tokens, scored, self_influence and sample.
        """
        order = self.values.best(len(self.values.ids))
        return value_rows(self._index, self.values, order, self.exact)

    def summary(self) -> Row:
        """Returns what was scored and how, with the mean value, as JSON values."""
        value = self.values.value
        return {
            "targets": self.values.targets,
            "target_groups": self.values.group_sizes,
            "samples": len(value),
            "combine": self.combine,
            "metric": self.metric,
            "mean": float(value.mean()),
            "helpful": float((value > 0).mean()),
        }


def score(
    index: InfluenceIndex,
    targets: Data | list[Sample],
    *,
    k: int = 5,
    combine: str = "mean",
    metric: str | Metric = "dot",
    target_group: str | None = None,
    group_by: str | None = None,
    where: str | Iterable[str] = (),
    exact: bool = False,
    format: FormatConfig | None = None,
    progress: Progress | None = None,
) -> Score:
    """Returns what every training sample is worth; see `InfluenceIndex.score`."""
    metric = metric_of(metric, exact=exact, linear=True)
    samples = index.samples(targets, format)
    found = sample_values(
        index,
        samples,
        combine=combine,
        metric=metric,
        target_group=target_group,
        where=where,
        progress=progress,
    )
    groups = group_values(index, found, group_by) if group_by else []
    best = found.best(min(k, len(found.ids)))
    worst = found.worst(min(k, len(found.ids) - len(best)))
    listed: dict[int, float] | None = None
    if exact:
        ids = found.ids[np.concatenate([best, worst])].tolist()
        true = exact_values(index, samples, ids, combine=combine, metric=metric, progress=progress)
        listed = dict(zip(ids, true.tolist(), strict=True))
        best = np.array(sorted(best, key=lambda i: -listed[int(found.ids[i])]), np.intp)
        worst = np.array(sorted(worst, key=lambda i: listed[int(found.ids[i])]), np.intp)
    high, low = (list(value_rows(index, found, side, listed)) for side in (best, worst))
    return Score(found, groups, high, low, combine, metric.name, listed, index)

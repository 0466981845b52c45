"""Which training rows to keep for a set of targets: those of high value that do not repeat others.

The choice is greedy: see `greedy.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.field_values import FieldValues, field_values
from forvalue_index.analysis.greedy import Greedy
from forvalue_index.analysis.values import SampleValues, sample_values
from forvalue_index.config import FormatConfig
from forvalue_index.data.sources import Data
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.metric import Metric
from forvalue_index.records import Progress, Row, Sample, require_count

DEDUP = 0.98  # least cosine of a near-copy with a row that was chosen
_POINTS = 10  # of the value curve


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows that were chosen, in the order of choice: the first m are the choice for m."""

    places: NDArray[np.int64]  # [m] positions of the chosen rows in `values`
    copies: int  # rows left out as near-copies of chosen ones
    values: SampleValues
    groups: FieldValues | None  # that were balanced; None: there were none

    @property
    def ids(self) -> NDArray[np.int64]:
        """Ids of the chosen rows, in the order of choice [m]."""
        return self.values.ids[self.places]

    def report(self) -> Row:
        """Returns what was chosen and its value, as JSON values.

        Shares are of the sum of all positive values. `best` is the share of the same number of rows
        with the highest values, which diversity and balance may lower.
        """
        value = self.values.value
        chosen, positive = value[self.places], float(value[value > 0].sum())
        whole = positive if positive > 0 else float("nan")
        best = np.sort(value)[::-1][: len(chosen)].cumsum()
        steps = [-(-len(chosen) * step // _POINTS) for step in range(1, _POINTS + 1)]
        result: Row = {
            "targets": self.values.targets,
            "rows": len(value),
            "chosen": len(chosen),
            "near_copies": self.copies,
            "harmful": int((chosen < 0).sum()),
            "lowest_value": float(chosen.min()),
            "mean_value": float(chosen.mean()),
            "mean_value_of_all": float(value.mean()),
            "curve": [
                {
                    "rows": step,
                    "share": _number(chosen[:step].sum() / whole),
                    "best": _number(best[step - 1] / whole),
                }
                for step in dict.fromkeys(steps)
            ],
        }
        if self.groups is not None:
            counts, n = self.groups.counts, len(self.groups.names)
            own = np.bincount(self.groups.codes[self.places], minlength=n)
            means = np.bincount(self.groups.codes, value, n) / counts
            result["groups"] = [
                {"name": name, "chosen": int(taken), "of": int(count), "mean_value": float(mean)}
                for name, taken, count, mean in zip(
                    self.groups.names, own, counts, means, strict=True
                )
            ]
        return result


def select(
    index: InfluenceIndex,
    targets: Data | list[Sample],
    *,
    budget: int | None = None,
    ratio: float | None = None,
    diversity: float = 1.0,
    dedup: float | None = DEDUP,
    balance: str | None = None,
    combine: str = "each",
    metric: str | Metric = "dot",
    where: str | Iterable[str] = (),
    format: FormatConfig | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Returns the training rows to keep for a set of targets; see `InfluenceIndex.select`.

    Raises:
        InputError: not one of budget and ratio, one out of range, or as in `sample_values`.
        RowError: a target lacks a field or holds nothing to score.
    """
    if (budget is None) == (ratio is None):
        raise InputError("a selection needs either a budget or a ratio: give one of them")
    if not 0 <= diversity < inf:
        raise InputError(f"diversity is {diversity}: use a number, 0 (by value alone) or more")
    found = sample_values(
        index,
        targets,
        combine=combine,
        metric=metric,
        where=where,
        format=format,
        progress=progress,
    )
    n = len(found.ids)
    if ratio is not None:
        if not 0 < ratio <= 1:
            raise InputError(f"ratio is {ratio}: use a share of the rows, above 0 and at most 1")
        budget = max(1, round(ratio * n))
    assert budget is not None
    require_count(budget, "budget", "rows")
    groups = None if balance is None else field_values(index, found.ids, balance)
    codes = np.zeros(n, np.int64) if groups is None else groups.codes
    greedy = Greedy(index, found.ids, found.value, codes, diversity, dedup)
    places = greedy.choose(min(budget, n), progress)
    return Selection(places, greedy.copies, found, groups)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

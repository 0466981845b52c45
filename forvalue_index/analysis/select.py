"""Which training rows to keep for a set of targets: those of high value that do not repeat others.

The choice is greedy. What a row is worth beside the rows that were chosen before is its value times
the share of its squared length that is orthogonal to the nearest of them; the next row is the one
that is worth the most. That share only falls, so a row is compared with newly chosen ones only when
it comes to the top. Vectors are read when needed: only those of the chosen rows stay in memory.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.field_values import field_values
from forvalue_index.analysis.values import SampleValues, sample_values
from forvalue_index.config import FormatConfig
from forvalue_index.data.sources import Data
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.metric import Metric
from forvalue_index.records import Progress, Row, Sample

DEDUP = 0.98  # least cosine of a near-copy with a row that was chosen
_BATCH = 128  # rows that are compared with the chosen ones together
_POINTS = 10  # of the value curve


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows that were chosen, in the order of choice: the first m are the choice for m."""

    places: NDArray[np.int64]  # [m] positions of the chosen rows in `values`
    copies: int  # rows left out as near-copies of chosen ones
    values: SampleValues
    labels: list[str] | None  # [n] the groups that were balanced; None: there were none

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
        if self.labels is not None:
            every, own = np.array(self.labels, dtype=object), Counter[str]()
            own.update(every[self.places])
            result["groups"] = [
                {
                    "name": name,
                    "chosen": own[name],
                    "of": count,
                    "mean_value": float(value[every == name].mean()),
                }
                for name, count in sorted(Counter(self.labels).items())
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
    combine: str = "mean",
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
    if diversity < 0:
        raise InputError(f"diversity is {diversity}: use 0 (by value alone) or more")
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
    if budget < 1:
        raise InputError(f"budget is {budget}, but it is a number of rows: use 1 or more")
    labels = None if balance is None else field_values(index, found.ids, balance)
    groups = np.unique(labels, return_inverse=True)[1] if labels else np.zeros(n, np.int64)
    greedy = _Greedy(index, found, groups, diversity, dedup)
    places = greedy.choose(min(budget, n), progress)
    return Selection(np.array(places, np.int64), greedy.copies, found, labels)


class _Greedy:
    """Rows in the order of what they are worth beside those that were chosen."""

    def __init__(
        self,
        index: InfluenceIndex,
        found: SampleValues,
        groups: NDArray[np.int64],
        diversity: float,
        dedup: float | None,
    ) -> None:
        self._view, self._ids, self._value = index.snapshot, found.ids, found.value
        self._groups, self._diversity = groups, diversity
        self._dedup = 2.0 if dedup is None else dedup
        self._compares = diversity > 0 or dedup is not None
        self._order = np.argsort(-found.value, kind="stable")
        self._next = 0  # position in the order
        self._nearest: dict[int, float] = {}  # place -> cosine of the nearest chosen row
        # (-worth, place, rows it was compared with): the first of the heap is worth the most.
        self._heap: list[tuple[float, int, int]] = []
        self._vectors = np.empty((0, index.dim), np.float32)  # of the chosen
        self.copies = 0

    def choose(self, budget: int, progress: Progress | None) -> list[int]:
        """Returns the positions of the rows, in the order in which they were chosen."""
        self._vectors = np.empty(
            (budget if self._compares else 0, self._vectors.shape[1]), np.float32
        )
        chosen: list[int] = []
        counts = np.bincount(self._groups)
        while len(chosen) < budget:
            room = _shares(budget - len(chosen), counts)
            waiting: list[tuple[float, int, int]] = []
            while len(chosen) < budget and (entry := self._best(len(chosen))) is not None:
                place = entry[1]
                if not room[self._groups[place]]:
                    waiting.append(entry)
                    continue
                room[self._groups[place]] -= 1
                if self._compares:
                    self._vectors[len(chosen)] = self._unit([place])[0]
                chosen.append(place)
                if progress is not None and len(chosen) % 100 == 0:
                    progress("choosing", len(chosen), budget, 0)
            if not waiting:
                break
            # Near-copies were left out, so some groups have room that others can use.
            self._heap = waiting
            heapq.heapify(self._heap)
            counts = np.bincount([self._groups[place] for _, place, _ in waiting])
        return chosen

    def _best(self, chosen: int) -> tuple[float, int, int] | None:
        """Takes the row out that is worth the most now, and returns it; None if none is left."""
        while True:
            self._refill()
            if not self._heap:
                return None
            if self._heap[0][2] == chosen or not self._compares:
                return heapq.heappop(self._heap)
            stale = [heapq.heappop(self._heap)]
            while self._heap and len(stale) < _BATCH and self._heap[0][2] < chosen:
                stale.append(heapq.heappop(self._heap))
            self._compare([place for _, place, _ in stale], min(seen for *_, seen in stale), chosen)

    def _compare(self, places: list[int], seen: int, chosen: int) -> None:
        """Puts rows back into the heap with what they are worth beside all chosen rows."""
        cosines = (self._unit(places) @ self._vectors[seen:chosen].T).max(1)
        for place, cosine in zip(places, cosines.tolist(), strict=True):
            nearest = max(self._nearest.get(place, 0.0), cosine)
            if nearest >= self._dedup:
                self.copies += 1
                self._nearest.pop(place, None)
                continue
            self._nearest[place] = nearest
            value = float(self._value[place])
            new = max(1 - nearest**2, 0.0) ** self._diversity
            # Likeness to another row does not make a harmful row less harmful.
            heapq.heappush(self._heap, (-value * new if value > 0 else -value, place, chosen))

    def _refill(self) -> None:
        """Puts rows into the heap until none of the rest can be worth more than its first."""
        while self._next < len(self._order):
            place = int(self._order[self._next])
            value = float(self._value[place])
            if self._heap and -self._heap[0][0] > value:
                return
            heapq.heappush(self._heap, (-value, place, 0))
            self._next += 1

    def _unit(self, places: list[int]) -> NDArray[np.float32]:
        vectors = self._view.vectors(self._ids[places])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-30), np.float32)


def _shares(budget: int, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns how many rows each group gets: an equal share, or all that it has if fewer."""
    room = np.zeros(len(counts), np.int64)
    while budget and (room < counts).any():
        open_groups = np.flatnonzero(room < counts)
        each = max(1, budget // len(open_groups))
        for group in open_groups[:budget]:
            more = min(each, counts[group] - room[group])
            room[group] += more
            budget -= more
    return room


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

"""The greedy choice among rows that have a value and a vector: high values that do not repeat.

What a row is worth beside the rows that were chosen before is its value times the share of its
squared length that is orthogonal to the nearest of them; the next row is the one that is worth the
most. That share only falls, so what a row was worth before is the most that it can be worth now.

Rows are looked at a window at a time: those that can be worth the most are compared with the chosen
rows that they were not compared with yet, and with each other. Rows of the window are chosen as
long as no row outside can be worth more. Vectors are read from the index when they are compared;
none is kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Progress

WINDOW = 1024  # rows that are compared with each other
_BLOCK = 1024  # chosen rows that a window is compared with at a time

Places = NDArray[np.int64]


class Greedy:
    """Rows in the order of what they are worth beside those that were chosen."""

    def __init__(
        self,
        index: InfluenceIndex,
        ids: Places,
        value: NDArray[np.float64],
        groups: Places,
        diversity: float,
        dedup: float | None,
    ) -> None:
        """Takes ids, values and groups of n rows; a group gets no more than its share."""
        self._vectors, self._ids, self._value, self._groups = index.snapshot, ids, value, groups
        self._diversity = diversity
        self._dedup = 2.0 if dedup is None else dedup
        self._compares = diversity > 0 or dedup is not None
        self._worth = value.copy()  # at most, by the chosen rows that each was compared with
        self._nearest = np.zeros(len(ids), np.float32)  # cosine of the nearest of these
        self._seen = np.zeros(len(ids), np.int64)  # and how many of the chosen they are
        self._order = np.argsort(-value, kind="stable")
        self._next = 0  # position in the order: rows from here on were not looked at yet
        self._pool = np.empty(0, np.int64)  # rows before it that can be chosen, the best first
        self._chosen = np.empty(0, np.int64)
        self.copies = 0  # rows that were left out as near-copies of chosen ones

    def choose(self, budget: int, progress: Progress | None = None) -> Places:
        """Returns the positions of the rows, in the order in which they were chosen, [m]."""
        counts = np.bincount(self._groups)
        while len(self._chosen) < budget:
            room, full = shares(budget - len(self._chosen), counts), [np.empty(0, np.int64)]
            while len(self._chosen) < budget:
                self._refill(room, full)
                if not len(self._pool):
                    break
                self._from_window(room, budget)
                if progress is not None:
                    progress("choosing", len(self._chosen), budget, 0)
            # Near-copies were left out, so some groups have room that others can use.
            self._pool = np.concatenate(full)
            if not len(self._pool):
                break
            counts = np.bincount(self._groups[self._pool])
        return self._chosen

    def _refill(self, room: Places, full: list[Places]) -> None:
        """Sorts the pool, after it got all rows that belong to the first window.

        Rows of groups that have no room are moved to `full`.
        """
        while True:
            has_room = room[self._groups[self._pool]] > 0
            if not has_room.all():
                full.append(self._pool[~has_room])
                self._pool = self._pool[has_room]
            self._pool = self._pool[np.lexsort((self._pool, -self._worth[self._pool]))]
            if self._next == len(self._order) or (
                len(self._pool) > WINDOW and self._before(self._pool[WINDOW], self._ahead)
            ):
                return
            new = self._order[self._next : self._next + WINDOW]
            self._next += len(new)
            self._pool = np.concatenate([self._pool, new])

    @property
    def _ahead(self) -> int:
        return int(self._order[self._next])

    def _before(self, place: int, other: int) -> bool:
        """Returns whether a row can be worth more than another; of equal ones, the first is."""
        return bool((-self._worth[place], place) < (-self._worth[other], other))

    def _from_window(self, room: Places, budget: int) -> None:
        """Chooses rows of the first window until one outside it can be worth more."""
        window, self._pool = np.sort(self._pool[:WINDOW]), self._pool[WINDOW:]
        outside = int(self._pool[0]) if len(self._pool) else None
        if self._compares:
            cosines = self._compared(window)
        left, chosen = np.ones(len(window), bool), list[int]()
        while len(self._chosen) + len(chosen) < budget:
            open_ = left & (room[self._groups[window]] > 0)
            if not open_.any():
                break
            best = int(np.argmax(np.where(open_, self._worth[window], -np.inf)))
            place = int(window[best])
            if outside is not None and not self._before(place, outside):
                break
            left[best] = False
            if self._nearest[place] >= self._dedup:
                self.copies += 1
                continue
            chosen.append(place)
            room[self._groups[place]] -= 1
            if self._compares:
                self._nearest[window] = np.maximum(self._nearest[window], cosines[best])
                self._value_anew(window)
        self._chosen = np.concatenate([self._chosen, np.array(chosen, np.int64)])
        self._seen[window] = len(self._chosen)
        self._pool = np.concatenate([window[left], self._pool])

    def _compared(self, window: Places) -> NDArray[np.float32]:
        """Compares rows with the chosen rows that are new to them; returns their own cosines."""
        vectors, seen = self._vectors.comparable(self._ids[window]), self._seen[window]
        n = len(self._chosen)
        for start in range(int(seen.min()) // _BLOCK * _BLOCK, n, _BLOCK):
            block = self._chosen[start : start + _BLOCK]
            new = np.flatnonzero(seen < start + len(block))
            if len(new):
                found = vectors[new].cosines(self._vectors.comparable(self._ids[block])).max(1)
                self._nearest[window[new]] = np.maximum(self._nearest[window[new]], found)
        self._value_anew(window)
        return vectors.cosines(vectors)

    def _value_anew(self, window: Places) -> None:
        """Sets what rows are worth by their nearest chosen rows.

        Likeness to another row does not make a harmful row less harmful.
        """
        value = self._value[window]
        new = np.maximum(1 - self._nearest[window].astype(np.float64) ** 2, 0) ** self._diversity
        self._worth[window] = np.where(value > 0, value * new, value)


def shares(budget: int, counts: Places) -> Places:
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

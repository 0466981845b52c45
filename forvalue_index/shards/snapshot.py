"""One moment of all shards, as analysis sees an index: a `Snapshot` that joins theirs.

The segments of all shards, with the ids of the sharded index, are one flat index; words, figures
and the second moment are those of all rows. So all that stands on a snapshot has the answers of one
index. Searches go to each shard, so that they use its derived indexes, and so does what is computed
from many vectors, so that a shard can be held elsewhere.

Each shard is at a moment of its own: rows that a writer adds to two shards may be in one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.metric import METRICS, Metric
from forvalue_index.records import Segment
from forvalue_index.search.checked import CheckedFiles
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.moment import KeptMoment, SecondMoment, Writing
from forvalue_index.search.side import Side
from forvalue_index.search.state import StateSearch
from forvalue_index.search.stored import among
from forvalue_index.search.words import Lexicon
from forvalue_index.shards.catalog import JoinedCatalog
from forvalue_index.shards.fields import JoinedFields
from forvalue_index.shards.ids import Ids, joined, split
from forvalue_index.shards.scatter import Asked, Here, Searcher, by_shard, merged
from forvalue_index.store.layout import CHECKED_DERIVED, DERIVED
from forvalue_index.store.sides import KeptSides
from forvalue_index.store.snapshot import Snapshot, Snapshots
from forvalue_index.store.store import Store
from forvalue_index.store.vectoriser import dim_of
from forvalue_index.store.work import Work, block_rows, part_of


class JoinedSnapshot(Snapshot):
    """All shards, each at one generation."""

    def __init__(
        self,
        directory: Path,
        catalog: JoinedCatalog,
        parts: Mapping[int, Store],
        snapshots: Mapping[int, Snapshot],
        writing: Writing,
        searcher: Searcher | None,
    ) -> None:
        """Takes number -> shard, and its snapshot; `searcher`: if not in this process."""
        self._shards = catalog.manifest.shards
        self._snapshots = snapshots
        self._searcher = searcher or Here(snapshots, self._shards)
        super().__init__(
            sum(snapshot.generation for snapshot in snapshots.values()),
            _flat(directory, catalog, snapshots, next(iter(parts.values())).bits),
            catalog,
            CheckedFiles(directory / DERIVED, directory / CHECKED_DERIVED),
            _JoinedMoment(parts, snapshots),
            replace(
                next(iter(parts.values())).beside,
                sides=_JoinedSides(parts, snapshots, self._shards),
            ),
            JoinedFields(
                catalog,
                parts,
                {number: snapshot.flat.segments for number, snapshot in snapshots.items()},
                {
                    number: partial(parts[number].writer.lock_at, snapshot.generation)
                    for number, snapshot in snapshots.items()
                },
            ),
            writing,
        )

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        metric: Metric,
        *,
        opponents: bool,
        allowed: NDArray[np.int64] | None,
        flat: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns scores and ids of the k best of all shards under a metric, [q, k] each.

        Raises:
            CorruptIndexError: a derived index, or a segment, is damaged.
        """
        turned = self.flat.checked(self.turned(queries, metric))
        asked = Asked(turned, k, METRICS[metric.derived], opponents, flat)
        found = self._searcher.search(asked, by_shard(allowed, self._shards))
        return merged(found, asked, self._shards)

    def compute(
        self, work: Work, ids: Ids, beside: NDArray[Any] | None = None
    ) -> Iterator[tuple[slice | NDArray[np.intp], NDArray[Any]]]:
        """Yields what comes of the vectors of `ids`: blocks are of one shard, these in turn."""
        step = block_rows(self.dim)
        shares = [(number, places) for number, places, _ in split(ids, self._shards)]
        longest = max((len(places) for _, places in shares), default=0)
        blocks = [
            (number, places[start : start + step])
            for start in range(0, longest, step)
            for number, places in shares
            if start < len(places)
        ]
        given = ((number, ids[at], part_of(beside, at)) for number, at in blocks)
        for (_, places), found in zip(blocks, self._searcher.compute(work, given), strict=True):
            yield places, found

    @property
    def lexicon(self) -> Lexicon:
        """The words of the rows of all shards."""
        with self._lock:
            if self._lexicon is None:
                words = [
                    replace(own, ids=joined(own.ids, number, self._shards))
                    for number, snapshot in self._snapshots.items()
                    for own in snapshot.lexicon.segments
                ]
                self._lexicon = Lexicon(words, self.flat.ids)
            return self._lexicon

    def _read_states(self) -> StateSearch | None:
        found = [
            (number, snapshot.states)
            for number, snapshot in self._snapshots.items()
            if len(snapshot.ids)
        ]
        parts = [
            replace(own, ids=joined(own.ids, number, self._shards))
            for number, states in found
            if states is not None
            for own in states.segments
        ]
        whole = parts and all(states is not None for _, states in found)
        return StateSearch(parts, self.flat.ids) if whole else None


def _flat(
    directory: Path, catalog: JoinedCatalog, snapshots: Mapping[int, Snapshot], bits: int
) -> FlatSearch:
    """Returns the segments of all shards as one flat index."""
    shards, segments, opened = catalog.manifest.shards, [], []
    removed: list[Ids] = [np.empty(0, np.int64)]
    for number, snapshot in snapshots.items():
        flat = snapshot.flat
        for segment, own in zip(flat.segments, flat.opened, strict=True):
            name = f"{number:04d}/{segment.name}"
            segments.append(replace(segment, name=name))
            opened.append(replace(own, name=name, ids=joined(own.ids, number, shards)))
            if len(gone := own.ids[~among(own.ids, flat.ids)]):
                removed.append(joined(gone, number, shards))
    return FlatSearch(
        directory, segments, dim_of(catalog), bits, np.concatenate(removed), None, opened
    )


class _JoinedMoment(KeptMoment):
    """The second moment of all shards: the sum of theirs, which each keeps by itself."""

    def __init__(self, parts: Mapping[int, Store], snapshots: Mapping[int, Snapshot]) -> None:
        self._parts, self._snapshots = parts, snapshots

    def of(self, flat: FlatSearch, writing: Writing) -> SecondMoment:
        """Returns the second moment of the live vectors of all shards."""
        total = np.zeros((flat.dim, flat.dim), np.float32)
        for number, snapshot in self._snapshots.items():
            part = self._parts[number]
            lock = partial(part.writer.lock_at, snapshot.generation)
            total += part.moments.of(snapshot.flat, lock).total
        return SecondMoment(total, {}, np.empty(0, np.int64), 0.0).now_of(flat)


class _JoinedSides(KeptSides):
    """The figures of all shards, which each keeps by itself."""

    def __init__(
        self, parts: Mapping[int, Store], snapshots: Mapping[int, Snapshot], shards: int
    ) -> None:
        self._parts, self._snapshots, self._shards = parts, snapshots, shards

    def all_of(self, segments: Sequence[Segment], writing: Writing) -> list[Side]:
        """Returns those of the segments of all shards, in the order of the joined flat index."""
        return [
            replace(side, ids=joined(side.ids, number, self._shards))
            for number, snapshot in self._snapshots.items()
            for side in _sides(self._parts[number], snapshot)
        ]


def _sides(part: Store, snapshot: Snapshot) -> list[Side]:
    lock = partial(part.writer.lock_at, snapshot.generation)
    return part.beside.sides.all_of(snapshot.flat.segments, lock)


class JoinedSnapshots(Snapshots):
    """The snapshots of all shards: one is kept as long as no shard has another generation."""

    def __init__(
        self,
        directory: Path,
        catalog: JoinedCatalog,
        parts: Mapping[int, Store],
        lock_at: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        """Takes number -> shard, and what gives the right to write at a generation."""
        self._directory = directory
        self._catalog: JoinedCatalog = catalog
        self._parts = parts
        self._lock_at = lock_at
        self._searcher: Searcher | None = None
        self._opening = RLock()
        self._current: Snapshot | None = None

    def search_by(self, searcher: Searcher | None) -> None:
        """Lets `searcher` search the shards from now on; None: this process."""
        with self._opening:
            self._searcher = searcher
            self._current = None

    def drop(self) -> None:
        """Drops the current snapshot, and those of the shards."""
        with self._opening:
            super().drop()
            for part in self._parts.values():
                part.snapshots.drop()

    def close(self) -> None:
        """Lets go of the segments of all shards."""
        with self._opening:
            self._current = None
            for part in self._parts.values():
                part.snapshots.close()

    def _open(self) -> Snapshot:
        self._catalog.require_current()
        if not self._catalog.fingerprint.get("vectoriser"):  # when this was opened
            self._catalog.reload()
        snapshots = {}
        for number, part in self._parts.items():
            part.snapshots.refresh()
            snapshots[number] = part.snapshots.current
        lock = partial(self._lock_at, sum(s.generation for s in snapshots.values()))
        return JoinedSnapshot(
            self._directory,
            self._catalog,
            self._parts,
            snapshots,
            lock,
            self._searcher,
        )

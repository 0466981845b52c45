"""Compaction: segments without what was removed, few instead of many.

Nothing here deletes what counts. A step is a new segment file, then one transaction that puts it in
the place of old ones, then the deletion of their files: killed anywhere, the index is as it was
before the step or after it, and files that count for nothing are swept by the next run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from forvalue_index.records import Progress, Segment
from forvalue_index.search.ann_files import readable_infos
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.segment import write_codes
from forvalue_index.store.derived import remake
from forvalue_index.store.join import new_name, put_in_place, require_sound, retained_energy
from forvalue_index.store.layout import DERIVED, SEGMENTS, size, storing
from forvalue_index.store.store import Store
from forvalue_index.vectors.codes import Codes

TARGET = 32 * 2**20
"""Bytes of vectors in a segment that compaction makes; one of less than half of it is small."""


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What a compaction did."""

    removed: int  # samples of which nothing is left on disk now
    rewritten: int  # segments that were replaced
    segments: int  # there are now
    bytes_before: int  # of all files
    bytes_after: int


def compact(store: Store, progress: Progress | None = None) -> CompactReport:
    """Rewrites segments without what was removed, merges small ones, and deletes removed rows.

    `progress` is called with "compacting", segments done, segments to rewrite, and 0.

    Readers go on: they have the old files open, and find the new ones when they look again. What
    is derived and out of date is made again.

    Raises:
        LockedError: another process is writing, or reading for too long.
        CorruptIndexError: a segment is not what was committed; those before it are done.
        StorageError: the disk is full; the index is as it was before the segment in hand.
    """
    with store.writer.lock():
        store.snapshots.refresh()
        flat, before = store.snapshots.current.flat, size(store.directory)
        removed = len(store.catalog.removed_ids())
        derived = readable_infos(store.directory / DERIVED)
        moment = store.moments.take(flat)  # while the vectors that leave it are still there
        groups = _groups(store)
        done, total = 0, sum(map(len, groups))
        for group in groups:
            _rewrite(store, flat, group)
            done += len(group)
            if progress is not None:
                progress("compacting", done, total, 0)
        store.writer.sweep()
        store.snapshots.refresh()
        with storing(store.directory):
            store.put_missing_parts()
        for info in derived:
            remake(store, info)
        if moment is not None:
            with storing(store.directory):
                store.moments.put(moment, store.snapshots.current.flat)
        store.catalog.vacuum()
        return CompactReport(
            removed, total, len(store.catalog.segments()), before, size(store.directory)
        )


def total(reports: Sequence[CompactReport]) -> CompactReport:
    """Returns what several compactions did."""
    return CompactReport(*map(sum, zip(*map(astuple, reports), strict=True)))


def _groups(store: Store) -> list[list[Segment]]:
    """Returns the segments that are rewritten into one each."""
    segments = {segment.name: segment for segment in store.catalog.segments()}
    sizes = {
        name: (segment.ntotal, len(store.catalog.live_ids(name)))
        for name, segment in segments.items()
    }
    target = max(1, TARGET // Codes(max(store.dim, 1), store.bits).size)
    return [[segments[name] for name in group] for group in plan(sizes, target)]


def plan(segments: dict[str, tuple[int, int]], target: int) -> list[list[str]]:
    """Returns the names of the segments that are rewritten into one each, in their order.

    Args:
        segments: name -> vectors, and how many of them are live.
        target: vectors that a segment should hold, about.
    """
    groups: list[list[str]] = []
    group: list[str] = []
    held = 0
    for name, (ntotal, live) in segments.items():
        if live == ntotal and 2 * live >= target:
            continue
        if group and held + live > target:
            groups.append(group)
            group, held = [], 0
        group.append(name)
        held += live
    groups.append(group)
    # One small segment alone, with all its vectors live, is as it would be.
    return [g for g in groups if len(g) > 1 or any(segments[n][0] != segments[n][1] for n in g)]


def _rewrite(store: Store, flat: FlatSearch, old: Sequence[Segment]) -> None:
    """Puts one new segment in the place of `old`, then deletes their files."""
    folder, catalog = store.directory / SEGMENTS, store.catalog
    require_sound(folder, catalog, old, store.dim, store.bits)
    parts = [catalog.live_ids(segment.name) for segment in old]
    ids = np.sort(np.concatenate(parts))
    new = None
    if len(ids):
        with storing(store.directory):
            new = write_codes(folder, new_name(catalog, ids), ids, flat.data(ids), flat.codes)
            store.beside.states.put_some(new, old, ids)
    energy = retained_energy(catalog, old, [len(part) for part in parts])
    put_in_place(folder, catalog, old, new, energy, joined=False)

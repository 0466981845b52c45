"""Keeps a store sound and small: what is wrong with it, repair, compaction.

Nothing here deletes what counts. A step is a new segment file, then one transaction that puts it in
the place of old ones, then the deletion of their files: killed anywhere, the index is as it was
before the step or after it, and files that count for nothing are swept by the next run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from forvalue_index.catalog.lock import was_interrupted
from forvalue_index.errors import CorruptIndexError, ForvalueError, InputError, LockedError
from forvalue_index.metric import METRICS, Metric
from forvalue_index.records import Progress, Segment
from forvalue_index.search.ann import (
    DerivedInfo,
    derived_names,
    open_derived,
    read_info,
    remove_derived,
)
from forvalue_index.search.ann_build import Progress as Making
from forvalue_index.search.ann_build import extend_derived, make_derived
from forvalue_index.search.decorrelate import MOMENT
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.segment import SUFFIX, verify_segment, write_codes
from forvalue_index.store.layout import DERIVED, SEGMENTS, size, storing
from forvalue_index.store.store import Store
from forvalue_index.system.files import path_in, sync_folder
from forvalue_index.vectors.codes import Codes

TARGET = 32 * 2**20
"""Bytes of vectors in a segment that compaction makes; one of less than half of it is small."""

UNCOVERED = 0.1
"""Share of the samples that a derived index may lack before `add` extends it."""


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What a compaction did."""

    removed: int  # samples of which nothing is left on disk now
    rewritten: int  # segments that were replaced
    segments: int  # there are now
    bytes_before: int  # of all files
    bytes_after: int


# -- compaction --------------------------------------------------------------------------------


def compact(store: Store, progress: Progress | None = None) -> CompactReport:
    """Rewrites segments without what was removed, merges small ones, and deletes removed rows.

    Readers go on: they have the old files open, and find the new ones when they look again. What
    is derived and out of date is made again.

    Raises:
        LockedError: another process is writing, or reading for too long.
        CorruptIndexError: a segment is not what was committed; those before it are done.
        StorageError: the disk is full; the index is as it was before the segment in hand.
    """
    with store.lock():
        store.refresh()
        flat, before = store.flat, size(store.directory)
        removed, derived = len(store.catalog.removed_ids()), store.derived()
        segments = {segment.name: segment for segment in store.catalog.segments()}
        live = {name: len(store.catalog.live_ids(name)) for name in segments}
        sizes = {name: (segments[name].ntotal, live[name]) for name in segments}
        groups = plan(sizes, max(1, TARGET // Codes(max(store.dim, 1), store.bits).size))
        moment = store.moments.take(flat)  # while the vectors that leave it are still there
        done, total = 0, sum(map(len, groups))
        for group in groups:
            _rewrite(store, flat, [segments[name] for name in group])
            done += len(group)
            if progress is not None:
                progress("compacting", done, total, 0)
        store.sweep()
        store.refresh()
        for info in derived:
            _remake(store, info)
        if moment is not None:
            with storing(store.directory):
                store.moments.put(moment, store.flat)
        store.catalog.vacuum()
        return CompactReport(
            removed, total, len(store.catalog.segments()), before, size(store.directory)
        )


def plan(segments: dict[str, tuple[int, int]], target: int) -> list[list[str]]:
    """The segments that are rewritten into one each, in their order.

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
    for segment in old:  # a new checksum must not make damage look sound
        ids = catalog.segment_ids(segment.name)
        for problem in verify_segment(folder, segment, store.dim, ids, store.bits):
            raise CorruptIndexError(f"{problem}: none of it was compacted")
    parts = [catalog.live_ids(segment.name) for segment in old]
    ids = np.sort(np.concatenate(parts))
    new = None
    if len(ids):
        # No committed segment ever had this name: the generation grows with every commit.
        name = f"{ids[0]:012d}-{catalog.generation() + 1}.faiss"
        with storing(store.directory):
            new = write_codes(folder, name, ids, flat.data(ids), flat.codes)
    retained = catalog.retained_energy()
    shares = [(retained[s.name], len(p)) for s, p in zip(old, parts, strict=True) if len(p)]
    energy = sum(share * n for share, n in shares) / len(ids) if len(ids) else None
    catalog.replace_segments([segment.name for segment in old], new, retained_energy=energy)
    for segment in old:
        path_in(folder, segment.name, SUFFIX).unlink(missing_ok=True)
    sync_folder(folder)


# -- what is derived ---------------------------------------------------------------------------


def optimize(
    store: Store, factory: str, metric: Metric, progress: Making | None = None
) -> DerivedInfo:
    """Returns what was made: a derived FAISS index over all samples, for one metric.

    Raises:
        InputError: FAISS does not know the factory, or there are too few samples for it.
        LockedError: another process is writing to the index.
        StorageError: the disk is full.
    """
    with store.lock(), storing(store.directory):
        store.refresh()
        info = make_derived(
            store.directory / DERIVED,
            store.flat,
            factory,
            name=metric.name,
            metric=metric.name,
            weights=store.view.weights(metric),
            generation=store.catalog.generation(),
            progress=progress,
        )
        store.reopen()
        return info


def extend(store: Store) -> None:
    """Adds newer samples to each derived index of which they are over a tenth, untrained.

    The writer's lock is held by the caller. One that is damaged or out of date stays as it is.
    """
    folder = store.directory / DERIVED
    for info in store.derived():
        weights = store.view.weights(METRICS[info.metric])
        with suppress(CorruptIndexError):
            found = open_derived(folder, store.flat, info.name, weights=weights)
            if found.uncovered > UNCOVERED:
                extend_derived(
                    folder,
                    store.flat,
                    info.name,
                    weights=weights,
                    generation=store.catalog.generation(),
                )


def _remake(store: Store, info: DerivedInfo) -> None:
    """Makes a derived index again, if it does not fit the segments; it goes if it cannot be."""
    folder, weights = store.directory / DERIVED, store.view.weights(METRICS[info.metric])
    try:
        open_derived(folder, store.flat, info.name, weights=weights)
        return
    except ForvalueError:
        remove_derived(folder, info.name)
    try:
        with storing(store.directory):
            make_derived(
                folder,
                store.flat,
                info.factory,
                name=info.name,
                metric=info.metric,
                weights=weights,
                generation=store.catalog.generation(),
                target=info.target,
                seed=info.seed,
            )
    except InputError:  # too few vectors are left for it
        remove_derived(folder, info.name)


# -- verification ------------------------------------------------------------------------------


def verify(store: Store) -> list[str]:
    """Returns what is wrong with a store, a line each; nothing if all is well.

    Everything is read whole: every segment (hash, vectors, ids against the catalogue), every row
    (checksum), their numbers, the vectoriser, what is derived, and which files count for nothing.
    """
    while True:
        before = _generation(store)
        problems = [*_problems(store), *_stray(store)]
        if not problems or _generation(store) == before:
            return list(dict.fromkeys(problems))


def repair(store: Store) -> list[str]:
    """Returns what was done, a line each: stray files removed, derived indexes made again.

    What counts is never touched; `verify` says what is still wrong.

    Raises:
        LockedError: another process is writing.
    """
    with store.lock():
        done = [f"removed {path}, which was never committed" for path in store.sweep()]
        folder = store.directory / DERIVED
        for name in derived_names(folder):
            if _derived_problem(store, name) is None:
                continue
            try:
                info = read_info(folder, name)
            except CorruptIndexError:
                remove_derived(folder, name)
                done.append(f"removed {folder / name}, which could not be read")
            else:
                _remake(store, info)
                done.append(f"rebuilt the derived index {name}")
        with suppress(ForvalueError):  # of damaged segments nothing is known
            if store.moments.problem(store.flat):
                store.moments.drop()
                done.append(f"removed {folder / MOMENT}, which was damaged or out of date")
        return done


def _generation(store: Store) -> int | None:
    """The generation of a store whose catalogue can be read; None if it cannot."""
    try:
        return store.catalog.generation()
    except CorruptIndexError:
        return None


def _problems(store: Store) -> Iterator[str]:
    folder, catalog = store.directory / SEGMENTS, store.catalog
    yield from catalog.check()
    try:
        catalog.snapshot()
    except CorruptIndexError as error:
        yield str(error)
    sound = True
    try:
        for segment in catalog.segments():
            ids = catalog.segment_ids(segment.name)
            for problem in verify_segment(folder, segment, store.dim, ids, store.bits):
                sound = False
                yield problem
    except CorruptIndexError as error:
        sound = False
        yield str(error)
    if store.fitted:
        try:
            store.vectoriser_bytes()
        except CorruptIndexError as error:
            yield str(error)
    if sound:
        for name in derived_names(store.directory / DERIVED):
            yield from filter(None, [_derived_problem(store, name)])
        with suppress(CorruptIndexError):  # which was said above
            store.refresh()
            yield from filter(None, [store.moments.problem(store.flat)])


def _derived_problem(store: Store, name: str) -> str | None:
    folder = store.directory / DERIVED
    try:
        store.refresh()
        weights = store.view.weights(METRICS[read_info(folder, name).metric])
        open_derived(folder, store.flat, name, weights=weights)
    except ForvalueError as error:
        return str(error)
    return None


def _stray(store: Store) -> list[str]:
    """The files that count for nothing, unless a writer at work or one that was killed has them."""
    try:
        if not store.orphans():
            return []
    except CorruptIndexError:  # nobody knows which files count
        return []
    try:
        if was_interrupted(store.directory):
            return []  # the next writer begins with their removal
    except LockedError:
        return []
    return [
        f"{path} was never committed: forvalue verify --repair removes it"
        for path in store.orphans()
    ]

"""The rows of a sharded index dealt out to another number of shards, without a forward pass.

    old shards, locked -> rows and codes, in the order of their ids -> new shards, beside the old
    -> one manifest, which names the new ones -> the old are deleted

Until the manifest is written, the index is the old one, and readers use it. Killed before, the next
call continues; if the old shards were written to in between, it begins again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from forvalue_index.errors import InputError
from forvalue_index.records import Progress, StoredSample
from forvalue_index.search.state import StateCodes
from forvalue_index.shards.store import ShardedStore, open_or_create_shard, open_shards
from forvalue_index.store.layout import is_index, storing
from forvalue_index.store.manifest import (
    MOST,
    SHARDS,
    Manifest,
    shard_directory,
    shard_of,
    shards_folder,
    write_manifest,
)
from forvalue_index.store.snapshot import Snapshot
from forvalue_index.store.store import Store
from forvalue_index.system.files import atomic_write
from forvalue_index.vectors.codes import Bytes

PAGE = 1000
"""Rows that are read, or written to a shard, at a time."""
_FROM = "from.json"
"""What unfinished new shards were made of: the state of the old ones."""


def reshard(directory: Path, shards: int, progress: Progress | None = None) -> int:
    """Deals out the rows to so many shards; returns how many rows there are.

    Ids change. Derived indexes are not taken along: `optimize` makes them again.

    Args:
        directory: of the sharded index.
        shards: how many there will be.
        progress: called with "copying", rows done, rows in all, and 0.

    Raises:
        IndexMissingError: there is no index, or shards of it are missing.
        InputError: the number of shards is none.
        LockedError: another process is writing to the index.
        CorruptIndexError: a row or a vector is not what was committed.
        StorageError: the disk is full; the index is as it was, and the next call continues.
    """
    if not 1 <= shards <= MOST:
        raise InputError(f"an index has 1 to {MOST} shards, not {shards}")
    with closing(open_shards(directory)) as store, store.writer.lock():
        old = store.catalog.manifest
        _sweep(directory, old)
        if old.shards == shards:
            return len(store)
        new = replace(old, shards=shards, attached=tuple(range(shards)), dealt=old.dealt + 1)
        with ExitStack() as opened, storing(directory):
            targets = [opened.enter_context(closing(part)) for part in _targets(store, old, new)]
            for part in targets:
                opened.enter_context(part.writer.lock())
            rows = _copy(store.snapshots.current, targets, _retained(store), progress)
        with storing(directory):
            (shards_folder(directory, new.dealt) / _FROM).unlink()
            write_manifest(directory, new)
            _sweep(directory, new)
        return rows


def _targets(store: ShardedStore, old: Manifest, new: Manifest) -> Iterator[Store]:
    """Yields the new shards: empty ones, or those that an interrupted call left."""
    directory, folder = store.directory, shards_folder(store.directory, new.dealt)
    state = json.dumps([new.shards, [part.catalog.generation() for part in store.shards]])
    kept = folder / _FROM
    if not kept.is_file() or kept.read_text() != state:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with atomic_write(kept, text=True) as file:
            file.write(state)
    waiting = replace(new, attached=())
    for number in range(new.shards):
        if not is_index(shard_directory(directory, new, number)):
            shutil.rmtree(shard_directory(directory, new, number), ignore_errors=True)
        yield open_or_create_shard(directory, number, waiting)


def _copy(
    snapshot: Snapshot, targets: Sequence[Store], retained: float | None, progress: Progress | None
) -> int:
    """Copies all rows with their codes to the shards of their keys; returns how many."""
    waiting: list[list[tuple[StoredSample, Bytes, StateCodes | None]]] = [[] for _ in targets]
    states = snapshot.states

    def commit(number: int) -> None:
        part, rows = targets[number], waiting[number]
        known = part.catalog.known([row[0].key for row in rows])
        rows = [row for row in rows if row[0].key not in known]
        if rows:
            samples, data, codes = zip(*rows, strict=True)
            kept = None if states is None else np.stack(codes)
            part.writer.copy(samples, np.stack(data), retained, kept)
        waiting[number] = []

    ids, done = snapshot.ids, 0
    for start in range(0, len(ids), PAGE):
        block = ids[start : start + PAGE]
        samples = snapshot.samples(block.tolist()).values()
        own = [None] * len(block) if states is None else states.codes(block)
        for row in zip(samples, snapshot.flat.data(block), own, strict=True):
            number = shard_of(row[0].key, len(targets))
            waiting[number].append(row)
            if len(waiting[number]) == PAGE:
                commit(number)
        done += len(block)
        if progress is not None:
            progress("copying", done, len(ids), 0)
    for number in range(len(targets)):
        commit(number)
    return len(ids)


def _retained(store: ShardedStore) -> float | None:
    """Returns the mean share of energy that the segments kept; None: it is not known."""
    shares = list(store.catalog.retained_energy().values())
    return float(np.mean(shares)) if shares else None


def _sweep(directory: Path, manifest: Manifest) -> None:
    """Deletes shards that were replaced, and unfinished ones that are older than the next."""
    wanted = {shards_folder(directory, manifest.dealt + more).name for more in (0, 1)}
    for path in directory.glob(f"{SHARDS}*"):
        numbered = path.name == SHARDS or path.name.removeprefix(f"{SHARDS}-").isdecimal()
        if numbered and path.is_dir() and not path.is_symlink() and path.name not in wanted:
            shutil.rmtree(path)

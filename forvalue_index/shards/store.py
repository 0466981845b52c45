"""A sharded index as a `Store`: what is asked of one index is asked of its shards.

A shard is an ordinary index that knows only which one it is. Keys decide where a row is
(`store/manifest.py`), ids are made unique (`ids.py`), one moment of all shards is joined
(`snapshot.py`), and changes go to the shards that they concern (`writer.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from forvalue_index.catalog.catalog import MEASURED
from forvalue_index.config import IndexConfig
from forvalue_index.errors import CorruptIndexError, ForvalueError, IndexMissingError, InputError
from forvalue_index.shards.catalog import JoinedCatalog
from forvalue_index.shards.snapshot import JoinedSnapshots
from forvalue_index.shards.writer import JoinedWriter, teach
from forvalue_index.store.layout import discard, files, is_index, require_empty, storing
from forvalue_index.store.manifest import (
    MOST,
    SHARD,
    SHARDS,
    Manifest,
    is_sharded,
    read_manifest,
    shard_directory,
    write_manifest,
)
from forvalue_index.store.store import Store

log = logging.getLogger(__name__)


class ShardedStore(Store):
    """All shards of an index, as one store. Close it after use."""

    def __init__(self, directory: Path, parts: dict[int, Store]) -> None:
        """`create` and `open_store` are the ways to get one."""
        self.directory = directory
        self._parts = parts
        catalog = JoinedCatalog(directory, parts)
        self.catalog: JoinedCatalog = catalog
        self.config = IndexConfig.from_json(catalog.config)
        self.writer = JoinedWriter(directory, catalog, parts)
        self.snapshots: JoinedSnapshots = JoinedSnapshots(
            directory, catalog, parts, self.writer.lock_at
        )

    @property
    def shards(self) -> list[Store]:
        """The shards that are there."""
        return list(self._parts.values())

    @property
    def numbers(self) -> list[int]:
        """The numbers of the shards that are there."""
        return list(self._parts)

    def set_vectoriser(self, data: bytes, figures: dict[str, Any]) -> None:
        """Keeps what the first rows taught, with the manifest and in each shard.

        The manifest is first: shards that lack it get it with the next lock.
        """
        super().set_vectoriser(data, figures)
        for part in self.shards:
            part.set_vectoriser(data, figures)

    def destroy(self, *, itself: bool) -> None:
        """Deletes an index that was created and never filled; `itself`: the directory too.

        Raises:
            LockedError: another process is writing to it.
        """
        with self.writer.lock():
            if self.catalog.segments():
                return
            self.close()
            discard(self.directory, itself=itself)

    def info(self) -> dict[str, Any]:
        """Returns what is kept and what it was made with, as JSON values."""
        self.catalog.require_current()
        each = [part.info() for part in self.shards]
        sums = ("samples", "removed", "segments", "bytes", "vector_bytes")
        derived: dict[str, Any] = {}
        for item in (item for own in each for item in own["derived"]):
            known = derived.setdefault(item["name"], item)
            if item["proponents"]["recall_at_10"] < known["proponents"]["recall_at_10"]:
                derived[item["name"]] = item
        return each[0] | {
            "directory": str(self.directory),
            "shards": self.catalog.manifest.shards,
            "missing_shards": sorted(set(range(self.catalog.manifest.shards)) - set(self._parts)),
            **{name: sum(own[name] for own in each) for name in sums},
            "fidelity": self.fingerprint.get(MEASURED),
            "retained_energy": self.catalog.retained_energy(),
            "derived": list(derived.values()),
            "catalog": self.catalog.place,
        }


def create(
    directory: Path,
    config: IndexConfig,
    fingerprint: dict[str, Any],
    shards: int,
    made: Iterable[int] | None = None,
) -> ShardedStore:
    """Returns a new, empty index of several shards in `directory`.

    The manifest is written before the shards, and says at last that they are there.

    Args:
        directory: not there yet, or empty, or what an interrupted `create` left.
        config: what the index is made with.
        fingerprint: as much of it as is known before the first rows.
        shards: how many.
        made: those that are made now; default: all.

    Raises:
        IndexMissingError: `directory` is not empty.
        InputError: the number of shards is none.
        StorageError: the directory cannot be written.
    """
    if not 1 <= shards <= MOST:
        raise InputError(f"an index has 1 to {MOST} shards, not {shards}")
    require_empty(directory)
    existed = directory.exists()
    numbers = list(range(shards) if made is None else made)
    try:
        with storing(directory):
            if existed:
                discard(directory, itself=False)  # what an interrupted creation left
            (directory / SHARDS).mkdir(parents=True)
            manifest = Manifest(shards, (), config.to_json(), fingerprint)
            write_manifest(directory, manifest)
        for number in numbers:
            open_or_create_shard(directory, number).close()
        with storing(directory):
            write_manifest(directory, replace(manifest, attached=tuple(numbers)))
        return ShardedStore(
            directory, {n: open_shard(directory, read_manifest(directory), n) for n in numbers}
        )
    except BaseException:
        discard(directory, itself=not existed)
        raise


def open_or_create_shard(directory: Path, number: int, manifest: Manifest | None = None) -> Store:
    """Returns a shard of the index in `directory`, also where it is not attached yet.

    `manifest` is the one to go by, if not the one there.

    Raises:
        CorruptIndexError: another index is in its place.
        IndexMissingError: it is attached, but not there.
        StorageError: the directory cannot be written.
    """
    manifest = manifest or read_manifest(directory)
    path = shard_directory(directory, manifest, number)
    if number in manifest.attached or is_index(path):
        part = open_shard(directory, manifest, number)
    else:
        config = IndexConfig.from_json(manifest.config)
        made_with = {name: v for name, v in manifest.fingerprint.items() if name != "vectoriser"}
        part = Store.create(path, config, made_with | {SHARD: f"{number}/{manifest.shards}"})
    if "vectoriser" in manifest.fingerprint and not part.fitted:
        with part.writer.lock():
            teach(part, directory, JoinedCatalog(directory, {}))
    return part


def open_store(directory: str | Path, *, partial: bool = False) -> Store:
    """Returns the store in `directory`, of one index or of all its shards.

    Args:
        directory: of the index.
        partial: open those shards that can be, with a warning that names the others.

    Raises:
        IndexMissingError: there is no index, or it is not whole.
        SchemaError: it was written by another version of this package.
        CorruptIndexError: it was changed.
    """
    path = Path(directory)
    if is_sharded(path):
        return open_shards(path, partial=partial)
    return Store.open(path)


def open_shards(directory: Path, *, partial: bool = False) -> ShardedStore:
    """Returns the sharded index in `directory`; see `open_store`."""
    files(directory)  # checks that no link is among them
    manifest = read_manifest(directory)
    parts, missing = dict[int, Store](), dict[int, str]()
    try:
        for number in range(manifest.shards):
            try:
                if number not in manifest.attached:
                    raise IndexMissingError(
                        f"shard {number} of {manifest.shards} is not attached to {directory}: "
                        f"build it with forvalue build --shard {number}/{manifest.shards}, then "
                        "run forvalue attach"
                    )
                parts[number] = open_shard(directory, manifest, number)
            except ForvalueError as error:
                if not partial:
                    raise
                missing[number] = str(error)
        if not parts:
            raise IndexMissingError(
                f"{directory} has no shard that can be opened; the first: {missing[0]}"
            )
    except BaseException:
        for part in parts.values():
            part.close()
        raise
    for number, reason in missing.items():
        log.warning("answering without shard %d of %d: %s", number, manifest.shards, reason)
    return ShardedStore(directory, parts)


def open_shard(directory: Path, manifest: Manifest, number: int) -> Store:
    """Returns a shard of a sharded index, after a check that it is that one.

    Raises:
        IndexMissingError: it is not there.
        CorruptIndexError: it is another shard, or of another index.
    """
    path = shard_directory(directory, manifest, number)
    part = Store.open(path)
    wanted = manifest.fingerprint | {SHARD: f"{number}/{manifest.shards}"}
    found = part.fingerprint
    # A shard that has learned nothing yet gets the vectoriser with the next lock.
    names = {*found, SHARD} if not part.fitted else {*found, *wanted}
    differing = sorted(n for n in names - {MEASURED} if found.get(n) != wanted.get(n))
    if differing or part.config != IndexConfig.from_json(manifest.config):
        part.close()
        raise CorruptIndexError(
            f"{path} is not shard {number} of {manifest.shards} of this index "
            f"(what differs: {', '.join(differing) or 'settings'}): put the right one there"
        )
    return part

"""Shards that were built by themselves become parts of their index."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from forvalue_index.catalog.lock import FILE as LOCK
from forvalue_index.catalog.lock import WriterLock
from forvalue_index.errors import IndexMissingError, InputError
from forvalue_index.shards.store import open_shard
from forvalue_index.store.layout import is_index, storing
from forvalue_index.store.manifest import (
    Manifest,
    is_sharded,
    read_manifest,
    shard_directory,
    write_manifest,
)

_COPY = ".copying"


def attach(directory: Path, sources: Iterable[Path] = ()) -> Manifest:
    """Makes all shards that are there a part of the index in `directory`; returns its manifest.

    Args:
        directory: of the sharded index.
        sources: copies of it elsewhere, such as on the disks of other machines, that have shards
            which it lacks: these are copied first.

    Raises:
        InputError: a source is of another index, or has none of the shards that are missing.
        IndexMissingError: a directory holds no sharded index.
        CorruptIndexError: a shard is not what its place says.
        LockedError: another process is writing to the index, or to a shard.
        StorageError: the disk is full.
    """
    own = manifest_of(directory)
    with storing(directory), WriterLock(directory):
        for source in sources:
            if not _copy(source, directory, own):
                way = f"and it lacks none: leave out {source}"
                if own.missing:
                    way = f"but it lacks shards {own.missing}: build them there, or leave it out"
                raise InputError(f"{source} has no shard that {directory} lacks, {way}")
        there = [n for n in own.missing if is_index(shard_directory(directory, own, n))]
        for number in there:
            open_shard(directory, own, number).close()
        manifest = replace(own, attached=tuple(sorted({*own.attached, *there})))
        write_manifest(directory, manifest)
    return manifest


def manifest_of(directory: Path) -> Manifest:
    """Returns the manifest of a directory that must hold a sharded index.

    Raises:
        IndexMissingError: it holds none.
        CorruptIndexError: it cannot be read.
    """
    if not is_sharded(directory):
        raise IndexMissingError(
            f"{directory} is not an index of shards: make one with forvalue learn"
        )
    return read_manifest(directory)


def _copy(source: Path, directory: Path, own: Manifest) -> int:
    """Copies the shards that are missing; returns how many there were."""
    found, copied = manifest_of(source), 0
    if replace(found, attached=()) != replace(own, attached=()):
        raise InputError(
            f"{source} was not made from {directory}: copy {directory} after forvalue learn, and "
            "build shards in the copy"
        )
    for number in own.missing:
        old = shard_directory(source, found, number)
        new = shard_directory(directory, own, number)
        if not is_index(old) or is_index(new):
            continue
        with closing(open_shard(source, found, number)) as part, part.writer.lock():
            part.catalog.close()  # empties SQLite's log into its file
            copy = new.with_suffix(_COPY)
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(old, copy, symlinks=True, ignore=lambda *_: [LOCK])
            shutil.rmtree(new, ignore_errors=True)
            copy.rename(new)
        copied += 1
    return copied

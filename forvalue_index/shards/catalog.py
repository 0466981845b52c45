"""The catalogues of all shards as one: by key or id, from the shard that has it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.errors import IndexMissingError, InputError
from forvalue_index.records import Figures, Segment, StoredSample
from forvalue_index.shards.ids import joined, split
from forvalue_index.store.layout import storing
from forvalue_index.store.manifest import (
    MANIFEST,
    Manifest,
    read_manifest,
    shard_of,
    write_manifest,
)
from forvalue_index.store.store import Store


class JoinedCatalog(Catalog):
    """What a catalogue answers, of all shards that are there. Config and fingerprint are one.

    What it is asked raises IndexMissingError once the rows were dealt out to other shards.
    """

    def __init__(self, directory: Path, parts: dict[int, Store]) -> None:
        """Takes the directory of the manifest, and number -> shard."""
        self._directory = directory
        self._parts = parts
        self._opened = {number: part.catalog for number, part in parts.items()}
        self._dealt: int | None = None  # not read yet
        self._read()

    def _read(self) -> None:
        seen, manifest = self._state(), read_manifest(self._directory)
        if self._dealt not in (None, manifest.dealt):
            raise IndexMissingError(
                f"{self._directory} has {manifest.shards} shards now: open it again, and start "
                "servers of it again"
            )
        self._seen, self._dealt = seen, manifest.dealt
        self.manifest: Manifest = manifest
        self.config = manifest.config
        self.fingerprint = manifest.fingerprint
        self._n = manifest.shards

    def _state(self) -> tuple[int, int]:
        try:
            found = (self._directory / MANIFEST).stat()
        except OSError as error:
            raise IndexMissingError(
                f"{self._directory} is no index of shards any more ({error.strerror or error}): "
                "was it moved or deleted?"
            ) from error
        return found.st_mtime_ns, found.st_ino

    def require_current(self) -> None:
        """Checks that the shards are still those that were opened.

        Raises:
            IndexMissingError: the rows were dealt out to others meanwhile, or the index is gone.
        """
        if self._state() != self._seen:
            self._read()

    @property
    def _catalogs(self) -> dict[int, Catalog]:
        """Number -> the catalogue of that shard; raises as `require_current`."""
        self.require_current()
        return self._opened

    def reload(self) -> None:
        """Reads the manifest again, and the fingerprints of the shards."""
        self._read()
        for catalog in self._opened.values():
            catalog.reload()

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self._n} shards in {self._directory}"

    def close(self) -> None:
        """Closes the shards' catalogues."""
        for catalog in self._opened.values():
            catalog.close()

    def set_fingerprint(self, fingerprint: dict[str, Any]) -> None:
        """Replaces the fingerprint that all shards share. The caller holds the lock.

        Raises:
            StorageError: the disk is full.
        """
        self.set_manifest(replace(self.manifest, fingerprint=fingerprint))

    def set_manifest(self, manifest: Manifest) -> None:
        """Writes another manifest. The caller holds the lock.

        Raises:
            StorageError: the disk is full.
        """
        with storing(self._directory):
            write_manifest(self._directory, manifest)
        self._read()

    # -- sums and lists ------------------------------------------------------------------------

    def generation(self) -> int:
        """Returns the sum of the shards' generations: it grows with every committed change."""
        return sum(catalog.generation() for catalog in self._catalogs.values())

    def count(self) -> int:
        """Returns the number of live samples."""
        return sum(catalog.count() for catalog in self._catalogs.values())

    def segments(self) -> list[Segment]:
        """Returns the segments of all shards, each named with its shard."""
        return [
            replace(segment, name=f"{number:04d}/{segment.name}")
            for number, catalog in self._catalogs.items()
            for segment in catalog.segments()
        ]

    def retained_energy(self) -> dict[str, float]:
        """Returns segment name -> share of energy, as `Catalog.retained_energy`."""
        return {
            f"{number:04d}/{name}": share
            for number, catalog in self._catalogs.items()
            for name, share in catalog.retained_energy().items()
        }

    def removed_ids(self) -> NDArray[np.int64]:
        """Returns the ids of all tombstones, ascending [n]."""
        return self._merged(lambda catalog: catalog.removed_ids())

    def figures(self) -> Figures:
        """Returns the numbers kept beside all live samples, in the order of their ids."""
        found = {number: catalog.figures() for number, catalog in self._catalogs.items()}
        ids = [joined(own.ids, number, self._n) for number, own in found.items()]
        order = np.argsort(np.concatenate(ids), kind="stable")

        def merged(values: list[NDArray[Any]]) -> NDArray[Any]:
            return np.concatenate(values)[order]

        every = list(found.values())
        return Figures(
            merged(ids),
            merged([own.norm for own in every]),
            merged([own.n_scored for own in every]),
            merged([own.loss for own in every]),
        )

    # -- rows ----------------------------------------------------------------------------------

    def known(self, keys: Iterable[str]) -> dict[str, str]:
        """Returns key -> content hash, for those of `keys` that are live."""
        found: dict[str, str] = {}
        for number, own in self._by_shard(keys).items():
            found |= self._shard(number).known(own)
        return found

    def ids_of(self, keys: Iterable[str]) -> dict[str, int]:
        """Returns key -> id, for those of `keys` that are live."""
        return {
            key: id * self._n + number
            for number, own in self._by_shard(keys).items()
            for key, id in self._shard(number).ids_of(own).items()
        }

    def keys_from(self, start: str, limit: int) -> list[str]:
        """Returns live keys that begin with a text, at most `limit`."""
        parts = [part.keys_from(start, limit) for part in self._catalogs.values()]
        return [key for part in parts for key in part][:limit]

    def samples(self, ids: Iterable[int]) -> dict[int, StoredSample]:
        """Returns id -> sample, in the order of the ids; as `Catalog.samples`.

        Raises:
            CorruptIndexError: an id has no row, or a row is not what was committed.
        """
        wanted = np.fromiter(dict.fromkeys(int(id) for id in ids), np.int64)
        found: dict[int, StoredSample] = {}
        for number, _, own in split(wanted, self._n):
            for sample in self._shard(number).samples(own.tolist()).values():
                moved = self._moved(sample, number)
                found[moved.id] = moved
        return {id: found[id] for id in wanted.tolist()}

    def iterate(self, after: int = -1, page: int = 1000) -> Iterator[StoredSample]:
        """Yields the live samples with ids above `after`, in the order of their ids."""

        def of(number: int, catalog: Catalog) -> Iterator[StoredSample]:
            for sample in catalog.iterate((after - number) // self._n, page):
                yield self._moved(sample, number)

        each = (of(number, catalog) for number, catalog in self._catalogs.items())
        return heapq.merge(*each, key=lambda sample: sample.id)

    def require_intact(self) -> None:
        """Checks the rows of all shards; see `Catalog.require_intact`."""
        for catalog in self._catalogs.values():
            catalog.require_intact()

    def fields(self) -> list[str]:
        """Returns the names of the fields of the first samples of each shard."""
        each = (catalog.fields() for catalog in self._catalogs.values())
        return list(dict.fromkeys(name for names in each for name in names))

    def remove_ids(self, ids: Iterable[int]) -> NDArray[np.int64]:
        """Removes samples by id, in a transaction for each shard; returns those that were live."""
        wanted, gone = np.fromiter(ids, np.int64), [np.empty(0, np.int64)]
        for number, _, own in split(wanted, self._n):
            removed = self._shard(number).remove_ids(own.tolist())
            gone.append(joined(removed, number, self._n))
        return np.sort(np.concatenate(gone))

    def remove(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """Removes samples by key, in a transaction for each shard; returns the ids removed."""
        return self.remove_ids(self.ids_of(keys).values())

    # ------------------------------------------------------------------------------------------

    def _by_shard(self, keys: Iterable[str]) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for key in keys:
            found.setdefault(shard_of(key, self._n), []).append(key)
        return found

    def _shard(self, number: int) -> Catalog:
        """Returns the catalogue of a shard.

        Raises:
            InputError: the shard is not there, and the index was opened without it.
        """
        catalogs = self._catalogs
        if number not in catalogs:
            raise InputError(
                f"shard {number} of {self._n} is missing, which would have this row: put it back, "
                "or build it again"
            )
        return catalogs[number]

    def _moved(self, sample: StoredSample, number: int) -> StoredSample:
        return replace(sample, id=sample.id * self._n + number)

    def _merged(self, of: Callable[[Catalog], NDArray[np.int64]]) -> NDArray[np.int64]:
        ids = [joined(of(catalog), number, self._n) for number, catalog in self._catalogs.items()]
        return np.sort(np.concatenate([np.empty(0, np.int64), *ids]))

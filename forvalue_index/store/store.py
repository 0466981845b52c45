"""What an index keeps: vectors in segments, rows in the catalogue, and what made them.

The one file that joins catalogue and segments. Knows no model and no recipe: it is handed vectors,
and gives back ids and scores. `store/upkeep.py` verifies, repairs and compacts.

    commit : vectors -> segment file, safe on disk -> one transaction for it and its rows
    search : snapshot of the catalogue -> segments mapped into memory -> ids and scores -> rows
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import numpy as np

from forvalue_index.catalog import migrations
from forvalue_index.catalog.catalog import MEASURED, Catalog
from forvalue_index.catalog.lock import WriterLock
from forvalue_index.config import IndexConfig
from forvalue_index.errors import (
    CorruptIndexError,
    IndexMissingError,
    InputError,
    LockedError,
)
from forvalue_index.records import Encoded, Fidelity, Sample, StoredSample, listed
from forvalue_index.search.ann import (
    DerivedInfo,
    derived_names,
    read_info,
)
from forvalue_index.search.checked import States, require_intact
from forvalue_index.search.decorrelate import MOMENT, KeptMoment
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.gpu import Resident
from forvalue_index.search.segment import SUFFIX, orphans, write_segment
from forvalue_index.store.layout import (
    CATALOG,
    CATALOG_URL,
    CHECKED,
    DERIVED,
    SEGMENTS,
    discard,
    files,
    is_index,
    require_empty,
    size,
    storing,
    url_of,
    vectoriser_file,
)
from forvalue_index.store.snapshot import Snapshot
from forvalue_index.system.files import TEMPORARY, atomic_write, open_own, sync_folder

PAGE = 1000  # rows in memory at a time

BY_READERS = "checked", MOMENT
"""How the names of files begin that readers write, too: a temporary one may be in use."""

T = TypeVar("T")


class Store:
    """The files and the catalogue of one index. Close it after use."""

    def __init__(self, directory: Path, catalog: Catalog) -> None:
        """`create` and `open` are the ways to get one."""
        self.directory = directory
        self.catalog = catalog
        self.config = IndexConfig.from_json(catalog.config)
        self.moments = KeptMoment(directory / DERIVED)
        self._checked: States = {}
        self._viewing = RLock()  # of the two below
        self._view: Snapshot | None = None
        self._resident: Resident | None = None  # outlives views: they share most vectors

    # -- making, opening, closing --------------------------------------------------------------

    @classmethod
    def create(
        cls,
        directory: str | Path,
        config: IndexConfig,
        fingerprint: dict[str, Any],
        catalog: str | None = None,
    ) -> Store:
        """Returns a new, empty store in `directory`.

        Args:
            directory: not there yet, or empty, or what an interrupted `create` left.
            config: what the index is made with.
            fingerprint: as much of it as is known before the first rows.
            catalog: URL of a PostgreSQL database that was named before (`name_catalog`);
                default: SQLite, in the directory.

        Raises:
            IndexMissingError: `directory` is not empty, or there is a catalogue at the URL.
            InputError: `catalog` is not a URL of PostgreSQL, or was not named.
            StorageError: the directory cannot be written.
        """
        path = Path(directory)
        require_empty(path)
        existed = path.exists()
        try:
            with storing(path):
                (path / SEGMENTS).mkdir(parents=True, exist_ok=True)
                if catalog is not None:
                    # It may hold a password.
                    with atomic_write(path / CATALOG_URL, text=True, mode=0o600) as file:
                        file.write(catalog)
            return cls(path, Catalog.create(url_of(path), config.to_json(), fingerprint))
        except BaseException:
            discard(path, itself=not existed)
            raise

    @classmethod
    def open(cls, directory: str | Path) -> Store:
        """Returns the store in `directory`.

        Raises:
            IndexMissingError: there is none.
            SchemaError: it was written by another version of this package.
            CorruptIndexError: the catalogue was changed.
        """
        path = Path(directory)
        if not (path / CATALOG).is_file() and not (path / CATALOG_URL).is_file():
            what = "is not an index" if path.is_dir() else "does not exist"
            raise IndexMissingError(f"{path} {what}: make one with forvalue build")
        return cls(path, Catalog.open(url_of(path)))

    def close(self) -> None:
        """Lets go of the catalogue and the segments."""
        self.catalog.close()
        self._view = self._resident = None

    def destroy(self, *, itself: bool) -> None:
        """Deletes a store that was created and never filled; `itself`: the directory too.

        Raises:
            LockedError: another process is writing to it.
        """
        with self.lock():
            if self.catalog.segments():
                return
            if (self.directory / CATALOG_URL).is_file():
                self.catalog.drop()
            self.close()
            discard(self.directory, itself=itself)

    def __len__(self) -> int:
        """Number of live samples."""
        return self.catalog.count()

    # -- writing -------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The right to write, for a `with` block.

        What a writer that was killed or failed left, and that counts for nothing, is removed.

        Raises:
            LockedError: another process has it; the message says who.
            StorageError: the disk is full.
        """
        files(self.directory)
        lock = WriterLock(self.directory)
        with storing(self.directory):
            lock.acquire()
        try:
            self.catalog.reload()
            if lock.interrupted:
                self.sweep()
            try:
                yield
            except BaseException:
                with suppress(Exception):
                    self.sweep()
                raise
        finally:
            lock.release()

    @contextmanager
    def lock_at(self, generation: int) -> Iterator[None]:
        """The right to write, as `lock`, to an index that is at this generation.

        Raises:
            LockedError: another process has it, or something was committed meanwhile.
            StorageError: the directory cannot be written.
        """
        with self.lock():
            if self.catalog.generation() != generation:
                raise LockedError(f"{self.directory} was written to meanwhile: ask again")
            yield

    def commit(
        self,
        samples: Sequence[Sample],
        encoded: Sequence[Encoded],
        replaces: Sequence[int] = (),
    ) -> None:
        """Writes a segment, then commits it together with its rows.

        The caller holds the writer's lock. `replaces` are ids of live samples that are gone once
        the new ones are there.

        Raises:
            StorageError: the disk is full; nothing was committed.
            ModelError: a vector is not finite, or does not fit into the float16 of 16 bits.
            KeyConflictError: a key is there already and not replaced.
        """
        first = self.catalog.next_id()
        ids = np.arange(first, first + len(samples), dtype=np.int64)
        vectors = np.stack([item.vector for item in encoded])
        with storing(self.directory):
            segment = write_segment(
                self.directory / SEGMENTS, f"{first:012d}.faiss", ids, vectors, self.bits
            )
        stored = [
            StoredSample(
                id=int(id),
                key=sample.key,
                content_hash=sample.content_hash,
                row=sample.row,
                n_tokens=len(sample.input_ids),
                n_scored=sample.n_scored,
                truncated=sample.truncated,
                loss=item.loss,
                norm=item.norm,
            )
            for id, sample, item in zip(ids, samples, encoded, strict=True)
        ]
        retained = float(np.mean([item.retained for item in encoded]))
        self.catalog.commit_segment(segment, stored, replaces=replaces, retained_energy=retained)

    def remove(self, keys: Iterable[str]) -> int:
        """Returns how many samples are gone from now on; keys that are not there are passed over.

        The caller holds the writer's lock.
        """
        return len(self.catalog.remove(keys))

    def remove_where(self, conditions: Iterable[str]) -> int:
        """Returns how many samples are gone from now on: those whose rows met all conditions."""
        return len(self.catalog.remove_ids(self.catalog.where(conditions).tolist()))

    def set_vectoriser(self, data: bytes, figures: dict[str, Any]) -> None:
        """Keeps what the first rows taught: a file, then its hash and `figures` in the fingerprint.

        Until the second step the file counts for nothing, and the next attempt replaces it.
        """
        name = _hash(data)
        path = vectoriser_file(self.directory, name)
        with storing(self.directory), atomic_write(path) as file:
            file.write(data)
        self.catalog.set_fingerprint(self.fingerprint | {"vectoriser": name} | figures)

    def set_fidelity(self, fidelity: Fidelity) -> None:
        """Keeps how true the stored vectors are, in place of what was measured before."""
        self.catalog.set_fingerprint(self.fingerprint | {MEASURED: asdict(fidelity)})

    # -- reading -------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that two vectors must share for their inner product to mean anything."""
        return self.catalog.fingerprint

    @property
    def dim(self) -> int:
        """Length of a stored vector; 0 as long as nothing was added."""
        return int(self.fingerprint.get("dim", 0))

    @property
    def bits(self) -> int:
        """Bits of a number of a stored vector."""
        return self.config.vector.bits

    @property
    def fidelity(self) -> Fidelity | None:
        """How true vectors are of rows that nothing was fitted to; None: not measured."""
        found = self.fingerprint.get(MEASURED)
        return None if found is None else Fidelity(**found)

    @property
    def fitted(self) -> bool:
        """Whether there is a vectoriser."""
        return "vectoriser" in self.fingerprint

    def vectoriser_bytes(self) -> bytes:
        """Returns what was handed to `set_vectoriser`.

        Raises:
            IndexMissingError: nothing was: the index is empty.
            CorruptIndexError: the file is not what was committed.
        """
        if not self.fitted:
            self.catalog.reload()  # another process may have added the first rows
        if not self.fitted:
            raise IndexMissingError(f"{self.directory} is empty: add rows with forvalue add")
        name = self.fingerprint["vectoriser"]
        path = vectoriser_file(self.directory, name)
        try:
            with open_own(path) as file:
                data = file.read()
        except OSError:
            data = b""
        if _hash(data) != name:
            raise CorruptIndexError(
                f"{path} is {'not what was committed' if data else 'missing'}: "
                "restore it from a copy, or build again"
            )
        return data

    @property
    def view(self) -> Snapshot:
        """The index as of the last `refresh`."""
        with self._viewing:
            if self._view is None:
                self._view = self._open_view()
            return self._view

    @property
    def flat(self) -> FlatSearch:
        """The exact search over the stored vectors, as of the last `refresh`."""
        return self.view.flat

    def refresh(self) -> None:
        """Drops the view if another generation was committed since it was opened."""
        with self._viewing:
            if self._view is not None and self._view.generation != self.catalog.generation():
                self._view = None

    def reopen(self) -> None:
        """Drops the view, also for new derived indexes, whose making is no new generation."""
        with self._viewing:
            self._view = None

    def answer(self, ask: Callable[[Snapshot], T]) -> T:
        """Returns what `ask` finds in the index as it is now: nothing that is removed already.

        `ask` takes everything from the view that it is given, which is one moment of the index. It
        is called again, with another view, if a writer replaced segments and rows under it.
        """
        while True:
            with self._viewing:
                self.refresh()
                view = self.view
            try:
                return ask(view)
            except CorruptIndexError:
                if self.catalog.generation() == view.generation:
                    raise

    def _open_view(self) -> Snapshot:
        while True:
            if not self.fitted:  # when this was opened
                self.catalog.reload()
            snapshot = self.catalog.snapshot()
            folder = self.directory / SEGMENTS
            try:
                require_intact(folder, snapshot.segments, self.directory / CHECKED, self._checked)
                if self._resident is None:
                    self._resident = Resident(self.dim)
                flat = FlatSearch(
                    folder,
                    snapshot.segments,
                    self.dim,
                    self.bits,
                    snapshot.removed,
                    self._resident,
                )
            except CorruptIndexError:
                # A compaction replaces files: it may have come between the two steps.
                if self.catalog.generation() == snapshot.generation:
                    raise
                continue
            return Snapshot(
                snapshot.generation,
                flat,
                self.catalog,
                self.directory / DERIVED,
                self.moments,
                partial(self.lock_at, snapshot.generation),
            )

    def samples(self, ids: Iterable[int]) -> dict[int, StoredSample]:
        """Returns id -> sample, in the order of the ids.

        Raises:
            CorruptIndexError: an id has no row, or a row is not what was committed.
        """
        return self.catalog.samples(ids)

    def derived(self) -> list[DerivedInfo]:
        """What is derived, as far as it can be read."""
        folder, found = self.directory / DERIVED, []
        for name in derived_names(folder):
            with suppress(CorruptIndexError):
                found.append(read_info(folder, name))
        return found

    def orphans(self) -> list[Path]:
        """The files that count for nothing; while a writer is at work, some may be about to."""
        self.catalog.reload()
        own = files(self.directory)
        found = orphans(self.directory / SEGMENTS, self.catalog.segments())
        named = {info.file for info in self.derived()}
        if self.fitted:
            named.add(vectoriser_file(self.directory, self.fingerprint["vectoriser"]).name)
        for path in own:
            left = path.suffix == TEMPORARY and not path.name.startswith(BY_READERS)
            if path.parent == self.directory:
                stray = left or path.match("vectoriser-*.safetensors")
            else:
                stray = path.parent.name == DERIVED and (left or path.suffix == SUFFIX)
            if stray and path.name not in named:
                found.append(path)
        return sorted(found)

    def sweep(self) -> list[Path]:
        """Deletes the files that count for nothing, and returns them. The caller holds the lock."""
        found = self.orphans()
        left = [
            path
            for path in files(self.directory)
            if path.suffix == TEMPORARY and path.name.startswith(BY_READERS)
        ]
        for path in [*found, *left]:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in found}:
            sync_folder(folder)
        return found

    def find(self, key: str) -> StoredSample:
        """Returns the sample under a key.

        Raises:
            InputError: there is none.
        """
        while True:
            generation = self.catalog.generation()
            ids = list(self.catalog.ids_of([key]).values())
            if not ids:
                raise InputError(
                    f"no sample in {self.directory} has key {key!r}: see `forvalue list`"
                )
            try:
                return self.catalog.samples(ids)[ids[0]]
            except CorruptIndexError:  # a compaction may have come between the two steps
                if self.catalog.generation() == generation:
                    raise

    def listing(
        self, where: str | Iterable[str] = (), after: int = -1, limit: int | None = None
    ) -> Iterator[StoredSample]:
        """Yields the live samples that meet all conditions, in the order of their ids.

        Args:
            where: conditions such as "source=math".
            after: only ids above this one.
            limit: at most so many.
        """
        conditions = listed(where)
        if conditions:
            yield from itertools.islice(self._meeting(conditions, after), limit)
        else:
            page = PAGE if limit is None else max(1, min(limit, PAGE))
            yield from itertools.islice(self.catalog.iterate(after, page), limit)

    def _meeting(self, conditions: list[str], after: int) -> Iterator[StoredSample]:
        while True:
            generation = self.catalog.generation()
            ids = self.catalog.where(conditions)
            ids = ids[ids > after]
            try:
                for start in range(0, len(ids), PAGE):
                    for sample in self.catalog.samples(ids[start : start + PAGE].tolist()).values():
                        yield sample
                        after = sample.id
                return
            except CorruptIndexError:  # rows of this page may have been compacted away
                if self.catalog.generation() == generation:
                    raise

    def export(
        self, view: Snapshot, vectors: Path, rows: Path, where: Sequence[str], scale: float
    ) -> tuple[int, int]:
        """Writes a view's vectors over `scale` and their rows, by id; returns the shape.

        Raises:
            StorageError: a file cannot be written; neither is there then.
        """
        ids = view.where(where) if where else view.flat.ids
        with (
            storing(vectors.parent),
            atomic_write(vectors) as out,
            atomic_write(rows, text=True) as lines,
        ):
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), self.dim)}
            np.lib.format.write_array_header_1_0(out, header)
            for block, values in view.flat.blocks(ids):
                out.write((values / np.float32(scale)).astype("<f4").tobytes())
                for start in range(0, len(block), PAGE):
                    page = block[start : start + PAGE].tolist()
                    for sample in view.samples(page).values():
                        lines.write(json.dumps(asdict(sample), ensure_ascii=True) + "\n")
            out.flush()  # both have found room before one of them counts
        return len(ids), self.dim

    def info(self) -> dict[str, Any]:
        """Returns what is kept and what it was made with, as JSON values."""
        segments = self.catalog.segments()
        return {
            "directory": str(self.directory),
            "samples": len(self),
            "removed": len(self.catalog.removed_ids()),
            "dim": self.dim,
            "bits": self.bits,
            "fidelity": self.fingerprint.get("fidelity"),
            "segments": len(segments),
            "bytes": size(self.directory),
            "vector_bytes": sum(segment.bytes for segment in segments),
            "retained_energy": self.catalog.retained_energy(),
            "derived": [info.to_json() for info in self.derived()],
            "catalog": self.catalog.place,
            "model": self.config.model.name,
            "fingerprint": digest(self.fingerprint),
            "config": self.config.to_json(),
        }


def migrate(directory: str | Path) -> tuple[str | None, str]:
    """Returns the schema revisions before and after bringing a catalogue to this version's.

    Raises:
        IndexMissingError: there is no index in `directory`.
        SchemaError: it was written by a newer version of this package.
        LockedError: another process is writing to it.
        StorageError: the directory cannot be written.
    """
    path = Path(directory)
    if not is_index(path):
        raise IndexMissingError(f"{path} is not an index: make one with forvalue build")
    url = url_of(path)
    with storing(path), WriterLock(path):
        return migrations.upgrade(url)


def digest(value: dict[str, Any]) -> str:
    """64 bits of the SHA-256 of JSON values, in hex."""
    return _hash(json.dumps(value, sort_keys=True).encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]

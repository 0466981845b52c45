"""What an index keeps: vectors in segments, rows in the catalogue, and what made them.

Joins the parts: `writer.py` changes an index, `snapshot.py` reads one moment of it, `rows.py`,
`export.py`, `derived.py`, `compact.py` and `verify.py` do what their names say. Knows no model and
no recipe: it is handed vectors, and gives back ids and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from forvalue_index.catalog import migrations
from forvalue_index.catalog.catalog import MEASURED, Catalog
from forvalue_index.catalog.lock import WriterLock
from forvalue_index.config import IndexConfig
from forvalue_index.errors import IndexMissingError
from forvalue_index.records import Fidelity
from forvalue_index.search.ann_files import readable_infos
from forvalue_index.search.checked import CheckedFiles
from forvalue_index.search.moment import KeptMoment
from forvalue_index.store.beside import Beside
from forvalue_index.store.fields import KeptFields
from forvalue_index.store.layout import (
    CATALOG,
    CATALOG_URL,
    CHECKED,
    CHECKED_DERIVED,
    DERIVED,
    SEGMENTS,
    discard,
    is_index,
    require_empty,
    size,
    storing,
    url_of,
)
from forvalue_index.store.manifest import is_sharded, read_manifest, shard_directory
from forvalue_index.store.sides import KeptSides
from forvalue_index.store.snapshot import Snapshot, Snapshots
from forvalue_index.store.states import KeptStates
from forvalue_index.store.vectoriser import (
    digest,
    dim_of,
    is_fitted,
    read_vectoriser,
    write_vectoriser,
)
from forvalue_index.store.words import KeptWords
from forvalue_index.store.writer import Writer
from forvalue_index.system.files import atomic_write
from forvalue_index.vectors.scale import state_dim_of

T = TypeVar("T")


class Store:
    """The files and the catalogue of one index. Close it after use."""

    def __init__(self, directory: Path, catalog: Catalog) -> None:
        """`create` and `open` are the ways to get one."""
        self.directory = directory
        self.catalog = catalog
        self.config = IndexConfig.from_json(catalog.config)
        self.moments = KeptMoment(directory / DERIVED)
        segments = CheckedFiles(directory / SEGMENTS, directory / CHECKED)
        derived = CheckedFiles(directory / DERIVED, directory / CHECKED_DERIVED)
        self.beside = Beside(
            KeptWords(derived, catalog, self.config.format),
            KeptSides(derived, catalog, directory / SEGMENTS, self.bits),
            KeptStates(derived),
        )
        self.fields = KeptFields(derived, catalog)
        parts = segments, derived, self.fields
        self.writer = Writer(directory, catalog, self.bits, self.beside, *parts)
        self.snapshots = Snapshots(
            catalog,
            self.bits,
            self.moments,
            self.beside,
            self.fields,
            segments,
            derived,
            self.writer.lock_at,
        )

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
        if is_sharded(path):
            raise IndexMissingError(
                f"{path} is an index of several shards, not one of them: name the folder of one"
            )
        if not (path / CATALOG).is_file() and not (path / CATALOG_URL).is_file():
            what = "is not an index" if path.is_dir() else "does not exist"
            if path.exists() and not path.is_dir():
                what = "is a file, and an index is a folder"
            raise IndexMissingError(f"{path} {what}: make one with forvalue build")
        return cls(path, Catalog.open(url_of(path)))

    def close(self) -> None:
        """Closes the catalogue and lets go of the segments."""
        self.catalog.close()
        self.snapshots.close()

    def destroy(self, *, itself: bool) -> None:
        """Deletes a store that was created and never filled; `itself`: the directory too.

        Raises:
            LockedError: another process is writing to it.
        """
        with self.writer.lock():
            if self.catalog.segments():
                return
            if (self.directory / CATALOG_URL).is_file():
                self.catalog.drop()
            self.close()
            discard(self.directory, itself=itself)

    def __len__(self) -> int:
        """Number of live samples."""
        return self.catalog.count()

    @property
    def shards(self) -> list[Store]:
        """The indexes that it is made of: itself alone, or all shards (`shards/store.py`)."""
        return [self]

    # -- what made the vectors -----------------------------------------------------------------

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that two vectors must share for their inner product to mean anything."""
        return self.catalog.fingerprint

    @property
    def dim(self) -> int:
        """Length of a stored vector; 0 as long as nothing was added."""
        return dim_of(self.catalog)

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
        return is_fitted(self.catalog)

    def set_vectoriser(self, data: bytes, figures: dict[str, Any]) -> None:
        """Keeps what the first rows taught; see `write_vectoriser`. The caller holds the lock."""
        write_vectoriser(self.directory, self.catalog, data, figures)

    def set_fidelity(self, fidelity: Fidelity) -> None:
        """Keeps how true the stored vectors are, in place of what was measured before."""
        self.catalog.set_fingerprint(self.fingerprint | {MEASURED: asdict(fidelity)})

    def vectoriser_bytes(self) -> bytes:
        """Returns what was handed to `set_vectoriser`; see `read_vectoriser`."""
        return read_vectoriser(self.directory, self.catalog)

    def part_problems(self) -> Iterator[str]:
        """Yields what is wrong with what is kept beside segments and can be made again."""
        segments = self.catalog.segments()
        for kept in (self.beside.words, self.beside.sides):
            yield from kept.problems(segments)

    def state_problems(self) -> Iterator[str]:
        """Yields which states are lost of an index that has them.

        Raises:
            CorruptIndexError: what the first rows taught is not what was committed.
        """
        data = self.vectoriser_bytes() if self.fitted else b""
        try:
            dim = state_dim_of(data)
        except SafetensorError:  # nothing was learned, or nothing that can be read
            return
        if dim:
            yield from self.beside.states.lacking(self.catalog.segments(), dim)

    def put_missing_parts(self) -> None:
        """Keeps what segments have beside them, where it is missing; the caller holds the lock.

        Raises:
            OSError: the disk is full.
        """
        segments = self.catalog.segments()
        for kept in (self.beside.words, self.beside.sides):
            kept.put_missing(segments)

    # -- reading -------------------------------------------------------------------------------

    def answer(self, ask: Callable[[Snapshot], T]) -> T:
        """Returns what `ask` finds in the index as it is now; see `Snapshots.answer`."""
        return self.snapshots.answer(ask)

    def info(self) -> dict[str, Any]:
        """Returns what is kept and what it was made with, as JSON values."""
        segments = self.catalog.segments()
        return {
            "directory": str(self.directory),
            "samples": len(self),
            "removed": len(self.catalog.removed_ids()),
            "dim": self.dim,
            "bits": self.bits,
            "fidelity": self.fingerprint.get(MEASURED),
            "segments": len(segments),
            "bytes": size(self.directory),
            "vector_bytes": sum(segment.bytes for segment in segments),
            "retained_energy": self.catalog.retained_energy(),
            "derived": [info.to_json() for info in readable_infos(self.directory / DERIVED)],
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
    if is_sharded(path):
        manifest = read_manifest(path)
        each = [shard_directory(path, manifest, number) for number in manifest.attached]
        return next(iter([migrate(shard) for shard in each]), (None, migrations.head()))
    if not is_index(path):
        raise IndexMissingError(f"{path} is not an index: make one with forvalue build")
    url = url_of(path)
    with storing(path), WriterLock(path):
        return migrations.upgrade(url)

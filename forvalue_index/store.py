"""What an index keeps: vectors in segments, rows in the catalogue, and what made them.

The one file that joins catalogue and segments. Knows no model and no recipe: it is handed vectors,
and gives back ids and scores. `upkeep.py` verifies, repairs and compacts.

    commit : vectors -> segment file, safe on disk -> one transaction for it and its rows
    search : snapshot of the catalogue -> segments mapped into memory -> ids and scores -> rows
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from forvalue_index.catalog import migrations
from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.lock import WriterLock
from forvalue_index.config import PAIR_RANKS, IndexConfig
from forvalue_index.directory import (
    CATALOG,
    CATALOG_URL,
    CHECKED,
    DERIVED,
    SEGMENTS,
    discard,
    is_index,
    require_empty,
    storing,
    url_of,
    vectoriser_file,
    write_file,
)
from forvalue_index.errors import (
    CorruptIndexError,
    IndexMissingError,
    InputError,
)
from forvalue_index.records import Encoded, Sample, StoredSample, listed
from forvalue_index.search.decorrelate import decorrelation
from forvalue_index.search.derived import (
    DerivedInfo,
    DerivedSearch,
    check_current,
    derived_names,
    open_derived,
    read_info,
)
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.intact import require_intact
from forvalue_index.search.segments import orphans, sync_folder, write_segment

PAGE = 1000  # rows in memory at a time

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class View:
    """The index as a reader sees it: one moment of it."""

    generation: int
    flat: FlatSearch
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # rank -> [ntotal]
    derived: dict[str, DerivedSearch | None] = field(default_factory=dict)  # rank -> if any
    turns: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # rank -> [dim, dim]


class Store:
    """The files and the catalogue of one index. Close it after use."""

    def __init__(self, directory: Path, catalog: Catalog) -> None:
        """`create` and `open` are the ways to get one."""
        self.directory = directory
        self.catalog = catalog
        self.config = IndexConfig.from_json(catalog.config)
        self._view: View | None = None

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
            catalog: URL of a PostgreSQL database; default: SQLite, in the directory.

        Raises:
            IndexMissingError: `directory` is not empty, or there is a catalogue at the URL.
            StorageError: the directory cannot be written.
        """
        path = Path(directory)
        require_empty(path)
        existed = path.exists()
        try:
            with storing(path):
                (path / SEGMENTS).mkdir(parents=True, exist_ok=True)
                if catalog is not None:
                    write_file(
                        path / CATALOG_URL, catalog.encode(), mode=0o600
                    )  # may hold a password
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
        self._view = None

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
        with storing(self.directory):
            write_file(self.directory / vectoriser_file(name), data)
        self.catalog.set_fingerprint(self.fingerprint | {"vectoriser": name} | figures)

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
        path = self.directory / vectoriser_file(name)
        data = path.read_bytes() if path.is_file() else b""
        if _hash(data) != name:
            raise CorruptIndexError(
                f"{path} is {'not what was committed' if data else 'missing'}: "
                "restore it from a copy, or build again"
            )
        return data

    @property
    def flat(self) -> FlatSearch:
        """The exact search over the stored vectors, as of the last `refresh`."""
        return self._opened().flat

    def weights(self, rank: str) -> NDArray[np.float32] | None:
        """Returns what the inner product with each of `flat.ids` is multiplied by to rank.

        Raises:
            CorruptIndexError: a sample of `flat` is gone; `answer` asks again then.
        """
        if rank in ("dot", "decorrelated"):
            return None
        view = self._opened()
        if rank not in view.weights:
            figures = self.catalog.figures()
            places = np.searchsorted(figures.ids, view.flat.ids)
            places = places[places < len(figures.ids)]
            if not np.array_equal(figures.ids[places], view.flat.ids):
                raise CorruptIndexError(
                    f"samples were removed from {self.directory} meanwhile: ask again, or see "
                    "`forvalue verify`"
                )
            lengths = (figures.norm if rank == "cosine" else figures.n_scored)[places]
            view.weights[rank] = (1 / np.maximum(lengths, 1e-30)).astype(np.float32)
            view.weights[rank].flags.writeable = False
        return view.weights[rank]

    def turned(self, queries: NDArray[np.float32], rank: str) -> NDArray[np.float32]:
        """Returns queries [q, dim] as they are compared with the stored vectors under a rank.

        All ranks but "decorrelated" leave them as they are; that one reads all vectors once, and
        again when the index has changed.
        """
        if rank != "decorrelated":
            return queries
        view = self._opened()
        if rank not in view.turns:
            view.turns[rank] = decorrelation(view.flat)
        turned: NDArray[np.float32] = (queries @ view.turns[rank]).astype(np.float32)
        return turned

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        rank: str,
        *,
        opponents: bool,
        allowed: NDArray[np.int64] | None,
        flat: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns scores and ids of the k best under a rank, [q, k] each.

        By the derived index for the rank when there is one, unless `flat`. One that a writer has
        left out of date is passed over, with a warning in the log.

        Raises:
            CorruptIndexError: the derived index, or a segment, is damaged.
        """
        queries = self.turned(queries, rank)
        derived = None if flat else self._derived(rank if rank in PAIR_RANKS else "dot")
        if derived is not None:
            return derived.search(queries, k, opponents=opponents, allowed=allowed)
        return self.flat.search(
            queries, k, opponents=opponents, allowed=allowed, weights=self.weights(rank)
        )

    def _derived(self, rank: str) -> DerivedSearch | None:
        view = self._opened()
        if rank not in view.derived:
            view.derived[rank] = self._open_derived(view, rank)
        return view.derived[rank]

    def _open_derived(self, view: View, rank: str) -> DerivedSearch | None:
        folder = self.directory / DERIVED
        while rank in derived_names(folder):
            try:
                info = read_info(folder, rank)
            except IndexMissingError:  # a writer makes it again
                continue
            try:
                check_current(info, view.flat, folder / info.file)
            except CorruptIndexError as error:
                log.warning("searching without the derived index: %s", error)
                return None
            try:
                return open_derived(folder, view.flat, rank, weights=self.weights(rank))
            except (CorruptIndexError, IndexMissingError):
                # A writer replaces it: its file may have gone between the two steps.
                if rank in derived_names(folder) and read_info(folder, rank) == info:
                    raise
        return None

    def refresh(self) -> None:
        """Sees what was written since the last time; costs a look at one number if nothing was."""
        if self._view is not None and self._view.generation != self.catalog.generation():
            self._view = None

    def reopen(self) -> None:
        """Sees all of it anew, what is derived as well, whose making is no change that counts."""
        self._view = None

    def answer(self, ask: Callable[[], T]) -> T:
        """Returns what `ask` finds in the index as it is now: nothing that is removed already.

        Within one call of `ask`, `flat` and `weights` are of one moment. It is called again if a
        writer replaced segments and rows under it.
        """
        while True:
            self.refresh()
            generation = self._opened().generation
            try:
                return ask()
            except CorruptIndexError:
                if self.catalog.generation() == generation:
                    raise

    def _opened(self) -> View:
        while self._view is None:
            if not self.fitted:  # when this was opened
                self.catalog.reload()
            snapshot = self.catalog.snapshot()
            folder = self.directory / SEGMENTS
            try:
                require_intact(folder, snapshot.segments, self.directory / CHECKED)
                flat = FlatSearch(folder, snapshot.segments, self.dim, snapshot.removed, self.bits)
            except CorruptIndexError:
                # A compaction replaces files: it may have come between the two steps.
                if self.catalog.generation() == snapshot.generation:
                    raise
                continue
            self._view = View(snapshot.generation, flat)
        return self._view

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
        found = orphans(self.directory / SEGMENTS, self.catalog.segments())
        current = vectoriser_file(self.fingerprint["vectoriser"]) if self.fitted else None
        found += [p for p in self.directory.glob(vectoriser_file("*")) if p.name != current]
        # A reader may be writing checked.json at this moment.
        found += [p for p in self.directory.glob("*.tmp") if not p.name.startswith(CHECKED)]
        derived = self.directory / DERIVED
        if derived.is_dir():
            named = {info.file for info in self.derived()}
            found += [p for p in derived.glob("*.faiss") if p.name not in named]
            found += derived.glob("*.tmp")
        return sorted(found)

    def sweep(self) -> list[Path]:
        """Deletes the files that count for nothing, and returns them. The caller holds the lock."""
        found = self.orphans()
        for path in [*found, *self.directory.glob(f"{CHECKED}.*")]:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in found}:
            sync_folder(folder)
        return found

    def find(self, key: str) -> StoredSample:
        """Returns the sample under a key.

        Raises:
            InputError: there is none.
        """
        ids = list(self.catalog.ids_of([key]).values())
        if not ids:
            raise InputError(f"no sample in {self.directory} has key {key!r}: see `forvalue list`")
        return self.catalog.samples(ids)[ids[0]]

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
        found: Iterable[StoredSample]
        if conditions:
            ids = self.catalog.where(conditions)
            ids = ids[ids > after][:limit]
            pages = (ids[start : start + PAGE].tolist() for start in range(0, len(ids), PAGE))
            found = (sample for page in pages for sample in self.catalog.samples(page).values())
        else:
            page = PAGE if limit is None else max(1, min(limit, PAGE))
            found = itertools.islice(self.catalog.iterate(after, page), limit)
        yield from found

    def export(
        self, vectors: Path, rows: Path, where: Sequence[str], scale: float
    ) -> tuple[int, int]:
        """Writes the vectors over `scale` and their rows, in the order of ids; returns the shape.

        Raises:
            StorageError: a file cannot be written; neither is there then.
        """
        ids = self.flat.ids
        if where:
            ids = self.flat.live(self.catalog.where(where))
        parts = [path.with_name(path.name + ".tmp") for path in (vectors, rows)]
        try:
            with storing(vectors.parent), parts[0].open("wb") as out, parts[1].open("w") as lines:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), self.dim)}
                np.lib.format.write_array_header_1_0(out, header)
                for block, values in self.flat.blocks(ids):
                    out.write((values / np.float32(scale)).astype("<f4").tobytes())
                    for start in range(0, len(block), PAGE):
                        page = block[start : start + PAGE].tolist()
                        for sample in self.catalog.samples(page).values():
                            lines.write(json.dumps(asdict(sample), ensure_ascii=True) + "\n")
            with storing(vectors.parent):
                parts[0].replace(vectors)
                parts[1].replace(rows)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
        return len(ids), self.dim

    def info(self) -> dict[str, Any]:
        """Returns what is kept and what it was made with, as JSON values."""
        segments = self.catalog.segments()
        files = [path.stat() for path in self.directory.rglob("*") if path.is_file()]
        return {
            "directory": str(self.directory),
            "samples": len(self),
            "removed": len(self.catalog.removed_ids()),
            "dim": self.dim,
            "bits": self.bits,
            "fidelity": self.fingerprint.get("fidelity"),
            "segments": len(segments),
            "bytes": sum(file.st_size for file in files),
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
    with storing(path), WriterLock(path):
        return migrations.upgrade(url_of(path))


def digest(value: dict[str, Any]) -> str:
    """64 bits of the SHA-256 of JSON values, in hex."""
    return _hash(json.dumps(value, sort_keys=True).encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]

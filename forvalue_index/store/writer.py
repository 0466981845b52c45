"""What changes an index: the writer's lock, commits, removals, and the sweep of stray files.

    commit : vectors -> segment file, safe on disk -> one transaction for it and its rows

Killed anywhere, the index is as it was before the commit or after it. A file that no transaction
names counts for nothing and is swept by the next writer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.lock import WriterLock
from forvalue_index.errors import InputError, LockedError
from forvalue_index.records import Encoded, Sample, Segment, StoredSample
from forvalue_index.search.ann_files import readable_infos
from forvalue_index.search.checked import CheckedFiles, State, state_of
from forvalue_index.search.column import SUFFIX as COLUMN
from forvalue_index.search.moment import MOMENT
from forvalue_index.search.segment import (
    SUFFIX,
    codes_of,
    open_segment,
    orphans,
    write_codes,
)
from forvalue_index.search.side import SUFFIX as SIDES
from forvalue_index.search.state import SUFFIX as STATES
from forvalue_index.search.state import StateCodes, state_codes
from forvalue_index.search.words import SUFFIX as WORDS
from forvalue_index.store.beside import Beside
from forvalue_index.store.fields import KeptFields
from forvalue_index.store.join import (
    joinable,
    put_in_place,
    require_sound,
    retained_energy,
    write_joined,
)
from forvalue_index.store.layout import DERIVED, SEGMENTS, files, storing
from forvalue_index.store.manifest import require_own
from forvalue_index.store.vectoriser import dim_of, is_fitted, vectoriser_file
from forvalue_index.system.files import TEMPORARY, sync_folder
from forvalue_index.vectors.codes import Bytes, Codes

BY_READERS = "checked", MOMENT
"""How the names of files begin that readers write, too: a temporary one may be in use."""


PARTS = WORDS, SIDES, STATES, COLUMN
"""How the names of files in derived/ end that are of one segment."""

SMALL = 16 * 1024
"""Vectors of a joined segment that a commit may always make: within half a second."""

LARGEST = 2**29
"""Bytes of vectors that a segment may have that is joined while rows are added."""

PATIENCE = 2.0
"""Seconds that a writer waits for the lock: readers hold it while they keep what they derived."""


class Writer:
    """Changes one index. The caller of `commit` and `sweep` holds the lock."""

    def __init__(
        self,
        directory: Path,
        catalog: Catalog,
        bits: int,
        beside: Beside,
        segments: CheckedFiles,
        derived: CheckedFiles,
        fields: KeptFields,
    ) -> None:
        """Takes the parts of an index, and the bits of a stored number."""
        self._directory = directory
        self._catalog = catalog
        self._bits = bits
        self._beside = beside
        self._checked = segments, derived
        self._fields = fields
        self._added = 0  # vectors, since the lock was taken

    @contextmanager
    def lock(self, patience: float = PATIENCE) -> Iterator[None]:
        """Holds the right to write, for a `with` block; waits up to `patience` seconds for it.

        Removes the files that a writer which was killed, or failed, left and that count for
        nothing.

        Raises:
            LockedError: another process has it; the message says who.
            StorageError: the disk is full.
        """
        files(self._directory)
        lock = WriterLock(self._directory)
        with storing(self._directory):
            lock.acquire(patience)
        try:
            self._catalog.reload()
            if lock.interrupted:
                self.sweep()
            self._added = 0
            try:
                yield
                # What was just written need not be read to know it.
                for checked in self._checked if self._added else ():
                    checked.add({}, hashed=True)
            except BaseException:
                with suppress(Exception):
                    self.sweep()
                raise
        finally:
            lock.release()

    @contextmanager
    def lock_at(self, generation: int) -> Iterator[None]:
        """Holds the right to write, as `lock`, to an index that is at this generation.

        Raises:
            LockedError: another process has it, or something was committed meanwhile.
            StorageError: the directory cannot be written.
        """
        with self.lock(patience=0):
            if self._catalog.generation() != generation:
                raise LockedError(f"{self._directory} was written to meanwhile: ask again")
            yield

    def commit(
        self,
        samples: Sequence[Sample],
        encoded: Sequence[Encoded],
        replaces: Sequence[int] = (),
    ) -> None:
        """Writes a segment, then commits it together with its rows.

        `replaces` are ids of live samples that are removed in the same transaction.

        Raises:
            StorageError: the disk is full; nothing was committed.
            ModelError: a vector is not finite, or does not fit into the float16 of 16 bits.
            KeyConflictError: a key is there already and not replaced.
            InputError: this is a shard, and a key belongs to another one.
        """
        ids = self._new_ids(len(samples))
        vectors = np.stack([item.vector for item in encoded])
        data, codes = codes_of(ids, vectors, self._bits)
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
        states = [item.state for item in encoded if item.state is not None]
        kept = state_codes(np.stack(states)) if len(states) == len(encoded) else None
        self._commit(stored, data, codes, retained, kept, replaces)

    def copy(
        self,
        samples: Sequence[StoredSample],
        data: Bytes,
        retained: float | None,
        states: StateCodes | None,
    ) -> None:
        """Commits rows of another index with their codes [n, size] and states, under new ids.

        Raises:
            StorageError: the disk is full; nothing was committed.
            KeyConflictError: a key is there already.
            InputError: this is a shard, and a key belongs to another one.
        """
        ids = self._new_ids(len(samples)).tolist()
        moved = [replace(sample, id=id) for sample, id in zip(samples, ids, strict=True)]
        self._commit(moved, data, Codes(dim_of(self._catalog), self._bits), retained, states)

    def _new_ids(self, n: int) -> NDArray[np.int64]:
        first = self._catalog.next_id()
        return np.arange(first, first + n, dtype=np.int64)

    def _commit(
        self,
        stored: Sequence[StoredSample],
        data: Bytes,
        codes: Codes,
        retained: float | None,
        states: StateCodes | None,
        replaces: Sequence[int] = (),
    ) -> None:
        require_own(self._catalog.fingerprint, (sample.key for sample in stored))
        ids = np.array([sample.id for sample in stored], np.int64)
        with storing(self._directory):
            segment = write_codes(self._segments, f"{ids[0]:012d}{SUFFIX}", ids, data, codes)
            beside = self._beside
            self._note(
                segment,
                beside.words.put(segment, beside.words.of(ids, [s.row for s in stored])),
                beside.sides.put(segment, beside.sides.of(stored, data, codes)),
                None if states is None else beside.states.put_codes(segment, ids, states),
            )
        self._catalog.commit_segment(segment, stored, replaces=replaces, retained_energy=retained)
        self._added += len(stored)
        self._join(codes)

    def _join(self, codes: Codes) -> None:
        """Joins the last segments if they are many; see `join.py`."""
        catalog, folder = self._catalog, self._segments
        segments = catalog.segments()
        most = min(max(SMALL, 8 * self._added), LARGEST // codes.size)
        count = joinable([segment.ntotal for segment in segments], most)
        if not count:
            return
        old = segments[-count:]
        require_sound(folder, catalog, old, codes.dim, codes.bits)
        opened = [open_segment(folder, segment, codes.dim, codes.bits) for segment in old]
        opened.sort(key=lambda segment: int(segment.ids[0]))  # compaction puts old ones last
        names = [segment.name for segment in opened]
        old.sort(key=lambda segment: names.index(segment.name))
        new = write_joined(folder, catalog, opened, codes)
        if new is None:  # an older version compacted segments that were not neighbours
            return
        with storing(self._directory):
            self._note(
                new,
                self._beside.words.put_joined(new, old),
                self._beside.sides.put_joined(new, old),
                self._beside.states.put_some(new, old, np.concatenate([s.ids for s in opened])),
            )
        energy = retained_energy(catalog, old, [segment.ntotal for segment in old])
        put_in_place(folder, catalog, old, new, energy, joined=True)
        stems = {Path(segment.name).stem for segment in old}
        for path in files(self._directory):
            if path.suffix in PARTS and path.name.partition(".")[0] in stems:
                path.unlink(missing_ok=True)

    @property
    def _segments(self) -> Path:
        return self._directory / SEGMENTS

    def _note(self, segment: Segment, words: State, side: State, states: State | None) -> None:
        """Remembers files that were just written."""
        state = state_of(segment.sha256, (self._segments / segment.name).stat())
        self._checked[0].add({segment.name: state}, hashed=False)
        beside = self._beside
        written = {beside.words.file(segment).name: words, beside.sides.file(segment).name: side}
        if states is not None:
            written[beside.states.file(segment).name] = states
        self._checked[1].add(written, hashed=False)

    def remove(self, keys: Sequence[str] = (), where: Sequence[str] = ()) -> int:
        """Removes samples by key, or those that meet all conditions; returns how many.

        They become tombstones in one transaction. Takes the lock itself.

        Raises:
            InputError: keys and conditions at once, or a condition that cannot be read.
            LockedError: another process has the lock.
        """
        if keys and where:
            raise InputError("keys and conditions were given: remove by one or the other")
        catalog = self._catalog
        with self.lock():
            if where:
                return len(catalog.remove_ids(self._meeting(where).tolist()))
            return len(catalog.remove(keys))

    def _meeting(self, where: Sequence[str]) -> NDArray[np.int64]:
        """Returns the ids of the rows that meet all conditions, removed ones among them."""
        return self._fields.where(self._catalog.segments(), where, nullcontext)

    def orphans(self) -> list[Path]:
        """Returns the files that count for nothing; a writer at work may be about to commit some.

        Raises:
            CorruptIndexError: the catalogue was changed, or a link is among the files.
        """
        self._catalog.reload()
        own = files(self._directory)
        segments = self._catalog.segments()
        found = orphans(self._directory / SEGMENTS, segments)
        counting = {info.file for info in readable_infos(self._directory / DERIVED)}
        stems = {Path(segment.name).stem for segment in segments}
        if is_fitted(self._catalog):
            counting.add(vectoriser_file(self._directory, self._catalog).name)
        for path in own:
            left = path.suffix == TEMPORARY and not path.name.startswith(BY_READERS)
            if path.parent == self._directory:
                stray = left or path.match("vectoriser-*.safetensors")
            else:
                part = path.suffix in PARTS and path.name.partition(".")[0] not in stems
                stray = path.parent.name == DERIVED and (left or part or path.suffix == SUFFIX)
            if stray and path.name not in counting:
                found.append(path)
        return sorted(found)

    def sweep(self) -> list[Path]:
        """Deletes the files that count for nothing, and returns them."""
        found = self.orphans()
        left = [
            path
            for path in files(self._directory)
            if path.suffix == TEMPORARY and path.name.startswith(BY_READERS)
        ]
        for path in [*found, *left]:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in found}:
            sync_folder(folder)
        return found

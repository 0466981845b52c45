"""What changes an index: the writer's lock, commits, removals, and the sweep of stray files.

    commit : vectors -> segment file, safe on disk -> one transaction for it and its rows

Killed anywhere, the index is as it was before the commit or after it. A file that no transaction
names counts for nothing and is swept by the next writer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.lock import WriterLock
from forvalue_index.errors import InputError, LockedError
from forvalue_index.records import Encoded, Sample, StoredSample
from forvalue_index.search.ann_files import readable_infos
from forvalue_index.search.moment import MOMENT
from forvalue_index.search.segment import SUFFIX, orphans, write_segment
from forvalue_index.search.words import SUFFIX as WORDS
from forvalue_index.search.words import words_file
from forvalue_index.store.layout import DERIVED, SEGMENTS, files, storing
from forvalue_index.store.manifest import require_own
from forvalue_index.store.vectoriser import is_fitted, vectoriser_file
from forvalue_index.store.words import KeptWords
from forvalue_index.system.files import TEMPORARY, sync_folder

BY_READERS = "checked", MOMENT
"""How the names of files begin that readers write, too: a temporary one may be in use."""


class Writer:
    """Changes one index. The caller of `commit` and `sweep` holds the lock."""

    def __init__(self, directory: Path, catalog: Catalog, bits: int, words: KeptWords) -> None:
        """Takes the parts of an index, and the bits of a stored number."""
        self._directory = directory
        self._catalog = catalog
        self._bits = bits
        self._words = words

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the right to write, for a `with` block.

        Removes the files that a writer which was killed, or failed, left and that count for
        nothing.

        Raises:
            LockedError: another process has it; the message says who.
            StorageError: the disk is full.
        """
        files(self._directory)
        lock = WriterLock(self._directory)
        with storing(self._directory):
            lock.acquire()
        try:
            self._catalog.reload()
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
        """Holds the right to write, as `lock`, to an index that is at this generation.

        Raises:
            LockedError: another process has it, or something was committed meanwhile.
            StorageError: the directory cannot be written.
        """
        with self.lock():
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
        require_own(self._catalog.fingerprint, (sample.key for sample in samples))
        first = self._catalog.next_id()
        ids = np.arange(first, first + len(samples), dtype=np.int64)
        vectors = np.stack([item.vector for item in encoded])
        with storing(self._directory):
            segment = write_segment(
                self._directory / SEGMENTS, f"{first:012d}{SUFFIX}", ids, vectors, self._bits
            )
            self._words.put(segment, ids, [sample.row for sample in samples])
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
        self._catalog.commit_segment(segment, stored, replaces=replaces, retained_energy=retained)

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
                return len(catalog.remove_ids(catalog.where(where).tolist()))
            return len(catalog.remove(keys))

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
        counting |= {words_file(self._directory, segment).name for segment in segments}
        if is_fitted(self._catalog):
            counting.add(vectoriser_file(self._directory, self._catalog).name)
        for path in own:
            left = path.suffix == TEMPORARY and not path.name.startswith(BY_READERS)
            if path.parent == self._directory:
                stray = left or path.match("vectoriser-*.safetensors")
            else:
                stray = path.parent.name == DERIVED and (left or path.suffix in (SUFFIX, WORDS))
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

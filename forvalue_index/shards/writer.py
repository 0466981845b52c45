"""What changes a sharded index: each row goes to the shard of its key, each shard has its lock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forvalue_index.catalog.lock import WriterLock
from forvalue_index.records import Encoded, Sample
from forvalue_index.shards.catalog import JoinedCatalog
from forvalue_index.shards.fields import JoinedFields
from forvalue_index.shards.ids import split
from forvalue_index.store.layout import storing
from forvalue_index.store.manifest import shard_of
from forvalue_index.store.store import Store
from forvalue_index.store.vectoriser import is_fitted, read_vectoriser
from forvalue_index.store.writer import PATIENCE, Writer
from forvalue_index.system.files import TEMPORARY, own_files


class JoinedWriter(Writer):
    """Changes all shards. A change is one transaction in each shard that it concerns."""

    def __init__(self, directory: Path, catalog: JoinedCatalog, parts: Mapping[int, Store]) -> None:
        """Takes number -> shard."""
        self._directory = directory
        self._catalog: JoinedCatalog = catalog
        self._parts = parts

    @contextmanager
    def lock(self, patience: float = PATIENCE) -> Iterator[None]:
        """Holds the right to write to the manifest and to all shards, for a `with` block.

        Waits up to `patience` seconds for that of each shard.

        Raises:
            LockedError: another process is writing to one of them.
            IndexMissingError: the rows were dealt out to other shards meanwhile.
            StorageError: the disk is full.
        """
        with ExitStack() as held:
            with storing(self._directory):
                held.enter_context(WriterLock(self._directory))
            self._catalog.require_current()
            for part in self._parts.values():
                held.enter_context(part.writer.lock(patience))
            self._catalog.reload()
            self._teach()
            yield

    def _teach(self) -> None:
        """Gives the vectoriser to shards that lack it: a writer was killed when it was learned."""
        if not is_fitted(self._catalog):
            return
        for part in self._parts.values():
            if not part.fitted:
                teach(part, self._directory, self._catalog)

    def commit(
        self,
        samples: Sequence[Sample],
        encoded: Sequence[Encoded],
        replaces: Sequence[int] = (),
    ) -> None:
        """Commits each sample to its shard, with what it replaces there; see `Writer.commit`."""
        n = self._catalog.manifest.shards
        of = np.array([shard_of(sample.key, n) for sample in samples])
        old = {number: ids for number, _, ids in split(np.array(replaces, np.int64), n)}
        for number in np.unique(of).tolist():
            places = np.flatnonzero(of == number).tolist()
            self._parts[number].writer.commit(
                [samples[i] for i in places],
                [encoded[i] for i in places],
                old.get(number, np.empty(0, np.int64)).tolist(),
            )

    def _meeting(self, where: Sequence[str]) -> NDArray[np.int64]:
        segments = {number: part.catalog.segments() for number, part in self._parts.items()}
        fields = JoinedFields(
            self._catalog, self._parts, segments, dict.fromkeys(segments, nullcontext)
        )
        return fields.where([own for each in segments.values() for own in each], where, nullcontext)

    def orphans(self) -> list[Path]:
        """Returns the files of all shards that count for nothing, and those beside them."""
        found = [path for part in self._parts.values() for path in part.writer.orphans()]
        name = self._catalog.fingerprint.get("vectoriser")
        for path in own_files(self._directory):
            stray = path.match("vectoriser-*.safetensors") and path.stem != f"vectoriser-{name}"
            if stray or path.suffix == TEMPORARY:
                found.append(path)
        return found

    def sweep(self) -> list[Path]:
        """Deletes the files that count for nothing, and returns them."""
        found = self.orphans()
        for path in found:
            path.unlink(missing_ok=True)
        return found


def teach(part: Store, directory: Path, catalog: JoinedCatalog) -> None:
    """Gives a shard the vectoriser of its index. The caller holds the shard's lock."""
    learned = {
        name: value
        for name, value in catalog.fingerprint.items()
        if name not in part.fingerprint and name != "vectoriser"
    }
    part.set_vectoriser(read_vectoriser(directory, catalog), learned)

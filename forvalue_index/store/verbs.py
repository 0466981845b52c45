"""What is done with an index on disk, as methods of `InfluenceIndex`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from forvalue_index.data import upload
from forvalue_index.errors import InputError
from forvalue_index.records import listed
from forvalue_index.store import compact, derived, export, rows, store, verify
from forvalue_index.system import machine

if TYPE_CHECKING:
    from forvalue_index.metric import Metric
    from forvalue_index.records import Progress, StoredSample
    from forvalue_index.search.ann_files import DerivedInfo
    from forvalue_index.store.compact import CompactReport
    from forvalue_index.store.hub import Pushed
    from forvalue_index.store.store import Store


class StoreVerbs:
    """The rows and files of an index, without its model. `InfluenceIndex` derives from it."""

    store: Store

    def remove(self, keys: str | Iterable[str] = (), *, where: str | Iterable[str] = ()) -> int:
        """Removes the samples under `keys`, or that meet `where`, and returns how many.

        They are in no answer from now on, and on disk until `compact`. Other keys are passed over.

        Raises:
            InputError: keys and conditions at once, or a condition that cannot be read.
            LockedError: another process is writing to the index.
        """
        return self.store.writer.remove(listed(keys), listed(where))

    def compact(self, progress: Progress | None = None) -> CompactReport:
        """Deletes from disk what was removed, merges small segments; returns what was done.

        Queries go on meanwhile. If it is killed, the index is sound, and the next call continues.

        Raises:
            LockedError: another process is writing to the index.
            CorruptIndexError: a segment is not what was committed.
            StorageError: the disk is full; what was there stays.
        """
        return compact.total([compact.compact(shard, progress) for shard in self.store.shards])

    def rows(
        self, where: str | Iterable[str] = (), *, after: int = -1, limit: int | None = None
    ) -> Iterator[StoredSample]:
        """Yields the samples that meet all conditions, by id: `limit` of those `after` an id."""
        return rows.listing(self.store, where, after, limit)

    def get(self, key: str) -> StoredSample:
        """Returns the sample under a key; raises InputError if there is none."""
        return rows.find(self.store, key)

    def export(
        self,
        vectors: str | Path,
        rows: str | Path,
        *,
        where: str | Iterable[str] = (),
        allow_remote: bool = False,
    ) -> tuple[int, int]:
        """Writes vectors (.npy, float32 [n, dim]) and their rows (JSON Lines); returns n and dim.

        The inner product of two vectors is the influence of the samples on each other. Both are
        written to files or, by fsspec, to URLs; those of other machines need `allow_remote`.

        Raises:
            InputError: a URL is of another machine, and `allow_remote` was not given.
            StorageError: a file cannot be written.
        """
        places = upload.destination_of(str(vectors)), upload.destination_of(str(rows))
        upload.require_writable(places, allow_remote)
        with (
            upload.written(places[0], allow_remote) as first,
            upload.written(places[1], allow_remote) as second,
        ):
            return export.export(self.store, first, second, listed(where))

    def optimize(
        self,
        factory: str | None = None,
        *,
        metric: str | Metric = "dot",
        memory: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> tuple[DerivedInfo | None, str]:
        """Makes a derived index that queries of a metric use from now on; returns it and why.

        None where comparing all vectors is as well; of a sharded index, whose shards get one each,
        that with the least recall. `add`, `remove` and `compact` keep it current.

        Args:
            factory: a FAISS factory string, such as "IVF1024,SQ8"; default: what suits the samples.
            metric: as in `query`; the index for "dot" also serves "decorrelated".
            memory: bytes that it may take; default: half of what this process may take.
            progress: called with a stage, steps done and steps in all.

        Raises:
            InputError: FAISS does not know the factory, there are too few samples for it, or the
                metric has no derived index of its own, or the memory is not positive.
            LockedError: another process is writing to the index.
            StorageError: the disk is full.
        """
        shards = self.store.shards
        if memory is None:
            memory = machine.memory() // 2
        if memory <= 0:
            raise InputError(f"memory is {memory} bytes: give a positive number, or None")
        memory //= len(shards)
        made = [derived.optimize(shard, factory, metric, memory, progress) for shard in shards]
        self.store.snapshots.drop()
        return derived.worst(made)

    def verify(self) -> list[str]:
        """Reads all segments, rows and names of files; returns what is wrong, a line each."""
        return [problem for shard in self.store.shards for problem in verify.verify(shard)]

    def repair(self) -> list[str]:
        """Removes stray files, makes again what is derived; returns what was done, a line each."""
        return [done for shard in self.store.shards for done in verify.repair(shard)]

    def push(
        self,
        repo: str,
        *,
        rows: bool = True,
        license: str = "unknown",
        base_model: str | None = None,
        public: bool = False,
        token: str | None = None,
    ) -> Pushed:
        """Puts a copy of the index on the Hugging Face hub, in one commit; returns what is there.

        What was removed is not in it, nor what can be made again. Files that are there already are
        not sent again, so that a push that was interrupted continues.

        Args:
            repo: "organisation/name", a dataset repository; made, and private, if it is not there.
            rows: without them, nobody who pulls it can read them, ask for words, or for exact
                scores; keys stay.
            license: of the rows, as the hub names licences.
            base_model: the hub id of the model, if the index names a folder of this machine.
            public: make a repository that everybody can read, if it is not there yet.
            token: of the hub; default: the one that `hf auth login` keeps.

        Raises:
            InputError: the hub cannot be reached, or refuses.
            StorageError: there is no room for a copy.
        """
        from forvalue_index.store.hub import push

        return push(
            self.store,
            repo,
            rows=rows,
            license=license,
            base_model=base_model,
            public=public,
            token=token,
        )

    @staticmethod
    def pull(
        repo: str,
        directory: str | Path | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
    ) -> Path:
        """Fetches an index from the Hugging Face hub, and returns its directory.

        An interrupted call, made again, continues. The index is somebody else's: it is trusted no
        more than any directory.

        Args:
            repo: "organisation/name", a dataset repository.
            directory: not there yet, or empty; default: in the hub's cache, one for each commit.
            revision: a branch, a tag or a commit; default: the newest.
            token: of the hub; default: the one that `hf auth login` keeps.

        Raises:
            InputError: the hub cannot be reached, there is no such repository, or no index in it.
            IndexMissingError: the directory is not empty.
        """
        from forvalue_index.store.hub import pull

        return pull(repo, directory, revision=revision, token=token)

    @staticmethod
    def migrate(directory: str | Path) -> tuple[str | None, str]:
        """Brings an index to this version's schema; returns the revisions before and after.

        Raises:
            SchemaError: it was written by a newer version of this package.
        """
        return store.migrate(directory)

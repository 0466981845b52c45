"""What builds a sharded index piece by piece, as methods of `InfluenceIndex`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from forvalue_index import pipeline
from forvalue_index.errors import InputError

if TYPE_CHECKING:
    from forvalue_index.config import FormatConfig, ModelConfig, VectorConfig
    from forvalue_index.data.sources import Data
    from forvalue_index.pipeline.add import AddReport
    from forvalue_index.pipeline.open import Model
    from forvalue_index.pipeline.session import Session
    from forvalue_index.records import Fidelity, Progress


class ClusterVerbs:
    """The pieces of a sharded index. `InfluenceIndex` derives from it."""

    session: Session

    @contextmanager
    def on_ray(
        self, address: str = "auto", *, partial: bool = False, gpus: float = 0
    ) -> Iterator[None]:
        """Uses a Ray cluster for a `with` block: actors hold the shards of this index.

        They search for `query` and the like, and compute what `score`, `audit` and the values of
        `select` need of all vectors. The model runs in this process.

        Args:
            address: "local" starts Ray on this machine, "auto" finds it, "host:port" names it.
            partial: answer without shards that do not, with a warning, instead of an error.
            gpus: of each actor, for an index in the memory of GPUs.

        Raises:
            DependencyError: ray is not installed.
            InputError: there is no cluster at the address, or the index is not sharded.
        """
        from forvalue_index.cluster.engine import cluster
        from forvalue_index.cluster.search import OnRay
        from forvalue_index.shards.store import ShardedStore

        store = self.session.store
        if not isinstance(store, ShardedStore):
            raise InputError(f"{store.directory} is one index: only shards are held on Ray")
        with cluster(address) as ray:
            searcher = OnRay(ray, store, partial, gpus)
            store.snapshots.search_by(searcher)
            try:
                yield
            finally:
                store.snapshots.search_by(None)
                searcher.close()

    @staticmethod
    def learn(
        directory: str | Path,
        data: Data,
        model: Model,
        shards: int,
        *,
        format: FormatConfig | None = None,
        vector: VectorConfig | None = None,
        device: str | None = None,
        on_error: str = "stop",
        progress: Progress | None = None,
    ) -> Fidelity | None:
        """Makes a sharded index that has learned from `data` and holds no row yet.

        Its shards are then built by themselves (`build_shard`) and joined (`attach`). Arguments and
        errors are those of `build`. Returns how true vectors are expected to be.
        """
        return pipeline.shard.learn(
            directory, data, model, shards, format, vector, device, on_error, progress
        )

    @staticmethod
    def build_shard(
        directory: str | Path,
        data: Data,
        shard: str,
        model: Model,
        *,
        format: FormatConfig | None = None,
        vector: VectorConfig | None = None,
        device: str | None = None,
        on_error: str = "stop",
        progress: Progress | None = None,
    ) -> AddReport:
        """Adds those rows of `data` to one shard that belong to it, and returns what was done.

        Each process builds another shard, on any machine that has `directory`; interrupted, the
        same call continues. Arguments and errors are those of `build`; they are as in `learn`.

        Args:
            shard: its number, from 0, and how many there are, such as "3/64".
        """
        return pipeline.shard.build_shard(
            directory, data, shard, model, format, vector, device, on_error, progress
        )

    @staticmethod
    def build_on_ray(
        directory: str | Path,
        data: Data,
        model: ModelConfig | None,
        shards: int | None,
        address: str = "auto",
        *,
        format: FormatConfig | None = None,
        vector: VectorConfig | None = None,
        update: bool = False,
        gpus: float = 0,
        on_error: str = "stop",
        progress: Progress | None = None,
    ) -> AddReport:
        """Builds a sharded index on a Ray cluster, or adds to it, and returns what was done.

        `directory` and the data files are on a file system that all machines share. A worker or a
        machine that dies is replaced, and its shard continues after the last commit; when this
        process dies, the same call continues.

        Args:
            directory: of the index.
            data: as in `build`; many files are read by many workers.
            model: as in `build`, by its path or id; None adds to an index that is there.
            shards: how many; None adds to an index that is there.
            address: "local" starts Ray on this machine, "auto" finds it, "host:port" names it.
            format: as in `build`.
            vector: as in `build`.
            update: replace rows whose key is there with other content.
            gpus: of each worker; workers may share one, such as 0.5.
            on_error: as in `build`.
            progress: called with the rows of all shards.

        Raises:
            DependencyError: ray is not installed.
            WorkerError: workers die again and again without a commit in between.
        """
        from forvalue_index.cluster.build import build_on_ray

        return build_on_ray(
            directory,
            data,
            model,
            shards,
            address,
            format=format,
            vector=vector,
            update=update,
            gpus=gpus,
            on_error=on_error,
            progress=progress,
        )

    @staticmethod
    def attach(directory: str | Path, sources: Iterable[str | Path] = ()) -> list[int]:
        """Makes the shards that are there a part of their index; returns those still missing.

        Args:
            directory: of the sharded index.
            sources: copies of it elsewhere, which have shards that it lacks: these are copied.

        Raises:
            InputError: a source is of another index, or has none of the missing shards.
            CorruptIndexError: a shard is not what its place says.
            LockedError: another process is writing to the index, or to a shard.
        """
        from forvalue_index.shards.attach import attach

        return attach(Path(directory), map(Path, sources)).missing

    @staticmethod
    def reshard(directory: str | Path, shards: int, progress: Progress | None = None) -> int:
        """Deals out the rows of a sharded index to so many shards; returns how many rows it has.

        No row is encoded again, but ids change. The index is the old one until all is done, and
        cannot be written to. Interrupted, the same call continues.

        Raises:
            InputError: the number of shards is none.
            LockedError: another process is writing to the index.
            StorageError: the disk is full, which must hold the index twice.
        """
        from forvalue_index.shards.attach import manifest_of
        from forvalue_index.shards.reshard import reshard

        manifest_of(Path(directory))
        return reshard(Path(directory), shards, progress)

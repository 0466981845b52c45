"""What builds a sharded index piece by piece, as methods of `InfluenceIndex`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from forvalue_index import pipeline

if TYPE_CHECKING:
    from forvalue_index.config import FormatConfig, VectorConfig
    from forvalue_index.data.sources import Data
    from forvalue_index.pipeline.add import AddReport
    from forvalue_index.pipeline.open import Model
    from forvalue_index.records import Fidelity, Progress


class ClusterVerbs:
    """The pieces of a sharded index. `InfluenceIndex` derives from it."""

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

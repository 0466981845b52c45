"""A sharded index is built, or added to, on Ray.

    data files -> dealt out to shards (`spill.py`), a task for each part of a file
    -> the vectoriser, one task, the first time
    -> a task for each shard, its one writer: an `add` of its rows
    -> the manifest says that the shards are there

What was committed stays, whatever dies. A task whose worker or node died is begun again, and goes
on after its last chunk; a driver that died goes on when it is run again.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from forvalue_index.cluster import tasks
from forvalue_index.cluster.engine import cluster
from forvalue_index.cluster.spill import block_of, counts_of, deal_out, folder_of
from forvalue_index.config import FormatConfig, ModelConfig, VectorConfig
from forvalue_index.data.field_guess import format_of_rows
from forvalue_index.data.images import with_images
from forvalue_index.data.parts import Part, lines_in, numbered, parts_of
from forvalue_index.data.sources import Data, Sources, open_rows
from forvalue_index.data.token_rows import parted
from forvalue_index.errors import IndexMissingError, InputError, WorkerError
from forvalue_index.pipeline.add import AddReport
from forvalue_index.pipeline.build import found_from_anywhere, require_settings, require_shards
from forvalue_index.pipeline.session import Session
from forvalue_index.records import Progress
from forvalue_index.shards.attach import attach
from forvalue_index.shards.store import ShardedStore, open_or_create_shard
from forvalue_index.store.layout import REJECTS, is_index, require_empty, storing
from forvalue_index.store.manifest import MOST, read_manifest, shard_directory

log = logging.getLogger(__name__)

DEATHS = 3
"""Workers of a shard that may die one after the other before one of them commits anything."""
_SECONDS = 0.5  # between two looks at what is done


@dataclass(frozen=True, slots=True)
class Work:
    """What is built, and how."""

    directory: Path
    model: ModelConfig | None  # None: that of the index
    shards: int
    format: FormatConfig
    vector: VectorConfig
    on_error: str
    update: bool
    gpus: float  # of each worker


def build_on_ray(
    directory: str | Path,
    data: Data,
    model: ModelConfig | None,
    shards: int | None,
    address: str,
    *,
    format: FormatConfig | None = None,
    vector: VectorConfig | None = None,
    update: bool = False,
    gpus: float = 0,
    on_error: str = "stop",
    progress: Progress | None = None,
) -> AddReport:
    """Builds a sharded index on Ray, or adds to it; see `InfluenceIndex.build_on_ray`."""
    path = Path(directory).resolve()
    rows = open_rows(data)
    if model is not None:
        model = found_from_anywhere(model)
    if is_index(path):
        require_shards(path, shards)
        manifest = read_manifest(path)
        with closing(ShardedStore(path, {})) as store:
            session = Session(store, store.config, None)
            if model is not None:
                require_settings(session, format_of_rows(rows, format), vector or VectorConfig())
            format, vector = store.config.format, store.config.vector
        shards = manifest.shards
    else:
        require_empty(path)
        if model is None or shards is None:
            raise IndexMissingError(f"{path} is not an index: build it, with a model and shards")
        if not 1 <= shards <= MOST:
            raise InputError(f"an index has 1 to {MOST} shards, not {shards}")
        format, vector = format_of_rows(rows, format), vector or VectorConfig()
    work = Work(path, model, shards, format, vector, on_error, update, gpus)
    with cluster(address) as ray:
        return _Driver(ray, work, progress).run(rows)


class _Driver:
    """What hands out tasks, and begins them again."""

    def __init__(self, ray: Any, work: Work, progress: Progress | None) -> None:
        self._ray, self._work, self._progress = ray, work, progress
        self._folder = folder_of(work.directory)
        errors = ray.exceptions
        self._deaths = (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
            errors.LocalRayletDiedError,
            errors.ObjectLostError,
        )

    def run(self, rows: Any) -> AddReport:
        work = self._work
        blocks = self._deal_out(rows)
        if not is_index(work.directory):
            self._each({0: (tasks.learn, (work, blocks))})
        counts = counts_of(blocks, work.shards)
        missing = set(read_manifest(work.directory).missing)
        wanted = [number for number, n in enumerate(counts) if n or number in missing]
        reports = self._each(
            {number: (tasks.build, (work, number, blocks)) for number in wanted}, counts
        )
        attach(work.directory)
        self._gather_rejects()
        shutil.rmtree(self._folder, ignore_errors=True)
        return total([reports[number] for number in wanted], len_of(work.directory, reports))

    def _deal_out(self, rows: Any) -> list[Path]:
        """Returns the blocks of the data; those that are complete are not made again."""
        work, files = self._work, rows.files if isinstance(rows, Sources) else None
        with storing(self._folder):
            self._folder.mkdir(exist_ok=True)
        fit = work.vector.fit_samples
        if files is None:
            block = self._folder / secrets.token_hex(8)
            own = parted(with_images(rows, work.format), work.format)
            deal_out(own, work.format, work.shards, fit, block)
            return [block]
        parts = parts_of(files)
        blocks = [self._folder / block_of(own, work.format, work.shards, fit) for own in parts]
        left = [number for number, block in enumerate(blocks) if not block.exists()]
        parts = self._numbered(
            parts, {parts[number].file for number in left if parts[number].before is None}
        )
        self._each(
            {
                number: (
                    tasks.deal_out_part,
                    (work, parts[number], blocks[number], rows.allow_remote),
                )
                for number in left
            },
            gpus=0,
            stage="dealing",
        )
        return blocks

    def _numbered(self, parts: list[Part], files: set[Path]) -> list[Part]:
        """Returns the parts; those of `files` with how many lines are before them."""
        calls = {n: (lines_in, (part,)) for n, part in enumerate(parts) if part.file in files}
        lines = self._each(calls, gpus=0, stage="counting")
        result = list(parts)
        for file in files:
            places = [n for n, part in enumerate(parts) if part.file == file]
            own = numbered([parts[n] for n in places], [lines[n] for n in places])
            for n, part in zip(places, own, strict=True):
                result[n] = part
        return result

    def _each(
        self,
        calls: dict[int, tuple[Any, tuple[Any, ...]]],
        counts: Sequence[int] = (),
        gpus: float | None = None,
        stage: str = "",
    ) -> dict[int, Any]:
        """Returns the results of tasks by number; one whose worker died is begun again.

        Raises:
            WorkerError: workers die again and again, and nothing is committed in between.
            ForvalueError: what a task raised.
        """
        ray, results = self._ray, dict[int, Any]()
        board = _board(ray) if counts else None
        settings = {"num_cpus": 1, "num_gpus": self._work.gpus if gpus is None else gpus}

        def begin(number: int) -> Any:
            function, arguments = calls[number]
            remote = ray.remote(function).options(max_retries=0, **settings)
            return remote.remote(*arguments, *([board] if board else []))

        running = {begin(number): number for number in calls}
        deaths = dict.fromkeys(calls, (0, -1))
        try:
            while running:
                done, _ = ray.wait(list(running), timeout=_SECONDS)
                self._report(board, counts, stage, len(results), len(calls))
                for ref in done:
                    number = running.pop(ref)
                    try:
                        results[number] = ray.get(ref)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause from error
                    except self._deaths as error:
                        deaths[number] = self._died(number, deaths[number], error, bool(board))
                        running[begin(number)] = number
        except BaseException:
            for ref in running:
                ray.cancel(ref, force=True)
            raise
        return results

    def _died(
        self, number: int, known: tuple[int, int], error: Exception, committing: bool
    ) -> tuple[int, int]:
        """Returns the deaths in a row, and the rows that were committed at the last one."""
        times, before = known
        committed = _committed(self._work.directory, number) if committing else 0
        times = 1 if committed > before else times + 1
        reason = str(error).strip().splitlines()[0]
        log.warning("a worker of task %d died (%s): it is begun again", number, reason)
        if times >= DEATHS and committed == before:
            raise WorkerError(
                f"{times} workers of task {number} died one after the other ({reason}) and "
                "committed nothing: give each more memory, and run the same command again"
            ) from error
        return times, committed

    def _report(self, board: Any, counts: Sequence[int], stage: str, done: int, tasks: int) -> None:
        if self._progress is None:
            return
        if board is None:
            if stage:
                self._progress(stage, done, tasks, 0)
            return
        try:
            found = self._ray.get(board.read.remote(), timeout=5)
        except self._ray.exceptions.RayError:
            return
        finished = sum(own[0] for own in found.values())
        wanted = sum(found[number][1] if number in found else n for number, n in enumerate(counts))
        self._progress("encoding", finished, wanted, sum(own[2] for own in found.values()))

    def _gather_rejects(self) -> None:
        """Joins what the shards passed over in one file."""
        target = self._work.directory / REJECTS
        manifest = read_manifest(self._work.directory)
        parts = [
            shard_directory(self._work.directory, manifest, number) / REJECTS
            for number in range(self._work.shards)
        ]
        there = [part for part in parts if part.is_file()]
        with storing(self._work.directory):
            target.unlink(missing_ok=True)
            if there:
                with target.open("wb") as out:
                    for part in there:
                        out.write(part.read_bytes())


def _board(ray: Any) -> Any:
    """Returns what the tasks write their progress to; it is where the driver is."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    return (
        ray.remote(tasks.Board)
        .options(num_cpus=0, scheduling_strategy=here, max_restarts=-1)
        .remote()
    )


def _committed(directory: Path, number: int) -> int:
    """Returns a number that grows with what is committed to a shard; 0: it is not there yet."""
    if not is_index(directory):
        return 0
    if not is_index(shard_directory(directory, read_manifest(directory), number)):
        return 0
    with closing(open_or_create_shard(directory, number)) as part:
        return part.catalog.generation()


def len_of(directory: Path, reports: dict[int, AddReport]) -> int:
    """Returns the rows in the index: of the shards that nothing was added to, by counting."""
    rest = set(range(read_manifest(directory).shards)) - set(reports)
    found = sum(report.samples for report in reports.values())
    for number in rest:
        with closing(open_or_create_shard(directory, number)) as part:
            found += len(part)
    return found


def total(reports: Sequence[AddReport], samples: int) -> AddReport:
    """Returns what several shards were given, as one report."""
    if not reports:
        raise InputError("there are no rows in the data: give files that have some")
    first = reports[0]
    sums = {
        field.name: sum(getattr(report, field.name) for report in reports)
        for field in fields(AddReport)
        if field.type == "int"
    }
    kept = sum(report.retained * report.added for report in reports)
    unused = dict.fromkeys(name for report in reports for name in report.unused)
    return replace(
        first,
        **sums | {"samples": samples},
        retained=kept / sums["added"] if sums["added"] else 1.0,
        fidelity=first.expected_fidelity,
        unused=tuple(unused),
    )

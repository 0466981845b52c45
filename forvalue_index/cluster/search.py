"""Shards on Ray: actors hold them, a query is scattered, their best are merged.

What is computed from many vectors is computed by the actors as well, a block of rows at a time, and
only its results come back. An actor holds some shards, mapped and as they are now. One that dies is
begun again by Ray, with what it was asked; a shard that still does not answer makes an error, or,
of a search and if that was said before, a warning.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.errors import CorruptIndexError, InputError, WorkerError
from forvalue_index.shards.ids import Ids
from forvalue_index.shards.scatter import Asked, Best, Block, Scores, search_one, vectors_in
from forvalue_index.shards.store import ShardedStore, open_shard
from forvalue_index.store.manifest import read_manifest
from forvalue_index.store.store import Store
from forvalue_index.store.work import Work

log = logging.getLogger(__name__)

BATCH = 64
"""Queries that an actor is asked together: it searches for the next while these are merged."""
SECONDS = 120.0
"""For which an actor may be silent, its new beginning included."""
AHEAD = 2
"""Blocks of rows that an actor is given before what came of the first was taken."""
RESTARTS = 100  # of an actor


class Holder:
    """Shards, held open by an actor."""

    def __init__(self, directory: Path, numbers: list[int]) -> None:
        """Opens the shards; Ray counts on this to fail where they cannot be opened."""
        self._directory, self._manifest = directory, read_manifest(directory)
        self._all: dict[int, Store] = {}  # others among them, once they are needed
        for number in numbers:
            self._all[number] = open_shard(directory, self._manifest, number)
        self._numbers = numbers

    def search(self, asked: Asked, allowed: Mapping[int, Ids] | None) -> dict[int, Best]:
        """Returns number -> the best of each shard that may have some."""
        found = {}
        for number in self._numbers:
            if allowed is None or number in allowed:
                own = None if allowed is None else allowed[number]
                ask = partial(search_one, asked=asked, allowed=own)
                found[number] = self._all[number].answer(ask)
        return found

    def compute(self, work: Work, ids: Ids, beside: NDArray[Any] | None) -> NDArray[Any]:
        """Returns what comes of the vectors of some rows, of these shards or of others.

        Raises:
            CorruptIndexError: a row is not there any more.
        """
        return work(partial(vectors_in, self._vectors, self._manifest.shards), ids, beside)

    def _vectors(self, number: int, ids: Ids) -> Scores:
        """Returns vectors of a shard, which is opened if it is not one of this actor's."""
        if number not in self._all:
            self._all[number] = open_shard(self._directory, self._manifest, number)
        try:
            return self._all[number].answer(lambda view: view.vectors(ids))
        except InputError as error:  # whoever asks sees the other generation, and asks again
            raise CorruptIndexError(
                f"rows of shard {number} were removed meanwhile: ask again"
            ) from error

    def process(self) -> int:
        """Returns the id of this process."""
        return os.getpid()


class OnRay:
    """Searches the shards of an index by actors."""

    def __init__(self, ray: Any, store: ShardedStore, some: bool, gpus: float = 0) -> None:
        """Begins the actors, as many as there are CPUs in the cluster, and at most one a shard.

        They need no CPU of their own, so that one finds a place wherever a node is left.

        Args:
            ray: connected to a cluster.
            store: the index, on a file system that all machines share.
            some: whether shards that do not answer are left out, with a warning.
            gpus: of each actor.
        """
        self._ray, self._some, self._seconds = ray, some, SECONDS
        self._n, every = store.catalog.manifest.shards, store.numbers
        directory = store.directory.resolve()
        workers = max(1, min(len(every), int(ray.cluster_resources().get("CPU", 1))))
        remote = ray.remote(Holder).options(
            num_cpus=0,
            num_gpus=gpus,
            max_restarts=RESTARTS,
            max_task_retries=-1,
            scheduling_strategy="SPREAD",
        )
        self.actors: list[tuple[list[int], Any]] = []
        for worker in range(workers):
            numbers = every[worker::workers]
            self.actors.append((numbers, remote.remote(directory, numbers)))

    def close(self) -> None:
        """Ends the actors."""
        for _, actor in self.actors:
            self._ray.kill(actor)

    def search(self, asked: Asked, allowed: Mapping[int, Ids] | None) -> dict[int, Best]:
        """Returns the best of each shard; see `Searcher`.

        Raises:
            WorkerError: shards do not answer, and a partial answer was not asked for.
        """
        asked = replace(asked, queries=np.ascontiguousarray(asked.queries))
        parts = [
            replace(asked, queries=asked.queries[start : start + BATCH])
            for start in range(0, len(asked.queries), BATCH)
        ]
        asking = [
            [(numbers, actor.search.remote(part, allowed)) for numbers, actor in self.actors]
            for part in parts
        ]
        found: list[dict[int, Best]] = []
        silent: dict[int, str] = {}
        for refs in asking:
            answers, missing = self._gather(refs)
            silent |= missing
            found.append(answers)
        if silent:
            reason = next(iter(silent.values()))
            shown = f"shards {sorted(silent)} of {self._n} do not answer ({reason})"
            if not self._some or len(silent) == self._n:
                raise WorkerError(
                    f"{shown}: ask again when their machines are back, or accept an answer "
                    "without them (--partial)"
                )
            log.warning("answering without them: %s", shown)
        return dict(_whole(found, silent))

    def compute(self, work: Work, blocks: Iterable[Block]) -> Iterator[NDArray[Any]]:
        """Yields what comes of the vectors of each block; see `Searcher`.

        Values of a part of the rows would be of other rows than was asked: there are none without
        some shards.

        Raises:
            WorkerError: a shard does not answer.
        """
        held = {number: own for own in self.actors for number in own[0]}
        given = self._ray.put(work)
        running: deque[tuple[list[int], Any]] = deque()
        for number, ids, beside in blocks:
            numbers, actor = held[number]
            running.append((numbers, actor.compute.remote(given, ids, beside)))
            if len(running) > AHEAD * len(self.actors):
                yield self._computed(*running.popleft())
        while running:
            yield self._computed(*running.popleft())

    def _computed(self, numbers: list[int], ref: Any) -> NDArray[Any]:
        try:
            found: NDArray[Any] = self._answer(ref)
        except _SilentError as error:
            raise WorkerError(
                f"shards {numbers} of {self._n} do not answer ({error}): run the command again "
                "when their machine is back, or without --ray"
            ) from error
        return found

    def _gather(self, refs: list[tuple[list[int], Any]]) -> tuple[dict[int, Best], dict[int, str]]:
        """Returns the answers of actors, and the shards that have none, with the reason."""
        answers, missing = dict[int, Best](), dict[int, str]()
        for numbers, ref in refs:
            try:
                answers |= self._answer(ref)
            except _SilentError as error:
                missing |= dict.fromkeys(numbers, str(error))
        return answers, missing

    def _answer(self, ref: Any) -> Any:
        """Returns what an actor answers; raises what it raised."""
        try:
            return self._ray.get(ref, timeout=self._seconds)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise _SilentError(reason) from error


class _SilentError(Exception):
    """An actor does not answer; the text says why."""


def _whole(found: list[dict[int, Best]], silent: Mapping[int, str]) -> Iterator[tuple[int, Best]]:
    """Yields each shard with its best of all queries."""
    for number in sorted(found[0] if found else ()):
        if number not in silent:
            scores, ids = zip(*(answers[number] for answers in found), strict=True)
            yield number, (np.concatenate(scores), np.concatenate(ids))

"""What a server works with: an index, its threads, its jobs and its counts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from operator import attrgetter

from starlette.requests import Request

from forvalue_index.index import InfluenceIndex
from forvalue_index.records import QueryVectors, Sample
from forvalue_index.server.attribution import Attribution
from forvalue_index.server.batch import ModelLane
from forvalue_index.server.jobs import Jobs
from forvalue_index.server.lane import Lane, Stop, T
from forvalue_index.server.metrics import Metrics
from forvalue_index.server.problem import HttpError
from forvalue_index.server.reading import Reader
from forvalue_index.server.review import Review

log = logging.getLogger(__name__)

READING = 4  # threads that read rows
SEARCHING = 4  # threads that search


class Service:
    """One open index, which stays the caller's, and what answers from it."""

    def __init__(self, index: InfluenceIndex, *, writable: bool) -> None:
        self.index = index
        self.writable = writable
        self.reader = Reader(index, writable=writable)
        self.attribution = Attribution(self.reader)
        self.review = Review(index.directory, index.config.format.key_field, writable=writable)
        self.metrics = Metrics()
        self.model = ModelLane(index.query_vectors, self.metrics.encoded)
        self.reading = Lane("reading", READING)
        self.searching = Lane("searching", SEARCHING)
        self.jobs = Jobs(self.reader.names.problem, lambda: self.model.pending > 0)
        self.model_state = "loading"
        self._watch()

    def begin(self) -> None:
        """Begins to load the model."""
        self.model.start(self._load)

    def close(self) -> None:
        """Asks all work to stop."""
        for lane in (self.model, self.searching, self.reading):
            lane.close()
        self.jobs.close()

    async def read(self, request: Request, work: Callable[[Stop], T]) -> T:
        """Returns what work that needs no model returns."""
        return await self.reading.run(request, work)

    async def use_model(self, request: Request, work: Callable[[Stop], T]) -> T:
        """Returns what work with the model returns."""
        found = await self.model.run(request, work)
        self.model_state = "ready"  # also where it was not at the start
        return found

    async def encode(
        self, request: Request, prepare: Callable[[], Sample]
    ) -> tuple[Sample, QueryVectors]:
        """Returns a query and its vectors; `prepare` makes it, in the model's thread."""
        found = await self.model.encode(request, prepare)
        self.model_state = "ready"
        return found

    def require_writable(self) -> None:
        """Checks that clients may change the index.

        Raises:
            HttpError: the server only reads.
        """
        if not self.writable:
            raise HttpError(
                403, "this server only reads: start it with --allow-write to change the index"
            )

    def _load(self) -> None:
        try:
            self.index.lm  # noqa: B018
            self.model_state = "ready"
        except Exception as error:
            self.model_state = "failed"
            log.error("the model is not loaded, so that only rows are shown: %s", error)

    def _watch(self) -> None:
        watch = self.metrics.watch
        for lane in (self.model, self.searching, self.reading):
            watch(
                f"forvalue_{lane.name}_pending",
                f"Requests of the lane {lane.name} that are worked on or wait",
                partial(attrgetter("pending"), lane),
            )
        watch("forvalue_model_ready", "1: the model is loaded", lambda: self.model_state == "ready")
        watch("forvalue_samples", "Training samples in the index", lambda: len(self.index))

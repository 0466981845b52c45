"""The thread of the model: one request at a time, but queries that wait are encoded together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

from starlette.requests import Request

from forvalue_index.records import QueryVectors, Sample
from forvalue_index.server.lane import Lane, Stop

LARGEST = 16  # queries of one forward pass


@dataclass(eq=False)
class _Waiting:
    """A query that waits for its vector, until it has one or an error."""

    prepare: Callable[[], Sample]
    sample: Sample | None = None
    vectors: QueryVectors | None = None  # of one
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.vectors is not None or self.error is not None


class ModelLane(Lane):
    """A lane of one thread, which runs the model.

    Args:
        encode: returns the vectors of samples.
        report: called with the number of queries of each forward pass.
        options: of `Lane`.
    """

    def __init__(
        self,
        encode: Callable[[list[Sample]], QueryVectors],
        report: Callable[[int], None] = lambda _: None,
        **options: Any,
    ) -> None:
        super().__init__("model", 1, **options)
        self._encode = encode
        self._report = report
        self._queries: list[_Waiting] = []
        self._queue = Lock()  # of what waits

    async def encode(
        self, request: Request, prepare: Callable[[], Sample]
    ) -> tuple[Sample, QueryVectors]:
        """Returns a query and its vectors; `prepare` makes it, in the model's thread.

        Raises:
            HttpError, GoneError: as in `run`.
            ForvalueError: the query cannot be made, or not be read by the model.
        """
        own = _Waiting(prepare)
        with self._queue:
            self._queries.append(own)
        try:
            return await self.run(request, lambda stop: self._encoded(own, stop))
        finally:
            with self._queue:
                if own in self._queries:
                    self._queries.remove(own)

    def _encoded(self, own: _Waiting, stop: Stop) -> tuple[Sample, QueryVectors]:
        if not own.done:
            with self._queue:  # whoever went away has taken his query out of it
                others = [query for query in self._queries if query is not own]
                together = [own, *others[: LARGEST - 1]]
                self._queries = [query for query in self._queries if query not in together]
            self._encode_together(together)
        stop.check()
        if own.error is not None:
            raise own.error
        assert own.sample is not None and own.vectors is not None
        return own.sample, own.vectors

    def _encode_together(self, queries: list[_Waiting]) -> None:
        for query in queries:
            try:
                query.sample = query.prepare()
            except Exception as error:
                query.error = error
        ready = [query for query in queries if query.sample is not None]
        if not ready:
            return
        try:
            self._encode_ready(ready)
        except Exception as error:
            if len(ready) == 1:
                ready[0].error = error
                return
            for query in ready:  # one of them may be what the model cannot read
                try:
                    self._encode_ready([query])
                except Exception as own:
                    query.error = own

    def _encode_ready(self, queries: list[_Waiting]) -> None:
        vectors = self._encode([query.sample for query in queries if query.sample is not None])
        self._report(len(queries))
        for place, query in enumerate(queries):
            query.vectors = vectors[place : place + 1]

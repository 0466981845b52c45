"""What the server counts, in Prometheus's text form."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Receive, Scope, Send

KIND = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
QUERIES = (1, 2, 4, 8, 16)


class Metrics:
    """Counts of one server, apart from those of others in this process."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)  # memory, processor time, open files
        PlatformCollector(registry=own)
        self._requests = Counter(
            "forvalue_requests", "Requests answered", ["path", "status"], registry=own
        )
        self._seconds = Histogram(
            "forvalue_request_seconds",
            "Time from a request to the end of its answer",
            ["path"],
            buckets=SECONDS,
            registry=own,
        )
        self._together = Histogram(
            "forvalue_queries_encoded_together",
            "Queries of one forward pass",
            buckets=QUERIES,
            registry=own,
        )
        self._named = own

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Adds a number that is read when it is asked for."""
        Gauge(name, help, registry=self._named).set_function(value)

    def encoded(self, queries: int) -> None:
        """Counts a forward pass."""
        self._together.observe(queries)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Returns all of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class Measured:
    """Counts the requests to an application, by the path of their route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and counts its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # if the client goes away before the answer

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(path, status, time.monotonic() - began)

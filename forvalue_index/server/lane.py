"""Threads that do the work of requests, off the event loop, and the queue before them.

A lane of one thread is for the model, which answers one request at a time; another is for reading.
Knows no index: work is a function.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from typing import TypeVar

from starlette.requests import Request

from forvalue_index.server.problem import HttpError

T = TypeVar("T")

LOOK = 0.2  # seconds between looks at whether the client is still there


class GoneError(Exception):
    """The client has gone away, so nobody waits for the work."""


class Stop:
    """Says to work in a thread whether it should go on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._set = Event()
        self.began: float | None = None

    def set(self) -> None:
        """Asks the work to stop at its next `check`."""
        self._set.set()

    def check(self) -> None:
        """Checks that the work is still wanted.

        Raises:
            GoneError: nobody waits for it.
            HttpError: it has taken too long.
        """
        if self._set.is_set():
            raise GoneError
        if self.began is not None and time.monotonic() - self.began > self._seconds:
            raise HttpError(
                503, f"stopped after {self._seconds:g} seconds of work: ask for less", 1
            )


class Lane:
    """A few threads, and requests that wait for them.

    Args:
        name: what the threads are, for messages.
        threads: how many requests are worked on at a time.
        waiting: how many more may wait.
        each: how many one client may have here at a time.
        patience: seconds that a request waits for its turn at most.
        seconds: of work on one request at most, where the work looks at the time.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        *,
        waiting: int = 128,
        each: int = 64,
        patience: float = 60,
        seconds: float = 120,
    ) -> None:
        self.name = name
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"forvalue-{name}")
        self._most = threads + waiting
        self._each = each
        self._patience = patience
        self._seconds = seconds
        self._clients: Counter[str] = Counter()
        self._stops: set[Stop] = set()

    @property
    def pending(self) -> int:
        """Requests that are worked on or wait."""
        return len(self._stops)

    def close(self) -> None:
        """Asks all work to stop, and drops what waits."""
        for stop in self._stops:
            stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def start(self, work: Callable[[], object]) -> None:
        """Begins work that nobody waits for."""
        self._pool.submit(work)

    async def run(self, request: Request, work: Callable[[Stop], T]) -> T:
        """Returns what `work` returns in a thread; stops it when the client of `request` goes away.

        Raises:
            HttpError: there are too many requests, or this one waited too long.
            GoneError: the client has gone away.
        """
        client = request.client.host if request.client else ""
        self._require_room(client)
        stop = Stop(self._seconds)
        self._stops.add(stop)
        self._clients[client] += 1

        def begin() -> T:
            stop.check()
            stop.began = time.monotonic()
            return work(stop)

        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def done(future: Future[T]) -> None:
            self._stops.discard(stop)
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]
            if not result.done():
                _hand_over(future, result)

        future = self._pool.submit(begin)
        future.add_done_callback(lambda future: _on(loop, done, future))
        until = time.monotonic() + self._patience
        try:
            while not (await asyncio.wait({result}, timeout=LOOK))[0]:
                if await request.is_disconnected():
                    raise GoneError
                if stop.began is None and time.monotonic() > until and future.cancel():
                    raise self._busy()
            return result.result()
        finally:
            stop.set()
            future.cancel()
            result.add_done_callback(_retrieved)

    def _require_room(self, client: str) -> None:
        if self._clients[client] >= self._each:
            raise HttpError(
                429, f"you have {self._each} requests here already: wait for one of them", 1
            )
        if self.pending >= self._most:
            raise self._busy()

    def _busy(self) -> HttpError:
        return HttpError(503, f"{self.pending} requests are before this one: try again later", 5)


def _on(
    loop: asyncio.AbstractEventLoop, call: Callable[[Future[T]], None], future: Future[T]
) -> None:
    """Calls a function in the thread of an event loop, if the loop is still there."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call, future)


def _hand_over(done: Future[T], result: asyncio.Future[T]) -> None:
    """Gives what a thread made, or its error, to who waits in the event loop."""
    if done.cancelled():
        result.cancel()
    elif (error := done.exception()) is not None:
        result.set_exception(error)
    else:
        result.set_result(done.result())


def _retrieved(result: asyncio.Future[T]) -> None:
    """Takes the error of work that nobody waits for, which asyncio would report as lost."""
    if not result.cancelled():
        result.exception()

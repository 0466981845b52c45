"""Server-sent events of work that is done in a lane.

A stream begins when the first event is there, so that what is refused before has its own status.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from forvalue_index.server.lane import GoneError, Lane, Stop
from forvalue_index.server.problem import Names
from forvalue_index.server.reading import Json, finite

Work: TypeAlias = Callable[[Stop, Callable[[str, Json], None]], None]


async def events(request: Request, lane: Lane, names: Names, work: Work) -> Response:
    """Returns the events that `work` emits, as they come; an error after the first is an event.

    Raises:
        Exception: what `work` raised before its first event.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Queue[bytes | None] = asyncio.Queue()

    def emit(event: str, data: Json) -> None:
        loop.call_soon_threadsafe(ready.put_nowait, encoded(event, data))

    async def run() -> None:
        try:
            await lane.run(request, lambda stop: work(stop, emit))
        finally:
            ready.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        first = await ready.get()
    except asyncio.CancelledError:
        task.cancel()
        raise
    if first is None:
        await task

    async def stream() -> AsyncIterator[bytes]:
        try:
            event = first
            while event is not None:
                yield event
                event = await ready.get()
            with suppress(GoneError):
                try:
                    await task
                except GoneError:
                    raise
                except Exception as error:
                    yield encoded("error", names.problem(error).to_json())
        finally:
            task.cancel()  # whose lane stops the work

    return StreamingResponse(stream(), media_type="text/event-stream")


def encoded(event: str, data: Json) -> bytes:
    """Returns an event as it is sent; JSON has no line breaks of its own."""
    return f"event: {event}\ndata: {json.dumps(finite(data))}\n\n".encode()

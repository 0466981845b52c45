"""The HTTP application: one short function per path, and one kind of error for all of them."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from forvalue_index.errors import ForvalueError, brief
from forvalue_index.index import InfluenceIndex
from forvalue_index.server import schema
from forvalue_index.server.answers import Answers, Json, finite
from forvalue_index.server.guard import Admission, Guard
from forvalue_index.server.lane import GoneError, Lane, Stop
from forvalue_index.server.problem import HttpError
from forvalue_index.server.stream import events

log = logging.getLogger(__name__)

PAGE = Path(str(files("forvalue_index") / "server" / "page"))
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
GONE = 499  # what others call a request whose client has gone away; nobody sees it

Where = Annotated[schema.Conditions, Query()]

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schema.Error, "description": "what was asked cannot be answered"},
    "5XX": {"model": schema.Error, "description": "the server cannot answer now"},
    422: {"model": schema.Error, "description": "a field is missing, unknown or out of range"},
}


def create_app(index: InfluenceIndex, admission: Admission) -> ASGIApp:
    """Returns the application that answers from an open index, which stays the caller's."""
    answers = Answers(index)
    model, reading = Lane("model", 1), Lane("reading", 4)
    state = {"model": "loading"}

    def load() -> None:
        try:
            index.lm  # noqa: B018
            state["model"] = "ready"
        except Exception as error:
            state["model"] = "failed"
            log.error("the model is not loaded, so that only rows are shown: %s", error)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        model.start(load)
        yield
        model.close()
        reading.close()

    app = FastAPI(
        title="forvalue",
        description="Which training data drove this output? Everything here only reads.",
        version="1",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
        responses=ERRORS,
    )
    _handle_errors(app, answers)

    async def read(request: Request, work: Callable[[], Json]) -> Response:
        return _json(await reading.run(request, lambda _: work()))

    async def use_model(request: Request, work: Callable[[Stop], Json]) -> Response:
        found = await model.run(request, work)
        state["model"] = "ready"  # also where it was not at the start
        return _json(found)

    @app.get("/api/health", response_model=schema.Health)
    async def health() -> Response:
        """Whether the server works; needs no token."""
        return _json({"status": "ok", "model": state["model"], "pending": model.pending})

    @app.get("/api/info", response_model=schema.InfoAnswer)
    async def info(request: Request) -> Response:
        """What the index holds, and what it was made with."""
        return await read(request, answers.info)

    @app.get("/api/rows", response_model=schema.RowsAnswer)
    async def rows(
        request: Request,
        where: Where = [],  # noqa: B006
        after: Annotated[int, Query(ge=-1, le=2**63 - 1)] = -1,
        limit: Annotated[int, Query(ge=1, le=schema.MOST_ROWS)] = 20,
    ) -> Response:
        """Rows that meet all conditions, in the order in which they were added."""
        return await read(request, lambda: answers.rows(where, after, limit))

    @app.get("/api/row", response_model=schema.StoredRow)
    async def row(request: Request, key: str) -> Response:
        """The row under a key."""
        return await read(request, lambda: answers.row(key))

    @app.get("/api/search", response_model=schema.HitsAnswer)
    async def search(
        request: Request,
        words: Annotated[str, Query(min_length=1)],
        k: schema.Hits = 10,
        where: Where = [],  # noqa: B006
    ) -> Response:
        """Rows by their words (BM25), without the model."""
        return await read(request, lambda: answers.search(words, k, where))

    @app.post("/api/query", response_model=schema.HitsAnswer)
    async def query(request: Request, asked: schema.QueryRequest) -> Response:
        """The training samples that made a response more (or less) likely."""
        return await use_model(request, lambda stop: answers.query(asked, stop))

    @app.post("/api/explain", response_model=schema.ExplainAnswer)
    async def explain(request: Request, asked: schema.ExplainRequest) -> Response:
        """Through which tokens a training sample drove a response."""
        return await use_model(request, lambda stop: answers.explain(asked, stop))

    @app.post("/api/ask", response_class=StreamingResponse, responses=EVENTS)
    async def ask(request: Request, asked: schema.AskRequest) -> Response:
        """The model's answer, and the training samples behind it, as server-sent events.

        They are "token" (its text), "answer" (the row with the whole answer), "hits" (what
        `forvalue ask --json` prints), and in place of one that fails "error".
        """
        return await events(
            request, model, answers.names, lambda stop, emit: answers.ask(asked, stop, emit)
        )

    @app.get("/{name:path}", include_in_schema=False)
    async def page(name: str) -> Response:
        return _file(name or "index.html")

    return Guard(app, admission)


EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": "events: token, answer, hits, error",
    }
}


def _file(name: str) -> Response:
    """Returns a file of the page; the names are those there are, so that no other is reached."""
    known = {path.name: path for path in PAGE.iterdir() if path.suffix in TYPES}
    if name not in known:
        raise HttpError(404, "there is nothing at this address: the page is at /")
    return FileResponse(known[name], media_type=TYPES[known[name].suffix])


def _json(value: Json, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:  # a row may hold NaN
        text = json.dumps(finite(value))
    return Response(text, status, headers, "application/json")


def _handle_errors(app: FastAPI, answers: Answers) -> None:
    """Makes every error of the application one JSON sentence."""

    async def tell(_: Request, error: Exception) -> Response:
        problem = answers.names.problem(error)
        return _json(problem.to_json(), problem.status, problem.headers)

    async def tell_fields(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _json({"error": _sentence(error)}, 422)

    async def tell_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        return _json({"error": _of_status(error)}, error.status_code, headers)

    async def forget(_: Request, __: Exception) -> Response:
        return Response(status_code=GONE)

    for kind in (HttpError, ForvalueError, Exception):
        app.add_exception_handler(kind, tell)
    app.add_exception_handler(RequestValidationError, tell_fields)
    app.add_exception_handler(HTTPException, tell_http)
    app.add_exception_handler(GoneError, forget)


def _sentence(error: RequestValidationError) -> str:
    """Returns the first thing that is wrong with the fields of a request."""
    first = error.errors()[0]
    names = [part for part in first["loc"][1:] if isinstance(part, str)]
    if first["type"] == "json_invalid":
        return "the body of the request is not JSON"
    if not names:
        return 'the body of the request is not a JSON object: send it as "application/json"'
    if first["type"] == "extra_forbidden":
        return f"there is no field {brief(names[-1], 60)!r}: see /api/openapi.json"
    said = first["msg"]
    return f"field {brief('.'.join(names), 60)!r}: {said[:1].lower()}{brief(said[1:])}"


def _of_status(error: HTTPException) -> str:
    if error.status_code == 404:
        return "there is nothing at this address: see /api/openapi.json"
    if error.status_code == 405:
        return "this address does not take this method: see /api/openapi.json"
    return brief(error.detail or "the request cannot be answered")

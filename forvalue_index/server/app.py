"""The HTTP application: its paths, the page, and what is around both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp

from forvalue_index.errors import brief
from forvalue_index.index import InfluenceIndex
from forvalue_index.server import replies
from forvalue_index.server.guard import Admission, Guard
from forvalue_index.server.metrics import Measured
from forvalue_index.server.problem import HttpError
from forvalue_index.server.respond import handle_errors
from forvalue_index.server.routes.asking import asking_routes
from forvalue_index.server.routes.changing import changing_routes
from forvalue_index.server.routes.jobs import job_routes
from forvalue_index.server.routes.reading import reading_routes
from forvalue_index.server.service import Service

PAGE = Path(str(files("forvalue_index") / "server" / "page"))
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": replies.Error, "description": "what was asked cannot be answered"},
    "5XX": {"model": replies.Error, "description": "the server cannot answer now"},
    422: {"model": replies.Error, "description": "a field is missing, unknown or out of range"},
}


def create_app(
    index: InfluenceIndex, admission: Admission, *, allow_write: bool = False
) -> ASGIApp:
    """Returns the application that answers from an open index, which stays the caller's.

    `allow_write`: clients may add and remove rows, and keep decisions about them.
    """
    service = Service(index, writable=allow_write)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.begin()
        yield
        service.close()

    app = FastAPI(
        title="forvalue",
        description="Which training data drove this output?",
        version="1",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
        redirect_slashes=False,
        lifespan=lifespan,
        responses=ERRORS,
    )
    handle_errors(app, service.reader.names)
    for routes in (reading_routes, asking_routes, job_routes, changing_routes):
        app.include_router(routes(service), dependencies=[Depends(require_known_parameters)])

    @app.get("/", include_in_schema=False)
    @app.get("/{name}", include_in_schema=False)
    async def page(name: str = "index.html") -> Response:
        return _file(name)

    return Guard(Measured(app, service.metrics), admission)


async def require_known_parameters(request: Request) -> None:
    """Checks that an address has no parameter that its path does not take.

    Raises:
        HttpError: it has one, which would be without effect.
    """
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise HttpError(422, f"this address has no parameter {brief(name, 60)!r}: {takes}")


def _file(name: str) -> Response:
    """Returns a file of the page; the names are those there are, so that no other is reached."""
    known = {path.name: path for path in PAGE.iterdir() if path.suffix in TYPES}
    if name not in known:
        raise HttpError(404, "there is nothing at this address: the page is at /")
    return FileResponse(known[name], media_type=TYPES[known[name].suffix])

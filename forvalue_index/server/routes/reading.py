"""Paths that need no model."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from forvalue_index.server import replies, schema
from forvalue_index.server.metrics import KIND
from forvalue_index.server.respond import as_json
from forvalue_index.server.service import Service
from forvalue_index.server.tables import Form, download

Where = Annotated[schema.Conditions, Query()]


def reading_routes(service: Service) -> APIRouter:
    """Returns what answers from the rows of an index."""
    router, reader, read = APIRouter(), service.reader, service.read

    @router.get("/api/health", response_model=replies.Health)
    async def health() -> Response:
        """Whether the server works; needs no token."""
        return as_json(
            {"status": "ok", "model": service.model_state, "pending": service.model.pending}
        )

    @router.get("/metrics", response_class=Response, responses=PROMETHEUS)
    async def metrics(request: Request) -> Response:
        """Counts for Prometheus."""
        text = await read(request, lambda _: service.metrics.text())
        return Response(text, media_type=KIND)

    @router.get("/api/info", response_model=replies.InfoAnswer)
    async def info(request: Request) -> Response:
        """What the index holds, and what it was made with."""
        return as_json(await read(request, lambda _: reader.info()))

    @router.get("/api/rows", response_model=replies.RowsAnswer)
    async def rows(
        request: Request,
        where: Where = [],  # noqa: B006
        after: Annotated[int, Query(ge=-1, le=2**63 - 1)] = -1,
        limit: Annotated[int, Query(ge=1, le=schema.MOST_ROWS)] = 20,
    ) -> Response:
        """Rows that meet all conditions, in the order in which they were added."""
        return as_json(await read(request, lambda _: reader.rows(where, after, limit)))

    @router.get("/api/row", response_model=replies.StoredRow)
    async def row(request: Request, key: str) -> Response:
        """The row under a key."""
        return as_json(await read(request, lambda _: reader.row(key)))

    @router.get("/api/picture", response_class=Response, responses=PICTURE)
    async def picture(
        request: Request, key: str, n: Annotated[int, Query(ge=0, le=2**31)] = 0
    ) -> Response:
        """The picture number n of a row, from 0; at most 1,024 pixels on a side."""
        data = await read(request, lambda _: reader.picture(key, n))
        return Response(data, media_type="image/png")

    @router.get("/api/fields", response_model=replies.FieldsAnswer)
    async def fields(request: Request, where: Where = []) -> Response:  # noqa: B006
        """The fields of the rows that meet all conditions, with counts of their values."""
        return as_json(await read(request, lambda stop: reader.fields(where, stop)))

    @router.get("/api/search", response_model=replies.HitsAnswer)
    async def search(
        request: Request,
        words: Annotated[str, Query(min_length=1)],
        k: schema.Hits = 10,
        where: Where = [],  # noqa: B006
    ) -> Response:
        """Rows by their words (BM25), without the model."""
        return as_json(await read(request, lambda _: reader.search(words, k, where)))

    @router.get("/api/export", response_class=Response, responses=FILE)
    async def export(
        request: Request,
        where: Where = [],  # noqa: B006
        format: Form = "jsonl",
    ) -> Response:
        """The rows that meet all conditions, as a file; of pictures, hash and size."""
        return await read(
            request, lambda stop: download(reader.all_rows(where, stop), format, "rows")
        )

    return router


def _content(kind: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {kind: {"schema": {"type": "string"}}}, "description": "a file"}}


TEXT = PROMETHEUS = _content("text/plain")
PICTURE = _content("image/png")
FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            kind: {"schema": {"type": "string"}}
            for kind in ("application/jsonl", "text/csv", "application/vnd.apache.parquet")
        },
        "description": "a file",
    }
}

"""Paths that change an index or what was decided about its rows; with --allow-write only."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import PlainTextResponse, Response

from forvalue_index.server import replies, schema
from forvalue_index.server.problem import HttpError
from forvalue_index.server.respond import as_json
from forvalue_index.server.review import DROP, FIX
from forvalue_index.server.routes.jobs import started
from forvalue_index.server.routes.reading import TEXT
from forvalue_index.server.service import Service
from forvalue_index.server.uploads import all_received


def changing_routes(service: Service) -> APIRouter:
    """Returns what changes an index, and the decisions about its rows."""
    router, index, review = APIRouter(), service.index, service.review
    writable = [Depends(service.require_writable)]  # before the body is looked at

    @router.post("/api/rows", response_model=replies.Job, status_code=202, dependencies=writable)
    async def add(request: Request, asked: schema.AddRequest) -> Response:
        """Starts a job: adds rows, as `forvalue add` does."""
        rows = await service.read(request, lambda _: all_received(asked.rows, index.config.format))
        return started(
            service.jobs.start(
                "add", lambda progress: index.add(rows, update=asked.update, progress=progress)
            )
        )

    @router.post("/api/remove", response_model=replies.Removed, dependencies=writable)
    async def remove(request: Request, asked: schema.RemoveRequest) -> Response:
        """Removes rows by key or by conditions."""
        if bool(asked.keys) == bool(asked.where):
            raise HttpError(422, 'give "keys" or "where"')

        def removed() -> replies.Removed:
            n = index.remove(asked.keys, where=asked.where)
            return replies.Removed(removed=n, samples=len(index))

        found = await service.read(request, lambda _: removed())
        return as_json(found.model_dump())

    @router.get("/api/decisions", response_model=replies.DecisionsAnswer)
    async def decisions(request: Request) -> Response:
        """What was decided about rows."""
        return as_json(await service.read(request, lambda _: review.to_json()))

    @router.put("/api/decisions", response_model=replies.DecisionsAnswer, dependencies=writable)
    async def decide(request: Request, asked: schema.DecideRequest) -> Response:
        """Keeps a decision about a row, or takes it back."""

        def decided() -> object:
            row = asked.row
            if asked.decision is not None:
                stored = service.reader.find(asked.key)
                row = None if row is None else service.reader.with_pictures_of(row, stored.row)
            review.decide(asked.key, asked.decision, row, asked.note)
            return review.to_json()

        return as_json(await service.read(request, lambda _: decided()))

    @router.get(f"/api/decisions/{DROP}", response_class=Response, responses=TEXT)
    async def drop(request: Request) -> Response:
        """The keys of rows to drop, a line each, for `forvalue remove --keys-file`."""
        return PlainTextResponse(await service.read(request, lambda _: review.file(DROP)))

    @router.get(f"/api/decisions/{FIX}", response_class=Response, responses=TEXT)
    async def fix(request: Request) -> Response:
        """The rows as they should be, for `forvalue add --update`."""
        return PlainTextResponse(await service.read(request, lambda _: review.file(FIX)))

    return router

"""Paths that run the model."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from forvalue_index.metric import METRICS
from forvalue_index.server import replies, schema
from forvalue_index.server.lane import Stop
from forvalue_index.server.respond import as_json
from forvalue_index.server.service import Service
from forvalue_index.server.stream import events


def asking_routes(service: Service) -> APIRouter:
    """Returns what answers with the model of an index."""
    router, attribution, reader = APIRouter(), service.attribution, service.reader

    @router.post("/api/query", response_model=replies.HitsAnswer)
    async def query(request: Request, asked: schema.QueryRequest) -> Response:
        """The training samples that made a response more (or less) likely."""
        attribution.require_known(asked)
        if asked.exact or not METRICS[asked.metric].vectors:

            def whole(stop: Stop) -> Any:
                sample = attribution.sample(asked)
                stop.check()
                return sample, attribution.find(sample, None, asked, asked.opponents, stop)

            sample, hits = await service.use_model(request, whole)
        else:
            sample, vectors = await service.encode(request, lambda: attribution.sample(asked))
            hits = await service.searching.run(
                request,
                lambda stop: attribution.find(sample, vectors, asked, asked.opponents, stop),
            )
        if asked.highlight:
            return as_json(
                {
                    "hits": await service.use_model(
                        request, lambda stop: attribution.named(sample, hits, stop)
                    )
                }
            )
        return as_json({"hits": [reader.hit(hit) for hit in hits]})

    @router.post("/api/explain", response_model=replies.ExplainAnswer)
    async def explain(request: Request, asked: schema.ExplainRequest) -> Response:
        """Through which tokens a training sample drove a response."""
        return as_json(
            await service.use_model(request, lambda stop: attribution.explain(asked, stop))
        )

    @router.post("/api/ask", response_class=StreamingResponse, responses=EVENTS)
    async def ask(request: Request, asked: schema.AskRequest) -> Response:
        """The model's answer, and the training samples behind it, as server-sent events.

        They are "token" (its text), "answer" (the row with the whole answer), "hits" (what
        `forvalue ask --json` prints), and in place of one that fails "error".
        """
        return await events(
            request,
            service.model,
            reader.names,
            lambda stop, emit: attribution.ask(asked, stop, emit),
        )

    return router


EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["token", "answer", "hits", "error"]},
        "data": {"type": "string", "description": "JSON"},
    },
    "required": ["event", "data"],
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {"schema": EVENT}},
        "description": "events: token, answer, hits, error",
    }
}

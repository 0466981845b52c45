"""Paths of long work: score, audit, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from forvalue_index.analysis.audit.review import flat_row as flat_suspect
from forvalue_index.analysis.audit.review import verdict
from forvalue_index.analysis.audit.scores import Audit
from forvalue_index.analysis.score import Score
from forvalue_index.analysis.values import flat_row
from forvalue_index.errors import CorruptIndexError
from forvalue_index.records import Row
from forvalue_index.server import replies, schema
from forvalue_index.server.jobs import Job
from forvalue_index.server.problem import HttpError
from forvalue_index.server.respond import as_json
from forvalue_index.server.routes.reading import FILE
from forvalue_index.server.service import Service
from forvalue_index.server.tables import Form, download
from forvalue_index.server.uploads import all_received

Result = replies.ScoreResult | replies.AuditResult | replies.AddResult


def job_routes(service: Service) -> APIRouter:
    """Returns what starts, shows and ends long work."""
    router, jobs, index = APIRouter(), service.jobs, service.index
    results = Results(service)

    @router.post("/api/score", response_model=replies.Job, status_code=202)
    async def score(request: Request, asked: schema.ScoreRequest) -> Response:
        """Starts a job: what every training sample is worth for targets."""
        options = asked.model_dump(exclude={"targets"})
        targets = await service.read(
            request, lambda _: all_received(asked.targets, index.config.format)
        )
        return started(
            jobs.start("score", lambda progress: index.score(targets, **options, progress=progress))
        )

    @router.post("/api/audit", response_model=replies.Job, status_code=202)
    async def audit(request: Request, asked: schema.AuditRequest) -> Response:
        """Starts a job: which training rows are likely wrong or repeated, and why."""
        options = asked.model_dump(exclude={"trusted"})
        trusted = (
            None
            if asked.trusted is None
            else await service.read(
                request, lambda _: all_received(asked.trusted or [], index.config.format)
            )
        )
        return started(
            jobs.start(
                "audit", lambda progress: index.audit(trusted=trusted, **options, progress=progress)
            )
        )

    @router.get("/api/jobs", response_model=replies.JobsAnswer)
    async def all_jobs() -> Response:
        """The jobs that the server knows of, the newest first."""
        return as_json({"jobs": [job.to_json() for job in jobs.all()]})

    @router.get("/api/jobs/{id}", response_model=replies.Job)
    async def one(id: str) -> Response:
        """How far a job is."""
        return as_json(jobs.get(id).to_json())

    @router.delete("/api/jobs/{id}", response_model=replies.Job)
    async def cancel(id: str) -> Response:
        """Stops a job after its present batch; forgets one that has ended."""
        return as_json(jobs.cancel(id).to_json())

    @router.get("/api/jobs/{id}/result", response_model=Result)
    async def result(request: Request, id: str) -> Response:
        """The result of a job that is done, as its command prints it."""
        found = jobs.result(id)
        return as_json(await service.read(request, lambda _: results.shown(found)))

    @router.get("/api/jobs/{id}/rows", response_class=Response, responses=FILE)
    async def rows(request: Request, id: str, format: Form = "jsonl") -> Response:
        """All rows of a result as a file: of a score, every value, the best first."""
        found, kind = jobs.result(id, "score", "audit"), jobs.get(id).kind
        return await service.read(request, lambda _: results.file(found, format, kind))

    return router


def started(job: Job) -> Response:
    """Returns the answer that a job was started."""
    headers = {"location": f"/api/jobs/{job.id}"}
    return as_json(job.to_json(), 202, headers)


class Results:
    """Results of jobs, as clients get them."""

    def __init__(self, service: Service) -> None:
        self._shown = service.reader.shown
        self._index = service.index

    def shown(self, result: Any) -> Row:
        """Returns a result as JSON values."""
        if isinstance(result, Score):
            lists = {
                "groups": [asdict(group) for group in result.groups],
                "best": self._samples(result.best),
                "worst": self._samples(result.worst),
            }
            return result.summary() | lists
        if isinstance(result, Audit):
            said = verdict(result.estimate)
            return {"rows": self._samples(result.rows), "samples": len(result.ids), "verdict": said}
        return asdict(result)

    def file(self, result: Score | Audit, form: Form, name: str) -> Response:
        """Returns all rows of a result as a file called `name`.

        Raises:
            HttpError: rows of it were removed for good since.
        """
        try:
            return download(self.rows(result, form), form, name)
        except CorruptIndexError:
            if isinstance(result, Score) and not self._are_there(result.values.ids):
                raise HttpError(
                    409, "rows of this result were removed from the index since: run it again"
                ) from None
            raise

    def _are_there(self, ids: NDArray[np.int64]) -> bool:
        return bool(self._index.answer(lambda view: np.isin(ids, view.ids).all()))

    def rows(self, result: Score | Audit, form: Form) -> Iterator[Row]:
        """Yields all rows of a result, without nesting where a table is wanted."""
        rows = result.rows() if isinstance(result, Score) else iter(result.rows)
        flat = flat_row if isinstance(result, Score) else flat_suspect
        for row in rows:
            shown = row | {"sample": self._shown(row["sample"])}
            yield shown if form == "jsonl" else flat(shown)

    def _samples(self, rows: list[Row]) -> list[Row]:
        return [row | {"sample": self._shown(row["sample"])} for row in rows]

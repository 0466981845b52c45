"""Answers as JSON, and every error of the application as one JSON sentence."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from forvalue_index.errors import ForvalueError, brief
from forvalue_index.server.lane import GoneError
from forvalue_index.server.problem import HttpError, Names
from forvalue_index.server.reading import finite

GONE = 499  # what others call a request whose client has gone away; nobody sees it


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns JSON values as an answer; null for NaN, which a row may hold."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        text = json.dumps(finite(value))
    return Response(text, status, headers, "application/json")


def handle_errors(app: FastAPI, names: Names) -> None:
    """Makes every error of the application one JSON sentence."""

    async def tell(_: Request, error: Exception) -> Response:
        problem = names.problem(error)
        return as_json(problem.to_json(), problem.status, problem.headers)

    async def tell_fields(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return as_json({"error": _sentence(error)}, 422)

    async def tell_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        return as_json({"error": _of_status(error)}, error.status_code, headers)

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
    if error.status_code == 400:
        return "the body of the request cannot be read as JSON"
    if error.status_code == 404:
        return "there is nothing at this address: see /api/openapi.json"
    if error.status_code == 405:
        return "this address does not take this method: see /api/openapi.json"
    return brief(error.detail or "the request cannot be answered")

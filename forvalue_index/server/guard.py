"""What a request must have before any work: the right host, the token, and a body that is bounded.

Knows no index. It is ASGI, so that it sees a body before it is read.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forvalue_index.server.problem import HttpError

LARGEST_BODY = 256 << 10  # bytes
LARGEST_UPLOAD = 16 << 20  # of a path that takes images or many rows
UPLOADS = ("/api/query", "/api/explain", "/api/ask", "/api/score", "/api/audit", "/api/rows")
BODY_SECONDS = 20.0  # for a body to arrive
OPEN = ("/api/health",)  # says nothing of the index

_HOST = re.compile(r"(\[(?P<address>[\da-fA-F:.]+)\]|(?P<name>[\w.-]+))(:\d+)?", re.ASCII)

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class Admission:
    """Who may come in.

    Args:
        hosts: names under which clients may reach the server, in lower case and without a port.
        addresses: whether any IP address is one too: the server listens on all of the machine's.
        token: what requests to the API must bring; None: nothing.
    """

    hosts: Collection[str]
    addresses: bool = False
    token: str | None = None

    def check(self, path: str, headers: Headers, *, own: bool = False) -> None:
        """Checks the headers of a request; `own`: it came through the socket of this user.

        Raises:
            HttpError: the host or the origin is another one, or the token is missing or wrong.
        """
        host = headers.get("host", "")
        if not self._is_ours(_name(host)):
            raise HttpError(
                421,
                "this server does not answer under the host name of the request: use the address "
                "that it printed, or start it with --allow-host",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise HttpError(403, "requests from pages of other sites are not answered")
        if own or self.token is None or not _tells(path) or path in OPEN:
            return
        given = headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            raise HttpError(
                401,
                "the token is missing or wrong: send the header 'Authorization: Bearer TOKEN' with "
                "the token that the server was started with",
            )

    def _is_ours(self, name: str) -> bool:
        return name in self.hosts or (self.addresses and _is_address(name))


class Guard:
    """Refuses requests that `Admission` refuses or whose body is too large; adds the headers."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on with its whole body."""
        if scope["type"] != "http":  # start and end; the application has no web sockets
            await self._app(scope, receive, send)
            return

        async def protected(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                cached = "no-store" if _tells(scope["path"]) else "no-cache"
                headers["cache-control"] = cached
            await send(message)

        try:
            server = scope.get("server")
            own = server is not None and server[1] is None  # a Unix socket has no port
            self._admission.check(scope["path"], Headers(scope=scope), own=own)
            most = LARGEST_UPLOAD if scope["path"] in UPLOADS else LARGEST_BODY
            body = await _body(Headers(scope=scope), receive, most)
        except HttpError as problem:
            await _refuse(problem, protected)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), protected)


def _tells(path: str) -> bool:
    """Returns whether a path tells something of the index; the others are the page's files."""
    return path.startswith("/api/") or path == "/metrics"


async def _body(headers: Headers, receive: Receive, most: int) -> bytes | None:
    """Returns the whole body of a request; None if the client went away.

    Raises:
        HttpError: it is too large, or does not arrive in time.
    """
    announced = headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > most:
        raise _too_large(most)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += bytes(message.get("body", b""))
                if len(body) > most:
                    raise _too_large(most)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise HttpError(
            408, f"the body of the request did not arrive within {BODY_SECONDS:g} seconds"
        ) from None


def _too_large(most: int) -> HttpError:
    return HttpError(413, f"the body of this request has at most {most:,} bytes: send less")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Returns what gives the body once, and then what the server says, such as a disconnect."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _refuse(problem: HttpError, send: Send) -> None:
    body = json.dumps(problem.to_json()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    if problem.status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _name(host: str) -> str:
    """Returns the name in a Host header, without the port and the brackets of an IPv6 address."""
    found = _HOST.fullmatch(host)
    return "" if found is None else (found["address"] or found["name"]).lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

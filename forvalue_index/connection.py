"""Requests to a server of an index, over HTTP or through a socket of this machine.

Knows no verb: a request is a path with parameters or a JSON object, and so is its answer.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from forvalue_index.errors import InputError, ServerError, brief


class Connection:
    """A connection to a server, which is made again when the server has closed it."""

    def __init__(self, url: str, token: str | None, timeout: float) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._connection = _connection(self.url, timeout)
        self._base = "" if url.startswith("unix:") else urlsplit(self.url).path

    def close(self) -> None:
        """Closes it."""
        self._connection.close()

    def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, **parameters: Any
    ) -> dict[str, Any]:
        """Returns the JSON object that a path of the API answers; see /api/openapi.json.

        Raises:
            InputError: what was asked cannot be answered; the message is the server's.
            ServerError: the server cannot be reached, or cannot answer now.
        """
        with self._answer(method, path, body, parameters) as answer:
            found: dict[str, Any] = json.loads(_read(answer, self.url))
        return found

    def events(self, path: str, body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the server-sent events that a path answers: names and JSON objects."""
        with self._answer("POST", path, body, {}) as answer:
            event = ""
            try:
                for line in answer:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    if name == "event":
                        event = value
                    elif name == "data":
                        yield event, json.loads(value)
            except (OSError, http.client.HTTPException) as error:
                raise _lost(self.url, error) from error
            finally:
                self._connection.close()  # so that the server stops if nobody reads on

    def _answer(
        self, method: str, path: str, body: dict[str, Any] | None, parameters: dict[str, Any]
    ) -> http.client.HTTPResponse:
        headers = {"accept": "application/json, text/event-stream"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        data = None
        if body is not None:
            headers["content-type"] = "application/json"
            data = json.dumps(_sendable(body)).encode()
        query = f"?{urlencode(parameters, doseq=True)}" if parameters else ""
        where = f"{self._base}/api/{quote(path)}{query}"
        try:
            answer = self._requested(method, where, data, headers)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise _lost(self.url, error) from error
        if answer.status < 400:
            return answer
        try:
            said = json.loads(_read(answer, self.url))["error"]
        except (ValueError, KeyError, TypeError):
            said = (
                f"{self.url} answers with status {answer.status}: is it a server of this package?"
            )
        kind = (
            InputError if answer.status < 500 and answer.status not in (408, 429) else ServerError
        )
        raise kind(str(said))

    def _requested(
        self, method: str, where: str, data: bytes | None, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        """Returns the head of an answer; a connection that the server has closed is made again."""
        known = self._connection.sock is not None
        try:
            self._connection.request(method, where, data, headers)
            return self._connection.getresponse()
        except (ConnectionError, http.client.RemoteDisconnected, http.client.CannotSendRequest):
            self._connection.close()
            if not known:
                raise
        self._connection.request(method, where, data, headers)
        return self._connection.getresponse()


class _UnixConnection(http.client.HTTPConnection):
    """A connection to the socket of a server on this machine."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(url: str, timeout: float) -> http.client.HTTPConnection:
    if url.startswith("unix:"):
        return _UnixConnection(url.removeprefix("unix:"), timeout)
    parts = urlsplit(url)
    try:
        port, host = parts.port, parts.hostname
    except ValueError:
        port, host = None, None
    if parts.scheme not in ("http", "https") or not host:
        raise InputError(f"{brief(url)} is no address of a server: write http://HOST:PORT")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(host, port, timeout=timeout)


def _read(answer: http.client.HTTPResponse, url: str) -> bytes:
    try:
        return answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise _lost(url, error) from error


def _lost(url: str, error: Exception) -> ServerError:
    return ServerError(f"{url} does not answer ({brief(error)}): is forvalue serve running there?")


def _sendable(value: Any) -> Any:
    """Returns values as JSON has them: bytes as base64, a slice as its two ends."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, slice):
        return [value.start or 0, value.stop]
    if isinstance(value, dict):
        return {name: _sendable(item) for name, item in value.items()}
    return [*map(_sendable, value)] if isinstance(value, list | tuple) else value

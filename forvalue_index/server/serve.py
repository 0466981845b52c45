"""Listens at an address, and at a socket for the commands of this user, and answers."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forvalue_index.errors import DependencyError, InputError, StorageError
from forvalue_index.index import InfluenceIndex
from forvalue_index.system.runtime import listen

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERY = ("0.0.0.0", "::")
LEAST_TOKEN = 16  # characters
SHUTDOWN = 3  # seconds that requests have to end


def require_server() -> None:
    """Checks that the packages of the extra `serve` are installed.

    Raises:
        DependencyError: they are not.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise DependencyError(
            "a server needs the packages fastapi, prometheus-client and uvicorn: "
            'pip install "forvalue-index[serve]"'
        ) from None


def token_for(host: str, token: str | None) -> str | None:
    """Returns the token that clients need: the given one, or a new one beyond loopback.

    Raises:
        InputError: the given one is too short, or cannot stand in a header.
    """
    if token is None:
        return None if is_loopback(host) else secrets.token_urlsafe(24)
    if len(token) < LEAST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise InputError(
            f"a token has {LEAST_TOKEN} or more letters, digits or signs and no space: leave it "
            "out to have one made"
        )
    return token


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach a host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Serving:
    """A server that is ready to run, in this thread or another."""

    address: str  # of the page
    run: Callable[[], None]  # until it is interrupted, or stopped
    stop: Callable[[], None]  # from another thread


@contextmanager
def serving(
    index: InfluenceIndex,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    token: str | None = None,
    names: Iterable[str] = (),
    allow_write: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[Serving]:
    """Yields a server of an open index, which listens already.

    Args:
        index: what is served.
        host: name or address to listen at.
        port: 0: any that is free.
        token: that clients need; None: they need none.
        names: further host names under which clients reach the server.
        allow_write: clients may add and remove rows, and keep decisions about them.
        note: called with why this user's commands cannot use the server, if they cannot.

    Raises:
        InputError: the address is taken, or not one of this machine's.
    """
    from forvalue_index.server.app import create_app
    from forvalue_index.server.guard import Admission

    with listening(host, port) as listener, _own_socket(index, note) as own:
        shown = "localhost" if host in EVERY else f"[{host}]" if ":" in host else host
        here = [socket.gethostname()] if host in EVERY else []
        known = {name.lower() for name in (*LOOPBACK, host, *here, *names)}
        admission = Admission(known, addresses=host in EVERY, token=token)
        app = create_app(index, admission, allow_write=allow_write)
        server = http_server(app)

        def stop() -> None:
            server.should_exit = True

        yield Serving(
            f"http://{shown}:{listener.getsockname()[1]}/",
            lambda: server.run(sockets=[listener, *own]),
            stop,
        )


@contextmanager
def _own_socket(
    index: InfluenceIndex, note: Callable[[str], None]
) -> Iterator[list[socket.socket]]:
    """Yields the socket that this user's commands use; none if it cannot be made."""
    try:
        listener, path = listen(index.directory)
    except (StorageError, OSError) as error:
        note(f"commands load the model themselves: {error}")
        yield []
        return
    try:
        with listener:
            yield [listener]
    finally:
        path.unlink(missing_ok=True)


def http_server(app: ASGIApp) -> uvicorn.Server:
    """Returns the server of an application, which says only what goes wrong."""
    import uvicorn

    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",  # httptools, which is taken where it is there, reads headers without an end
        log_level="warning",
        ws="none",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN,
    )
    return uvicorn.Server(config)


def listening(host: str, port: int) -> socket.socket:
    """Returns a socket that listens at an address.

    Raises:
        InputError: it is taken, or not one of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=128)
        # asyncio sets it only where a socket names its protocol, which this one does not: without
        # it, an answer in two parts waits 40 ms for the client to confirm the first one.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        return listener
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen at {host} port {port} ({reason}): choose others with --host and --port"
        ) from None

"""`forvalue serve`: an index over HTTP, and a page to look at it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from forvalue_index.cli import render
from forvalue_index.cli.options.data import index_option
from forvalue_index.cli.options.model import OpenOptions, opening_options, ray_option


@click.command()
@index_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="NAME",
    help="Address to listen at; 0.0.0.0: all of this machine's. Beyond this machine, clients need "
    "a token.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen at; 0: any that is free.",
)
@click.option(
    "--token",
    metavar="TEXT",
    envvar="FORVALUE_TOKEN",
    show_envvar=True,
    help="What clients must know.  [default: none on this machine, else a new one is printed]",
)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="Another host name under which clients reach the server, such as a proxy's; repeatable.",
)
@click.option(
    "--allow-write",
    is_flag=True,
    help="Let clients add and remove rows, and keep decisions about rows in DIR/review.",
)
@opening_options
@ray_option
def serve(
    directory: Path,
    host: str,
    port: int,
    token: str | None,
    names: tuple[str, ...],
    allow_write: bool,
    opening: OpenOptions,
    ray: str | None,
) -> None:
    """Open an index to a browser and to programs.

    On the page one asks the model, sees the training rows behind its answer and through which
    tokens they acted, and looks through the rows. Programs get the same as JSON; /api/openapi.json
    describes it. Nothing can be changed without --allow-write. Ctrl-C ends it.

    \b
    Example:
      forvalue serve --index my.index
      forvalue serve --index my.index --port 9000 --device cuda
      forvalue serve --index my.index --host 0.0.0.0
    """
    from forvalue_index.server.serve import require_server, serving, token_for

    require_server()
    token = token_for(host, token)
    from forvalue_index.index import InfluenceIndex

    def note(text: str) -> None:
        render.notes.print(text, markup=False)

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)  # which leaves the blocks below

    with (
        _at_sigterm(end),
        InfluenceIndex.open(directory, ray=ray, **opening) as index,
        serving(
            index, host, port, token=token, names=names, allow_write=allow_write, note=note
        ) as server,
        suppress(KeyboardInterrupt),
    ):
        click.echo(server.address if token is None else f"{server.address}#token={token}")
        render.notes.print("Open this address in a browser. Ctrl-C ends the server.")
        server.run()


@contextmanager
def _at_sigterm(end: Callable[..., None]) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

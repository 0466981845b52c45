"""Options of where an index is: in a directory, or behind a server."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from forvalue_index.cli import render
from forvalue_index.cli.answers import Answers, LocalAnswers, ServerAnswers
from forvalue_index.cli.options.group import F, Option, grouped
from forvalue_index.cli.options.model import OpenOptions
from forvalue_index.errors import ForvalueError
from forvalue_index.system.runtime import running_socket

T = TypeVar("T")

_PLACE: list[Option] = [
    click.option(
        "--index",
        "directory",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Directory of the index.",
    ),
    click.option(
        "--server",
        metavar="URL",
        help="Or the address of a server of it, as `forvalue serve` prints it; a token may be in "
        "it, or in FORVALUE_TOKEN.",
    ),
    click.option(
        "--no-server",
        is_flag=True,
        help="Load the model here, even if a server of the index runs on this machine.",
    ),
]


@dataclass(frozen=True)
class Place:
    """Where an index is."""

    directory: Path | None
    server: str | None
    no_server: bool

    def __post_init__(self) -> None:
        if (self.directory is None) == (self.server is None):
            raise click.UsageError("give --index DIR, or --server URL")

    def ask(
        self,
        opening: OpenOptions,
        work: Callable[[Answers], T],
        *,
        ray: str | None = None,
        plain: bool = True,
        again: Callable[[], bool] = lambda: True,
    ) -> T:
        """Returns what `work` finds, through a server if one serves the index.

        Args:
            opening: how the model is opened; if something is said about it, no server is used.
            work: what is asked.
            ray: address of a Ray cluster that searches; then no server is used either.
            plain: whether a server on this machine can answer just as it is answered here.
            again: whether `work` may be done again here if such a server did not do it.
        """
        from forvalue_index.client import InfluenceClient

        if self.directory is None:
            if any(opening.values()) or ray is not None:
                raise click.UsageError(
                    "--model, --device, --trust-remote-code and --ray are the server's: leave them "
                    "out, or give --index"
                )
            token = os.environ.get("FORVALUE_TOKEN")
            with InfluenceClient(str(self.server), token=token) as client:
                return work(ServerAnswers(client))
        from forvalue_index.index import InfluenceIndex

        plain = plain and not self.no_server and not any(opening.values()) and ray is None
        with InfluenceIndex.open(self.directory, ray=ray, **opening) as index:
            path = running_socket(self.directory) if plain else None
            if path is not None:
                try:
                    with InfluenceClient(f"unix:{path}") as client:
                        found = work(ServerAnswers(client, index))
                    render.notes.print(
                        "Answered by the server of this index here (--no-server: without it).",
                        soft_wrap=True,
                    )
                    return found
                except ForvalueError:  # here it works, or is said as it always is
                    if not again():
                        raise
            return work(LocalAnswers(index))


def place_options(command: F) -> F:
    """Adds the options of where an index is; the command gets them as `place`."""
    return grouped(command, _PLACE, "place", Place)

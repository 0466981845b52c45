"""`forvalue migrate`: an index of an older version."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from forvalue_index.cli import render
from forvalue_index.cli.options.data import index_option


@click.command()
@index_option
def migrate(directory: Path) -> None:
    """Upgrade an index from an older version to this version's schema.

    This is a single transaction. Copy the index first if you may want to go back.

    \b
    Example:
      forvalue migrate --index my.index
    """
    from forvalue_index.index import InfluenceIndex

    before, after = InfluenceIndex.migrate(directory)
    text = "nothing to do" if before == after else f"was {before}"
    render.notes.print(f"{escape(str(directory))} has schema revision {after} ({text})")

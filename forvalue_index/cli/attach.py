"""`forvalue attach`: shards that were built by themselves become parts of their index."""

from __future__ import annotations

from pathlib import Path

import click

from forvalue_index.cli import render
from forvalue_index.cli.options.data import index_option


@click.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path), metavar="[COPY]...")
@index_option
def attach(sources: tuple[Path, ...], directory: Path) -> None:
    """Join shards to their index, once forvalue build --shard has built them.

    A COPY is a copy of the learned index in which shards were built, such as one on the disk of a
    machine: those that the index lacks are copied from it.

    \b
    Example:
      forvalue attach --index my.index
      forvalue attach /scratch/my.index --index my.index
    """
    from forvalue_index.index import InfluenceIndex

    missing = InfluenceIndex.attach(directory, sources)
    if missing:
        shown = ", ".join(map(str, missing[:20])) + (", …" if len(missing) > 20 else "")
        render.notes.print(f"{directory} still lacks shards {shown}", markup=False)
    else:
        render.notes.print(f"{directory} has all its shards", markup=False)

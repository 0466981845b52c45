"""`forvalue reshard`: the rows of a sharded index in more, or fewer, shards."""

from __future__ import annotations

from pathlib import Path

import click

from forvalue_index.cli import render
from forvalue_index.cli.options.data import index_option
from forvalue_index.cli.options.vector import shards_option
from forvalue_index.cli.progress import progress_bar


@click.command()
@index_option
@shards_option
def reshard(directory: Path, shards: int | None) -> None:
    """Deal out the rows of a sharded index to another number of shards, without the model.

    Queries go on meanwhile; nothing can be written. It can be interrupted and run again. The disk
    must hold the index twice. Ids of rows change, and optimize has to be run again.

    \b
    Example:
      forvalue reshard --index my.index --shards 128
    """
    from forvalue_index.index import InfluenceIndex

    if shards is None:
        raise click.UsageError("give --shards N: how many there will be")
    with progress_bar() as progress:
        rows = InfluenceIndex.reshard(directory, shards, progress)
    render.notes.print(f"{rows:,} rows are in {shards} shards of {directory}", markup=False)

"""`forvalue verify`: whether an index is sound."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from forvalue_index.cli import render
from forvalue_index.cli.options.data import index_option
from forvalue_index.errors import one_line


@click.command()
@index_option
@click.option(
    "--repair", is_flag=True, help="Remove stray files and rebuild what is derived; nothing else."
)
def verify(directory: Path, repair: bool) -> None:
    """Read the whole index and report what is wrong; the exit code is 1 if anything is.

    \b
    Example:
      forvalue verify --index my.index
      forvalue verify --index my.index --repair
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory) as index:
        for done in index.repair() if repair else []:
            render.notes.print(one_line(done), markup=False)
        problems = index.verify()
        samples = len(index)
    for problem in problems:
        click.echo(one_line(problem))
    if problems:
        sys.exit(1)
    render.notes.print(f"{samples:,} samples, all sound")

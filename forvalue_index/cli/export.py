"""`forvalue export`: vectors and rows as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from forvalue_index.cli import render
from forvalue_index.cli.options.data import index_option, remote_option, where_option
from forvalue_index.cli.options.output import output_of

if TYPE_CHECKING:
    from forvalue_index.data.upload import Destination


@click.command()
@index_option
@click.option("--vectors", required=True, callback=output_of, metavar="FILE", help="A .npy file.")
@click.option(
    "--rows", required=True, callback=output_of, metavar="FILE", help="A JSON Lines file."
)
@where_option
@remote_option
def export(
    directory: Path,
    vectors: Destination,
    rows: Destination,
    where: tuple[str, ...],
    allow_remote: bool,
) -> None:
    """Write vectors and rows to files or URLs, in the same order.

    The vectors are float32; the inner product of two vectors is the influence of their samples on
    each other.

    \b
    Example:
      forvalue export --index my.index --vectors out.npy --rows out.jsonl
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory) as index:
        n, dim = index.export(vectors, rows, where=where, allow_remote=allow_remote)
    render.notes.print(f"{n:,} x {dim:,} to {escape(str(vectors))}, rows to {escape(str(rows))}")

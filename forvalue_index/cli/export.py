"""`forvalue export`: vectors and rows as files."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from forvalue_index.cli import render
from forvalue_index.cli.options.data import index_option, where_option


@click.command()
@index_option
@click.option("--vectors", required=True, type=click.Path(path_type=Path), help="A .npy file.")
@click.option("--rows", required=True, type=click.Path(path_type=Path), help="A JSON Lines file.")
@where_option
def export(directory: Path, vectors: Path, rows: Path, where: tuple[str, ...]) -> None:
    """Write vectors and rows to files, in the same order.

    The vectors are float32; the inner product of two vectors is the influence of their samples on
    each other.

    \b
    Example:
      forvalue export --index my.index --vectors out.npy --rows out.jsonl
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory) as index:
        n, dim = index.export(vectors, rows, where=where)
    render.notes.print(f"{n:,} x {dim:,} to {escape(str(vectors))}, rows to {escape(str(rows))}")

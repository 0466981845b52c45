"""`forvalue list`: the samples of an index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from forvalue_index.cli import render
from forvalue_index.cli.options.data import index_option, where_option
from forvalue_index.cli.options.output import json_option


@click.command("list")
@index_option
@where_option
@click.option(
    "-k",
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Samples to list.",
)
@click.option("--after", type=int, default=-1, metavar="ID", help="Start after this id.")
@json_option
def list_samples(
    directory: Path, where: tuple[str, ...], limit: int, after: int, as_json: bool
) -> None:
    """List the samples of an index, in the order in which they were added.

    \b
    Example:
      forvalue list --index my.index --where source=math --limit 50
      forvalue list --index my.index --after 49 --json
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory) as index:
        samples = list(index.rows(where, after=after, limit=limit))
        format = index.config.format
    if as_json:
        for sample in samples:
            render.json_line(asdict(sample))
        return
    if not samples:
        render.nothing(where, f" after id {after}" if after >= 0 else "")
        return
    render.console().print(render.samples_table(samples, format))
    if len(samples) == limit:
        render.notes.print(f"there may be more: --after {samples[-1].id}")

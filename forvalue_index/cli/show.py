"""`forvalue show`: one sample of an index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from forvalue_index.cli import render
from forvalue_index.cli.options.data import index_option
from forvalue_index.cli.options.output import json_option


@click.command()
@click.argument("key")
@index_option
@json_option
def show(key: str, directory: Path, as_json: bool) -> None:
    """Show one sample: its row as it was given, and what the index stores about it.

    \b
    Example:
      forvalue show row-17 --index my.index
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory) as index:
        values, format = asdict(index.get(key)), index.config.format
    if as_json:
        render.json_line(values)
        return
    row = render.without_bytes(values.pop("row"), format)
    render.console().print(render.properties(values), "", render.properties(row), sep="\n")

"""`forvalue show`: one sample of an index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from forvalue_index.cli import render
from forvalue_index.cli.options.data import index_option
from forvalue_index.cli.options.output import json_option


@click.command()
@click.argument("key", required=False)
@index_option
@click.option("--key", "named", metavar="KEY", help="The sample's key, as other commands take it.")
@json_option
def show(key: str | None, directory: Path, named: str | None, as_json: bool) -> None:
    """Show one sample: its row as it was given, and what the index stores about it.

    \b
    Example:
      forvalue show row-17 --index my.index
    """
    from forvalue_index.index import InfluenceIndex

    keys = [each for each in (key, named) if each is not None]
    if len(keys) != 1:
        raise click.UsageError("give one key")
    with InfluenceIndex.open(directory) as index:
        values, format = asdict(index.get(keys[0])), index.config.format
    if as_json:
        render.json_line(values)
        return
    row = render.without_bytes(values.pop("row"), format)
    render.console().print(render.properties(values), "", render.properties(row), sep="\n")

"""`forvalue info` and `forvalue verify`: what an index holds, and whether it is sound."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from forvalue_index.cli import render
from forvalue_index.cli.options import index_option, json_option


@click.command()
@index_option
@json_option
def info(directory: Path, as_json: bool) -> None:
    """Show what an index holds and what it was made with.

    \b
    Example:
      forvalue info --index my.index
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory) as index:
        values = index.info()
    if as_json:
        render.json_line(values)
        return
    config = values.pop("config")
    format = config["format"]
    values["fields"] = (
        format["text_field"] or f"{format['prompt_field']}, {format['response_field']}"
    )
    values["recipe"] = config["vector"]["recipe"]
    values["max length"] = format["max_length"]
    render.console().print(render.properties(values))


@click.command()
@index_option
def verify(directory: Path) -> None:
    """Read the whole index and report what is wrong with it; exit code 1 if anything is.

    \b
    Example:
      forvalue verify --index my.index
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory) as index:
        problems = index.verify()
        samples = len(index)
    for problem in problems:
        click.echo(problem)
    if problems:
        sys.exit(1)
    render.notes.print(f"{samples:,} samples, all sound")

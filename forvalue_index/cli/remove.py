"""`forvalue remove`: samples out of an index."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from forvalue_index.cli import render
from forvalue_index.cli.options.data import content_at, index_option, remote_option, where_option


@click.command()
@index_option
@click.option("--key", "keys", multiple=True, metavar="KEY", help="A sample's key.")
@click.option(
    "--keys-file",
    metavar="FILE",
    help="File of keys, one per line, or its URL (- is standard input).",
)
@where_option
@remote_option
def remove(
    directory: Path,
    keys: tuple[str, ...],
    keys_file: str | None,
    where: tuple[str, ...],
    allow_remote: bool,
) -> None:
    """Remove samples by key, or by a condition on their fields.

    They vanish from all answers at once. Their rows and vectors stay on disk until `forvalue
    compact`.

    \b
    Example:
      forvalue remove --index my.index --key row-17 --key row-18
      forvalue remove --index my.index --where licence=unclear
      forvalue remove --index my.index --keys-file s3://bucket/drop.txt --allow-remote
    """
    from forvalue_index.index import InfluenceIndex

    wanted = list(keys)
    if keys_file is not None:
        lines = content_at(keys_file, "--keys-file", allow_remote).split("\n")
        wanted += [line for line in (line.rstrip("\r") for line in lines) if line]
    if bool(wanted or keys_file is not None) == bool(where):
        raise click.UsageError("give --key or --keys-file, or else --where")
    with InfluenceIndex.open(directory) as index:
        removed = index.remove(wanted, where=where)
        samples = len(index)
    text = f"{removed:,} {'sample' if removed == 1 else 'samples'} removed"
    missing = len(set(wanted)) - removed
    if wanted and missing:
        text += f", {missing:,} key{'s' * (missing > 1)} not found"
    render.notes.print(f"{text}; {samples:,} in {escape(str(directory))}")

"""`forvalue list`, `show`, `export`, `remove`, `compact` and `migrate`: keeping an index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.markup import escape

from forvalue_index.cli import render
from forvalue_index.cli.options import content, index_option, json_option, where_option
from forvalue_index.cli.progress import build_progress


@click.command("list")
@index_option
@where_option
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Samples to list."
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
    render.console().print(render.samples_table(samples, format))
    if len(samples) == limit:
        render.notes.print(f"there may be more: --after {samples[-1].id}")


@click.command()
@click.argument("key")
@index_option
@json_option
def show(key: str, directory: Path, as_json: bool) -> None:
    """Show one sample: its row as it was given, and what the index knows of it.

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


@click.command()
@index_option
@click.option("--key", "keys", multiple=True, metavar="KEY", help="A sample's key.")
@click.option(
    "--keys-file",
    type=click.Path(path_type=Path),
    callback=content,
    metavar="FILE",
    help="File of keys, one per line (- is standard input).",
)
@where_option
def remove(
    directory: Path, keys: tuple[str, ...], keys_file: str | None, where: tuple[str, ...]
) -> None:
    """Remove samples by key, or by a condition on their fields.

    They vanish from all answers at once. Their rows and vectors stay on disk until `forvalue
    compact`.

    \b
    Example:
      forvalue remove --index my.index --key row-17 --key row-18
      forvalue remove --index my.index --where licence=unclear
    """
    from forvalue_index.index import InfluenceIndex

    wanted = list(keys)
    if keys_file is not None:
        wanted += [line for line in (line.rstrip("\r") for line in keys_file.split("\n")) if line]
    if bool(wanted or keys_file is not None) == bool(where):
        raise click.UsageError("give --key or --keys-file, or else --where")
    with InfluenceIndex.open(directory) as index:
        removed = index.remove(wanted, where=where)
        samples = len(index)
    text = f"{removed:,} samples removed"
    missing = len(set(wanted)) - removed
    if wanted and missing:
        text += f", {missing:,} key{'s' * (missing > 1)} not found"
    render.notes.print(f"{text}; {samples:,} in {escape(str(directory))}")


@click.command()
@index_option
def compact(directory: Path) -> None:
    """Delete removed samples from the disk, and merge small segments.

    Queries keep working meanwhile. It can be interrupted and run again.

    \b
    Example:
      forvalue compact --index my.index
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory) as index, build_progress() as progress:
        report = index.compact(progress)
    render.notes.print(
        f"{report.removed:,} removed samples deleted, {report.rewritten:,} segments rewritten; "
        f"{report.segments:,} segments, {report.bytes_before:,} bytes before and "
        f"{report.bytes_after:,} after"
    )


@click.command()
@index_option
def migrate(directory: Path) -> None:
    """Upgrade an index from an older version to this version's schema.

    This is a single transaction. Copy the index first if you may want to go back.

    \b
    Example:
      forvalue migrate --index my.index
    """
    from forvalue_index.index import InfluenceIndex

    before, after = InfluenceIndex.migrate(directory)
    text = "nothing to do" if before == after else f"was {before}"
    render.notes.print(f"{escape(str(directory))} has schema revision {after} ({text})")

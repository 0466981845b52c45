"""`forvalue audit`: which training rows are likely wrong, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from forvalue_index.cli import render
from forvalue_index.cli.options.data import (
    DataOptions,
    data_options,
    index_option,
    where_option,
)
from forvalue_index.cli.options.format import field_options, format_of
from forvalue_index.cli.options.model import OpenOptions, opening_options, ray_option
from forvalue_index.cli.options.number import FiniteRange
from forvalue_index.cli.options.output import (
    dataset_option,
    html_option,
    json_option,
    k_option,
    output_option,
)
from forvalue_index.cli.progress import progress_bar
from forvalue_index.config import FormatConfig
from forvalue_index.records import Row

if TYPE_CHECKING:
    from forvalue_index.data.upload import Destination

_COLORS = {"suspect": "yellow", "near-contradiction": "dim", "near-duplicate": "dim"}


@click.command()
@index_option
@click.option(
    "--trusted",
    metavar="DATA",
    help="Rows that are known to be right: a file, or anything build reads.",
)
@data_options
@field_options
@click.option(
    "--class-field",
    metavar="FIELD",
    help="Field of the class, in training (and trusted) rows: rows are compared within it.",
)
@where_option
@click.option(
    "--top",
    default=100,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Suspects to report, at most; duplicates are reported in addition.",
)
@click.option(
    "--nearly",
    type=FiniteRange(min=0, max=1, min_open=True),
    default=0.98,
    show_default=True,
    metavar="COSINE",
    help="Least cosine of near-duplicates; one must be among the 15 nearest prompts of the other.",
)
@output_option("Write what was found: a .csv file for a spreadsheet, or .jsonl or .parquet.")
@dataset_option
@html_option("Write a page to browse.")
@k_option(10, "Rows to print.", least=0)
@json_option
@opening_options
@ray_option
def audit(
    directory: Path,
    trusted: str | None,
    source: DataOptions,
    fields: dict[str, Any],
    class_field: str | None,
    where: tuple[str, ...],
    top: int,
    nearly: float,
    output: Destination | None,
    dataset: Destination | None,
    html: Destination | None,
    k: int,
    as_json: bool,
    opening: OpenOptions,
    ray: str | None,
) -> None:
    """Find rows that are likely mislabelled, corrupted or repeated, with the reasons.

    Two things matter most: whether a row's influence agrees with that of rows with similar prompts
    (and of trusted rows, if there are any), and whether its prompt makes its response any more
    likely. All rows are run forward again. --json prints one line for each row that was found.

    How many rows are wrong is estimated by exchanging the responses of up to 512 rows, which shows
    how wrong ones look; 30 or more trusted rows make it more exact. Rows that are wrong in another
    way, such as a false fact in the usual words, are not counted.

    Near-duplicates are sought only among the 15 rows with the nearest prompts, so there may be
    fewer of them than `select --dedup` leaves out.

    \b
    Example:
      forvalue audit --index my.index --html review.html --output review.csv
      forvalue audit --index my.index --trusted checked.jsonl --class-field topic
      forvalue audit --index my.index --where source=crowd --top 500 --json > suspects.jsonl
      forvalue audit --index my.index --dataset checked.parquet
      forvalue audit --index my.shards --output review.csv --ray auto
    """
    from forvalue_index.analysis.audit.review import flat_row, page, verdict
    from forvalue_index.analysis.dataset import kept
    from forvalue_index.data.upload import require_writable, written
    from forvalue_index.data.writers import write_rows, write_text
    from forvalue_index.index import InfluenceIndex

    require_writable((output, dataset, html), source.allow_remote)
    with InfluenceIndex.open(directory, ray=ray, **opening) as index, progress_bar() as progress:
        format = index.config.format
        found = index.audit(
            trusted=None if trusted is None else source.rows(trusted),
            class_field=class_field,
            where=where,
            top=top,
            nearly=nearly,
            format=format_of(format, fields),
            progress=progress,
        )
        if dataset is not None:
            listed = {row["id"] for row in found.rows}
            own = kept(index, found.ids, set(found.ids.tolist()) - listed)
            with written(dataset, source.allow_remote) as file:
                write_rows(file, own, spreadsheet=False)
    rows, count, said = found.rows, len(found.ids), verdict(found.estimate)
    if html is not None:
        title = f"{len(rows):,} of {count:,} training rows to look at"
        with written(html, source.allow_remote) as file:
            write_text(file, page(rows, format, title))
    if output is not None:
        with written(output, source.allow_remote) as file:
            write_rows(file, map(flat_row, rows) if file.suffix != ".jsonl" else iter(rows))
    if as_json:
        for row in rows:
            render.json_line(row)
        render.notes.print(said, markup=False)
    else:
        _show(rows, k, count, format, said)
    if dataset is not None:
        kept_rows = count - len(rows)
        render.notes.print(f"{kept_rows:,} of {count:,} rows to keep in {dataset}", markup=False)
    for place in filter(None, (output, html)):
        render.notes.print(f"{len(rows):,} rows to look at in {place}", markup=False)


def _show(rows: Sequence[Row], k: int, count: int, format: FormatConfig, said: str) -> None:
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("suspicion", justify="right", no_wrap=True)
    table.add_column("key", style="cyan", no_wrap=True, max_width=render.KEY)
    table.add_column("reasons", ratio=2, overflow="fold")
    table.add_column("sample", ratio=3, overflow="fold")
    keys = render.short([row["key"] for row in rows[:k]])
    for row, key in zip(rows, keys, strict=False):
        color = _COLORS.get(row["kind"], "red")
        reasons = Text("\n").join(Text(f"· {render.one_line(reason)}") for reason in row["reasons"])
        table.add_row(
            Text(f"{row['suspicion']:.3f}", style=color),
            key,
            reasons,
            render.sample_text(row["sample"], format),
            end_section=True,
        )
    console = render.console()
    if k and rows:
        console.print(table, "", sep="\n")
    console.print(said, markup=False)
    kinds = Counter(row["kind"] for row in rows)
    words = ", ".join(f"{number:,} {name}{'s' * (number > 1)}" for name, number in kinds.items())
    console.print(f"{count:,} training rows: {words or 'nothing found'}", style="dim")

"""`forvalue select`: the training rows to keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from forvalue_index.cli import render
from forvalue_index.cli.options.data import (
    DataOptions,
    combine_option,
    data_options,
    index_option,
    metric_option,
    targets_option,
    where_option,
)
from forvalue_index.cli.options.format import field_options, format_of
from forvalue_index.cli.options.model import OpenOptions, opening_options, ray_option
from forvalue_index.cli.options.number import FiniteRange
from forvalue_index.cli.options.output import dataset_option, json_option, output_of, output_option
from forvalue_index.cli.progress import progress_bar
from forvalue_index.records import Row

if TYPE_CHECKING:
    from forvalue_index.data.upload import Destination

_NAME = 40  # of a group
_BAR = 30  # characters of a full bar


@click.command()
@index_option
@targets_option
@data_options
@field_options
@click.option("--budget", type=click.IntRange(min=1), metavar="N", help="Rows to keep.")
@click.option(
    "--ratio",
    type=FiniteRange(min=0, max=1, min_open=True),
    metavar="R",
    help="Or the share of the rows to keep, such as 0.1.",
)
@output_option(
    "Write the chosen rows as they were given, in that order: .jsonl, .csv or .parquet.",
    required=True,
)
@dataset_option
@click.option(
    "--balance",
    metavar="FIELD",
    help="Take as many rows of each value of this field, as far as there are enough.",
)
@click.option(
    "--diversity",
    type=FiniteRange(min=0),
    default=1.0,
    show_default=True,
    help="How much a row loses for repeating chosen ones; 0: choose by value alone.",
)
@click.option(
    "--dedup",
    type=FiniteRange(min=0, max=1, min_open=True),
    default=0.98,
    show_default=True,
    metavar="COSINE",
    help="Leave out rows this similar to a chosen one; 1: only identical ones.",
)
@combine_option("each")
@metric_option
@where_option
@click.option("--report", callback=output_of, metavar="FILE", help="Write the report as JSON.")
@json_option
@opening_options
@ray_option
def select(
    directory: Path,
    data: str,
    source: DataOptions,
    fields: dict[str, Any],
    budget: int | None,
    ratio: float | None,
    output: Destination,
    dataset: Destination | None,
    balance: str | None,
    diversity: float,
    dedup: float,
    combine: str,
    metric: str,
    where: tuple[str, ...],
    report: Destination | None,
    as_json: bool,
    opening: OpenOptions,
    ray: str | None,
) -> None:
    """Choose the training rows to keep for what the model should do well.

    Rows are chosen greedily by their value for the targets: what a row has in common with those
    chosen before it does not count again, so near-copies do not fill the budget. The first rows of
    the output are the choice for a smaller budget.

    \b
    Example:
      forvalue select --index my.index --data targets.jsonl --ratio 0.1 --output chosen.jsonl
      forvalue select --index my.index --data targets.jsonl --budget 1000 --balance source \\
        --output chosen.jsonl --report report.json
      forvalue select --index my.shards --data targets.jsonl --ratio 0.1 --output chosen.jsonl \\
        --ray auto
    """
    from forvalue_index.analysis.dataset import kept, rows_of
    from forvalue_index.data.upload import require_writable, written
    from forvalue_index.data.writers import write_rows, write_text
    from forvalue_index.index import InfluenceIndex

    if (budget is None) == (ratio is None):
        raise click.UsageError("give --budget N or --ratio R")
    require_writable((output, dataset, report), source.allow_remote)
    with InfluenceIndex.open(directory, ray=ray, **opening) as index, progress_bar() as progress:
        chosen = index.select(
            source.rows(data),
            budget=budget,
            ratio=ratio,
            diversity=diversity,
            dedup=dedup,
            balance=balance,
            combine=combine,
            metric=metric,
            where=where,
            format=format_of(index.config.format, fields),
            progress=progress,
        )
        # The rows will be trained on: a text that begins with "-" must not be escaped.
        with written(output, source.allow_remote) as file:
            write_rows(file, rows_of(index, chosen.ids), spreadsheet=False)
        if dataset is not None:
            every = kept(index, chosen.values.ids, chosen.ids.tolist())
            with written(dataset, source.allow_remote) as file:
                write_rows(file, every, spreadsheet=False)
    found = chosen.report()
    if report is not None:
        with written(report, source.allow_remote) as file:
            write_text(file, json.dumps(found, indent=2) + "\n")
    if as_json:
        render.json_line(found)
    else:
        _show(found, balance)
    render.notes.print(f"{found['chosen']:,} rows in {output}", markup=False)
    if dataset is not None:
        render.notes.print(f"{found['rows']:,} rows with field keep in {dataset}", markup=False)


def _show(found: Row, balance: str | None) -> None:
    console = render.console()
    curve = Table(box=None, pad_edge=False)
    for name in ("rows", "value", "by value alone"):
        curve.add_column(name, justify="right", no_wrap=True)
    curve.add_column("", no_wrap=True)
    for point in found["curve"]:
        share, best = (point[name] or 0.0 for name in ("share", "best"))
        bar = Text("█" * round(_BAR * max(share, 0)), style="green")
        bar.append("░" * (round(_BAR * max(best, 0)) - len(bar)), style="dim")
        curve.add_row(f"{point['rows']:,}", f"{share:.1%}", f"{best:.1%}", bar)
    curve.caption, curve.caption_justify = "share of the sum of all positive values", "left"
    console.print(curve, "", sep="\n")
    if "groups" in found:
        groups = Table(box=None, pad_edge=False)
        groups.add_column(Text(render.one_line(balance or "")), max_width=_NAME, no_wrap=True)
        for name in ("chosen", "of", "mean value"):
            groups.add_column(name, justify="right", no_wrap=True)
        names = render.short([group["name"] for group in found["groups"]], _NAME)
        for group, text in zip(found["groups"], names, strict=True):
            figures = f"{group['chosen']:,}", f"{group['of']:,}"
            value = render.signed(group["mean_value"])
            groups.add_row(text, *figures, value)
        console.print(groups, "", sep="\n")
    console.print(
        f"{found['chosen']:,} of {found['rows']:,} rows for {found['targets']:,} targets; mean "
        f"value {found['mean_value']:+.3g}, of all rows {found['mean_value_of_all']:+.3g}; "
        f"{found['near_copies']:,} near-copies left out",
        style="dim",
    )
    if found["harmful"]:
        render.notes.print(
            f"Warning: {found['harmful']:,} of the chosen rows hurt the targets (their value is "
            "negative): choose a smaller budget.",
            style="yellow",
        )

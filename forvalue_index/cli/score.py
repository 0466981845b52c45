"""`forvalue score`: the value of every training sample for a set of targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.cells import cell_len
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
from forvalue_index.cli.options.output import (
    dataset_option,
    json_option,
    k_option,
    output_option,
)
from forvalue_index.cli.progress import progress_bar
from forvalue_index.config import FormatConfig
from forvalue_index.records import Row

if TYPE_CHECKING:
    from forvalue_index.analysis.score import Score
    from forvalue_index.analysis.values import GroupValue
    from forvalue_index.data.upload import Destination

_BAR = 12  # characters of a bar at most
_SHORT = 6  # bars are left out if there is less room than this
_NAME = 32  # of a group's name
_GAP = 2  # between two columns
_GROUPS = 40  # of a table for people; --json has all


@click.command()
@index_option
@targets_option
@data_options
@field_options
@output_option("Write all values, best first: a .jsonl, .csv or .parquet file.")
@dataset_option
@combine_option("mean")
@metric_option
@click.option(
    "--target-group",
    metavar="FIELD",
    help="Field of the targets: adds a value for each group of targets.",
)
@click.option(
    "--group-by",
    metavar="FIELD",
    help="Field of the training rows, such as a source: shows which groups helped or hurt.",
)
@where_option
@k_option(5, "Best and worst samples to list.", least=0)
@click.option(
    "--exact",
    is_flag=True,
    help="Run targets and listed samples again, to show the exact values of these samples too.",
)
@json_option
@opening_options
@ray_option
def score(
    directory: Path,
    data: str,
    source: DataOptions,
    fields: dict[str, Any],
    output: Destination | None,
    dataset: Destination | None,
    combine: str,
    metric: str,
    target_group: str | None,
    group_by: str | None,
    where: tuple[str, ...],
    k: int,
    exact: bool,
    as_json: bool,
    opening: OpenOptions,
    ray: str | None,
) -> None:
    """Show what every training sample is worth for what the model should do well.

    The value is the mean (or highest) influence on the targets: positive where training on the
    sample raised their likelihood. It takes one pass over the stored vectors, however many targets
    there are. Means add up: the sum over a source is what the source did. With
    --metric decorrelated, they predict better what training on a part of the rows does.

    \b
    Example:
      forvalue score --index my.index --data targets.jsonl --output values.parquet
      forvalue score --index my.index --data targets.jsonl --group-by source
      forvalue score --index my.index --data targets.jsonl --target-group skill -k 20 --exact
      forvalue score --index my.index --data targets.jsonl --metric decorrelated --json
      forvalue score --index my.index --data targets.jsonl --dataset weighted.parquet
      forvalue score --index my.shards --data targets.jsonl --ray auto
    """
    from forvalue_index.analysis.dataset import weighted
    from forvalue_index.analysis.values import flat_row
    from forvalue_index.data.upload import require_writable, written
    from forvalue_index.data.writers import write_rows
    from forvalue_index.index import InfluenceIndex

    require_writable((output, dataset), source.allow_remote)
    with InfluenceIndex.open(directory, ray=ray, **opening) as index, progress_bar() as progress:
        format = index.config.format
        found = index.score(
            source.rows(data),
            k=k,
            combine=combine,
            metric=metric,
            target_group=target_group,
            group_by=group_by,
            where=where,
            exact=exact,
            format=format_of(format, fields),
            progress=progress,
        )
        if output is not None:
            rows = found.rows()
            with written(output, source.allow_remote) as file:
                write_rows(file, map(flat_row, rows) if file.suffix != ".jsonl" else rows)
        if dataset is not None:
            with written(dataset, source.allow_remote) as file:
                write_rows(file, weighted(index, found.values), spreadsheet=False)
    if as_json:
        groups = [asdict(group) for group in found.groups]
        lists = {"groups": groups, "best": found.best, "worst": found.worst}
        render.json_line(found.summary() | lists)
    else:
        _show(found, group_by, format)
    if output is not None:
        count = len(found.values.ids)
        render.notes.print(f"{count:,} values, best first, in {output}", markup=False)
    if dataset is not None:
        count = len(found.values.ids)
        render.notes.print(f"{count:,} rows with their weights in {dataset}", markup=False)


def _show(found: Score, group_by: str | None, format: FormatConfig) -> None:
    console, summary = render.console(), found.summary()
    if found.best:
        console.print(_samples("helped most", found.best, format), "", sep="\n")
    if found.worst:
        title = "helped least" if found.worst[0]["value"] > 0 else "hurt most"
        console.print(_samples(title, found.worst, format), "", sep="\n")
    if group_by:
        console.print(_groups(group_by, found.groups, console.width), "", sep="\n")
    console.print(
        f"{summary['samples']:,} training samples, {summary['combine']} over "
        f"{summary['targets']:,} targets; mean {summary['mean']:+.3g}, "
        f"{summary['helpful']:.0%} helped",
        style="dim",
    )


def _samples(title: str, rows: Sequence[Row], format: FormatConfig) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, expand=True)
    table.add_column("value", justify="right", no_wrap=True)
    exact = "exact" in rows[0]
    if exact:
        table.add_column("exact", justify="right", no_wrap=True)
    names = list(rows[0].get("values", {}))
    shown = names if len(names) <= 4 else []
    for name in shown:
        table.add_column(Text(render.one_line(name)), justify="right", no_wrap=True, max_width=12)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("key", style="cyan", no_wrap=True, max_width=render.KEY)
    table.add_column("sample", ratio=1, overflow="fold")
    keys = render.short([row["key"] for row in rows])
    for row, key in zip(rows, keys, strict=True):
        figures = [row["value"], *([row["exact"]] if exact else [])]
        figures += [row["values"][name] for name in shown]
        table.add_row(
            *map(render.signed, figures),
            f"{row['loss']:.2f}",
            f"{row['tokens']:,}",
            key,
            render.sample_text(row["sample"], format),
        )
    return table


def _groups(name: str, groups: Sequence[GroupValue], width: int) -> Table:
    """Returns the groups as a table; if it is narrow, bars and then names are shortened."""
    shown = [*groups] if len(groups) <= _GROUPS else [*groups[: _GROUPS // 2], *groups[-20:]]
    names = [render.one_line(text) for text in (name, *(group.name for group in shown))]
    figures = [("samples", "mean", "±", "sum", "helped"), *map(_figures, shown)]
    taken = sum(max(map(cell_len, column)) + _GAP for column in zip(*figures, strict=True))
    longest = min(max(map(cell_len, names)), _NAME, max(width - taken, 1))
    bar = min((width - taken - longest) // 2 - _GAP, _BAR)
    table = Table(box=None, pad_edge=False)
    table.add_column(Text(names[0]), max_width=longest, no_wrap=True)
    for column in figures[0]:
        table.add_column(column, justify="right", no_wrap=True)
    if bar >= _SHORT:
        table.add_column("", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
    largest = max(abs(group.mean) for group in groups) or 1.0
    texts = render.short(names[1:], longest)
    for group, text, (samples, _, *rest) in zip(shown, texts, figures[1:], strict=True):
        cells: list[str | Text] = [text, samples, render.signed(group.mean), *rest]
        if bar >= _SHORT:
            length = "█" * round(bar * abs(group.mean) / largest) or "▏"
            cells.append(Text(length if group.mean < 0 else "", style="red"))
            cells.append(Text(length if group.mean >= 0 else "", style="green"))
        table.add_row(*cells)
    if len(shown) < len(groups):
        table.caption = f"the first and last {_GROUPS // 2} of {len(groups):,}; --json has all"
    return table


def _figures(group: GroupValue) -> tuple[str, ...]:
    """Returns samples, mean, its error, sum and the share that helped."""
    return (
        f"{group.samples:,}",
        render.signed(group.mean).plain,
        "–" if group.se is None else f"{group.se:.2g}",
        f"{group.sum:+.3g}",
        f"{group.helpful:.0%}",
    )

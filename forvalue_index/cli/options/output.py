"""Options of where results go: JSON on standard output, and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forvalue_index.cli.options.group import Option

if TYPE_CHECKING:
    from forvalue_index.data.upload import Destination


def output_of(_: click.Context, param: click.Parameter, name: str | None) -> Destination | None:
    """Returns the file or the URL that an option names to write to."""
    from forvalue_index.data.upload import destination_of

    place = None if name is None else destination_of(name)
    if isinstance(place, Path) and place.is_dir():
        raise click.BadParameter(f"{place} is a directory", param=param)
    return place


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def _table(ctx: click.Context, param: click.Parameter, name: str | None) -> Destination | None:
    """Checks, before any work, that a file's format is known by its name."""
    place = output_of(ctx, param, name)
    if place is not None:
        from forvalue_index.data.writers import check_suffix

        check_suffix(place)
    return place


def output_option(help: str, *, required: bool = False) -> Option:
    """Returns the option of a file of rows: .jsonl, .csv or .parquet."""
    return click.option(
        "--output",
        required=required,
        callback=_table,
        metavar="FILE",
        help=help,
    )


dataset_option = click.option(
    "--dataset",
    callback=_table,
    metavar="FILE",
    help="Write all training rows as they were given, for a trainer, with one more field: weight "
    "(score: the value, none below 0, with a mean of 1) or keep (audit: not listed; select: "
    "chosen). A .jsonl, .csv or .parquet file.",
)


def html_option(help: str) -> Option:
    """Returns the option of a page that is written."""
    return click.option("--html", callback=output_of, metavar="FILE", help=help)


def k_option(default: int, help: str, *, least: int = 1) -> Option:
    """Returns the option of how many are shown."""
    return click.option(
        "-k", default=default, show_default=True, type=click.IntRange(min=least), help=help
    )


def _chart(ctx: click.Context, param: click.Parameter, name: str | None) -> Destination | None:
    """Checks, before any work, that a chart can be made, and that it is a PNG file."""
    place = output_of(ctx, param, name)
    if place is not None:
        from forvalue_index.analysis.evaluate.plots import require_plots

        require_plots(place)
    return place


plot_option = click.option(
    "--plot",
    callback=_chart,
    metavar="FILE",
    help="Also draw the table, as a PNG file.",
)

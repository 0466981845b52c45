"""What the commands of `forvalue evaluate` share: options, and methods side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from forvalue_index.cli import render
from forvalue_index.cli.bundles import F, with_options

if TYPE_CHECKING:
    from forvalue_index.analysis.evaluate.metrics import Figure

queries_option = click.option(
    "--data",
    required=True,
    metavar="FILE",
    help="Queries, in a file that `build` can read.",
)
exact_option = click.option(
    "--exact",
    is_flag=True,
    help="Also compare the exact forms of recipe and last layer; runs all samples again.",
)
gradient_option = click.option(
    "--gradient",
    is_flag=True,
    help="Also compare gradients of the whole model: one backward pass per sample; for small "
    "models.",
)


def _png(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    """Makes sure, before the work, that a picture can be written."""
    if path is not None:
        from forvalue_index.analysis.evaluate.plots import require_plots

        require_plots(path)
    return path


plot_option = click.option(
    "--plot",
    type=click.Path(path_type=Path),
    callback=_png,
    metavar="FILE",
    help="Also draw the table, as a PNG file.",
)

_TRAIN = [
    click.option(
        "--learning-rate",
        type=click.FloatRange(0, min_open=True),
        default=1e-4,
        show_default=True,
        help="Peak learning rate of the fine-tuning; small models need more.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=16,
        show_default=True,
        help="Rows per step of the fine-tuning.",
    ),
]


def train_options(command: F) -> F:
    """Adds the options of how models are fine-tuned, but for the epochs."""
    return with_options(command, _TRAIN)


def show(
    result: Any,
    columns: Mapping[str, str],
    note: str,
    *,
    title: str,
    as_json: bool,
    plot: Path | None = None,
) -> None:
    """Prints the methods of a result as a table or as JSON, and draws them.

    Args:
        result: a dataclass with `methods`: name -> figures.
        columns: name of a figure -> what it is called.
        note: what the figures mean, below the table.
        title: of the picture.
        as_json: print the whole result instead.
        plot: where the picture goes.
    """
    if plot is not None:
        from forvalue_index.analysis.evaluate.plots import bars

        bars(plot, result.methods, columns, title)
    if as_json:
        render.json_line(asdict(result))
        return
    rows = table("", *columns.values())
    for name, found in result.methods.items():
        rows.add_row(name, *(with_error(getattr(found, column)) for column in columns))
    console = render.console()
    console.print(rows)
    console.print(note, style="dim")


def table(first: str, *columns: str) -> Table:
    """Returns an empty table of numbers with names in front."""
    result = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    result.add_column(first, no_wrap=True)
    for column in columns:
        result.add_column(column, justify="right", no_wrap=True)
    return result


def number(value: float | None) -> str:
    """Returns a number as it stands in a table."""
    return "–" if value is None else f"{value:.3f}"


def with_error(figure: Figure) -> str:
    """Returns a mean with its standard error."""
    # Five of these and a name fit into 80 columns.
    error = "" if figure.se is None else f" ±{figure.se:.3f}".replace("±0", "±")
    return number(figure.mean) + error

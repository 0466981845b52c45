"""The results of studies as tables: methods side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from forvalue_index.cli import render

if TYPE_CHECKING:
    from forvalue_index.analysis.evaluate.metrics import Figure
    from forvalue_index.data.upload import Destination


def show(
    result: Any,
    columns: Mapping[str, str],
    note: str,
    *,
    title: str,
    as_json: bool,
    plot: Destination | None = None,
    allow_remote: bool = False,
) -> None:
    """Prints the methods of a result as a table or as JSON, and draws them.

    Args:
        result: a dataclass with `methods`: name -> figures.
        columns: name of a figure -> its heading.
        note: what the figures mean, below the table.
        title: of the chart.
        as_json: print the whole result instead.
        plot: file or URL of the chart.
        allow_remote: whether that may be on another machine.
    """
    if plot is not None:
        from forvalue_index.analysis.evaluate.plots import bars
        from forvalue_index.data.upload import written

        with written(plot, allow_remote) as file:
            bars(file, result.methods, columns, title)
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
    """Returns an empty table of numbers, with a first column of names."""
    result = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    result.add_column(first, no_wrap=True)
    for column in columns:
        result.add_column(column, justify="right", no_wrap=True)
    return result


def number(value: float | None) -> str:
    """Returns a number with three decimals; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def with_error(figure: Figure) -> str:
    """Returns a mean with its standard error."""
    # Five of these and a name fit into 80 columns.
    error = "" if figure.se is None else f" ±{figure.se:.3f}".replace("±0", "±")
    return number(figure.mean) + error

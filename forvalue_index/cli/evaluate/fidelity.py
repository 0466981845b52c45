"""`forvalue evaluate fidelity`: stored vectors against the exact form of the recipe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forvalue_index.cli import render
from forvalue_index.cli.evaluate.tables import number, table
from forvalue_index.cli.options.data import DataOptions, data_options, index_option, seed_option
from forvalue_index.cli.options.format import field_options, format_of
from forvalue_index.cli.options.model import OpenOptions, opening_options
from forvalue_index.cli.options.output import json_option
from forvalue_index.cli.options.study import queries_option
from forvalue_index.cli.progress import progress_bar

if TYPE_CHECKING:
    from forvalue_index.analysis.evaluate.fidelity import FidelityResult


@click.command()
@index_option
@queries_option
@data_options
@field_options
@click.option(
    "--sample",
    type=click.IntRange(min=2),
    metavar="N",
    help="Compare with N training samples, drawn at random.  [default: all of them]",
)
@seed_option
@json_option
@opening_options
def fidelity(
    directory: Path,
    data: str,
    source: DataOptions,
    fields: dict[str, Any],
    sample: int | None,
    seed: int,
    as_json: bool,
    opening: OpenOptions,
) -> None:
    """Compare stored vectors with the exact form of the recipe.

    The training samples are run forward again and scored exactly for each query; the queries
    should not be among them. The table shows the correlation of the scores, how much of the exact
    top 10 and 100 the stored vectors find, and the error of a score as a share of the two samples'
    lengths.

    \b
    Example:
      forvalue evaluate fidelity --index my.index --data questions.jsonl --sample 1000
    """
    from forvalue_index.index import InfluenceIndex

    rows = source.rows(data)
    with InfluenceIndex.open(directory, **opening) as index, progress_bar() as progress:
        format = format_of(index.config.format, fields)
        result = index.evaluate.fidelity(
            rows, sample=sample, seed=seed, format=format, progress=progress
        )
    if as_json:
        render.json_line(asdict(result))
    else:
        _show(result)


def _show(result: FidelityResult) -> None:
    shown = table("", "mean", "spread over queries", "standard error")
    for name, figure in (
        ("Pearson correlation", result.pearson),
        ("Spearman correlation", result.spearman),
        ("overlap of the top 10", result.overlap_10),
        ("overlap of the top 100", result.overlap_100),
        ("exact top 10 in the stored top 100", result.top_10_in_100),
        ("error as a share of |v| |i|", result.error),
    ):
        shown.add_row(name, *map(number, (figure.mean, figure.sd, figure.se)))
    console = render.console()
    console.print(shown)
    console.print(
        f"{result.queries:,} queries, {result.samples:,} training samples, recipe {result.recipe}, "
        f"{result.bytes_per_sample:,} bytes per sample",
        style="dim",
    )

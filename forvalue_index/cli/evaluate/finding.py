"""`forvalue evaluate`: how good an index is, measured against what is known."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from forvalue_index.cli import render
from forvalue_index.cli.options import (
    device_option,
    field_options,
    format_of,
    index_option,
    json_option,
    model_option,
)
from forvalue_index.cli.progress import build_progress

if TYPE_CHECKING:
    from forvalue_index.analysis.metrics import Figure

data_option = click.option(
    "--data", required=True, metavar="FILE", help="A JSON Lines file of queries (- is stdin)."
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")


@click.group()
def evaluate() -> None:
    """Measure how good the answers of an index are.

    \b
    Example:
      forvalue evaluate fidelity --index my.index --data questions.jsonl
      forvalue evaluate recall --index my.index --data questions.jsonl --gold-field fact
    """


@evaluate.command()
@index_option
@data_option
@field_options
@click.option(
    "--sample",
    type=click.IntRange(min=2),
    metavar="N",
    help="Compare with N training samples, drawn at random.  [default: all of them]",
)
@seed_option
@json_option
@model_option
@device_option
def fidelity(
    directory: Path,
    data: str,
    prompt_field: str | None,
    response_field: str | None,
    text_field: str | None,
    sample: int | None,
    seed: int,
    as_json: bool,
    model: str | None,
    device: str | None,
) -> None:
    """Compare stored vectors with the exact form of the recipe.

    The training samples are run forward again and scored exactly for each query; the queries
    should not be among them. Shown: correlation of the scores, how much of the exact top 10 and
    100 the stored vectors find, and the error of a score as a share of the two samples' lengths.

    \b
    Example:
      forvalue evaluate fidelity --index my.index --data questions.jsonl --sample 1000
    """
    from forvalue_index.analysis import fidelity as analysis
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory, model=model, device=device) as index:
        format = format_of(index.config.format, prompt_field, response_field, text_field)
        with build_progress() as progress:
            result = analysis.fidelity(
                index, data, sample=sample, seed=seed, format=format, progress=progress
            )
    if as_json:
        render.json_line(asdict(result))
        return
    table = _table("", "mean", "spread over queries", "standard error")
    for name, figure in (
        ("Pearson correlation", result.pearson),
        ("Spearman correlation", result.spearman),
        ("overlap of the top 10", result.overlap_10),
        ("overlap of the top 100", result.overlap_100),
        ("exact top 10 in the stored top 100", result.top_10_in_100),
        ("error as a share of |v| |i|", result.error),
    ):
        table.add_row(name, *map(_number, (figure.mean, figure.sd, figure.se)))
    console = render.console()
    console.print(table)
    console.print(
        f"{result.queries:,} queries, {result.samples:,} training samples, recipe {result.recipe}, "
        f"{result.bytes_per_sample:,} bytes a sample",
        style="dim",
    )


@evaluate.command()
@index_option
@data_option
@field_options
@click.option(
    "--gold-field",
    required=True,
    metavar="NAME",
    help="Field that a query and its true sources share.",
)
@click.option("--exact", is_flag=True, help="Also the exact form: two more passes of all samples.")
@seed_option
@json_option
@model_option
@device_option
def recall(
    directory: Path,
    data: str,
    prompt_field: str | None,
    response_field: str | None,
    text_field: str | None,
    gold_field: str,
    exact: bool,
    seed: int,
    as_json: bool,
    model: str | None,
    device: str | None,
) -> None:
    """Measure whether the true sources of an answer are found, where they are known.

    The sources of a query are the training rows with the same value of --gold-field. Influence,
    ranked by inner product, cosine and per token, stands beside BM25, embedding similarity,
    training loss, length and chance. The embedding takes a forward pass of all training rows.

    \b
    Example:
      forvalue evaluate recall --index my.index --data questions.jsonl --gold-field fact
    """
    from forvalue_index.analysis import recall as analysis
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory, model=model, device=device) as index:
        format = format_of(index.config.format, prompt_field, response_field, text_field)
        with build_progress() as progress:
            result = analysis.recall(
                index,
                data,
                gold_field,
                exact=exact,
                seed=seed,
                format=format,
                progress=progress,
            )
    if as_json:
        render.json_line(asdict(result))
        return
    table = _table("", "MRR", "hit@1", "hit@10", "AUC", "recall@gold")
    for name, found in result.methods.items():
        figures = (found.mrr, found.hit_1, found.hit_10, found.auc, found.recall)
        table.add_row(name, *map(_with_error, figures))
    console = render.console()
    console.print(table)
    console.print(
        f"{result.queries:,} queries with {_number(result.sources.mean)} sources each of "
        f"{result.samples:,} training samples; recipe {result.recipe}, {result.dim:,} numbers a "
        "vector; recall@gold: share of the n sources among the first n; ± standard error over "
        "the queries",
        style="dim",
    )


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _with_error(figure: Figure) -> str:
    # Five of these and a name fit into 80 columns.
    error = "" if figure.se is None else f" ±{figure.se:.3f}".replace("±0", "±")
    return _number(figure.mean) + error

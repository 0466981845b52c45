"""Studies of an index that is there: how true its vectors are, and what they find."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forvalue_index.cli import render
from forvalue_index.cli.bundles import F, with_options
from forvalue_index.cli.evaluate.tables import (
    exact_option,
    gradient_option,
    number,
    plot_option,
    queries_option,
    show,
    table,
)
from forvalue_index.cli.options import (
    data_options,
    device_option,
    field_options,
    format_of,
    index_option,
    json_option,
    model_option,
    seed_option,
)
from forvalue_index.cli.progress import build_progress

if TYPE_CHECKING:
    from forvalue_index.analysis.evaluate.recall import Recall


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
@model_option
@device_option
def fidelity(
    directory: Path,
    data: str,
    split: str | None,
    subset: str | None,
    fields: dict[str, Any],
    sample: int | None,
    seed: int,
    as_json: bool,
    model: str | None,
    device: str | None,
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
    from forvalue_index.analysis.evaluate import fidelity as analysis
    from forvalue_index.data.sources import open_rows
    from forvalue_index.index import InfluenceIndex

    rows = open_rows(data, split=split, subset=subset)
    with InfluenceIndex.open(directory, model=model, device=device) as index:
        format = format_of(index.config.format, fields)
        with build_progress() as progress:
            result = analysis.fidelity(
                index, rows, sample=sample, seed=seed, format=format, progress=progress
            )
    if as_json:
        render.json_line(asdict(result))
        return
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


def compared(command: F) -> F:
    """Adds the options of a study of what an index finds."""
    options = (
        *(index_option, queries_option, data_options, field_options),
        *(exact_option, gradient_option, seed_option, plot_option, json_option),
        *(model_option, device_option),
    )
    return with_options(command, options)


@click.command()
@click.option(
    "--gold-field",
    required=True,
    metavar="NAME",
    help="Field that a query and its true sources share.",
)
@compared
def recall(gold_field: str, as_json: bool, plot: Path | None, **values: Any) -> None:
    """Measure whether the true sources of an answer are found, where they are known.

    The sources of a query are the training rows with the same value of --gold-field. Influence,
    ranked by inner product, cosine and per token, is compared with BM25, embedding similarity,
    training loss, length and chance. The embedding takes a forward pass of all training rows.

    \b
    Example:
      forvalue evaluate recall --index my.index --data questions.jsonl --gold-field fact
    """
    result = _sources(gold_field, **values)
    columns = {"mrr": "MRR", "hit_1": "hit@1", "hit_10": "hit@10"}
    columns |= {"auc": "AUC", "recall": "recall@gold"}
    note = (
        f"{result.queries:,} queries with {number(result.sources.mean)} sources each among "
        f"{result.samples:,} training samples; recipe {result.recipe}, {result.dim:,} numbers per "
        "vector; recall@gold: share of the n sources found among the first n; ± standard error "
        "over the queries"
    )
    show(result, columns, note, title="Finding the sources", as_json=as_json, plot=plot)


@click.command()
@click.option(
    "--class-field", required=True, metavar="NAME", help="Field of the class, as rows have it."
)
@compared
def identify(class_field: str, as_json: bool, plot: Path | None, **values: Any) -> None:
    """Measure whether influence tells which class of the training data drove an output.

    AUC: the chance that a training row of the query's class scores above another row. Recall: the
    share of rows of that class among the highest scores, taking as many as the class has rows
    (For-Value, arXiv 2508.10180). The stored vectors, and with --exact the exact form, are compared
    with last-layer and full gradients, BM25, embedding similarity, loss, length and chance.

    \b
    Example:
      forvalue evaluate identify --index my.index --data test.jsonl --class-field task --exact
    """
    result = _sources(class_field, **values)
    note = (
        f"{result.queries:,} queries, {result.samples:,} training samples, "
        f"{number(result.sources.mean)} of the query's class; recipe {result.recipe}, "
        f"{result.dim:,} numbers per vector; ± standard error over the queries"
    )
    columns = {"auc": "AUC", "recall": "recall"}
    show(result, columns, note, title="Identifying the class", as_json=as_json, plot=plot)


def _sources(
    field: str,
    directory: Path,
    data: str,
    split: str | None,
    subset: str | None,
    fields: dict[str, Any],
    exact: bool,
    gradient: bool,
    seed: int,
    model: str | None,
    device: str | None,
) -> Recall:
    """Returns how well the samples are found that share a field with the query."""
    from forvalue_index.analysis.evaluate import recall as analysis
    from forvalue_index.data.sources import open_rows
    from forvalue_index.index import InfluenceIndex

    rows = open_rows(data, split=split, subset=subset)
    with (
        InfluenceIndex.open(directory, model=model, device=device) as index,
        build_progress() as progress,
    ):
        return analysis.recall(
            index,
            rows,
            field,
            exact=exact,
            gradient=gradient,
            seed=seed,
            format=format_of(index.config.format, fields),
            progress=progress,
        )

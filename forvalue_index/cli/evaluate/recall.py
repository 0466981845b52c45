"""`forvalue evaluate recall`: whether known sources are found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forvalue_index.cli.evaluate.tables import number, show
from forvalue_index.cli.options.data import DataOptions, data_options, index_option, seed_option
from forvalue_index.cli.options.format import field_options, format_of
from forvalue_index.cli.options.model import OpenOptions, opening_options
from forvalue_index.cli.options.output import json_option, plot_option
from forvalue_index.cli.options.study import exact_option, gradient_option, queries_option
from forvalue_index.cli.progress import progress_bar

if TYPE_CHECKING:
    from forvalue_index.data.upload import Destination


@click.command()
@index_option
@click.option(
    "--gold-field",
    required=True,
    metavar="NAME",
    help="Field that a query and its true sources share.",
)
@queries_option
@data_options
@field_options
@exact_option
@gradient_option
@seed_option
@plot_option
@json_option
@opening_options
def recall(
    directory: Path,
    gold_field: str,
    data: str,
    source: DataOptions,
    fields: dict[str, Any],
    exact: bool,
    gradient: bool,
    seed: int,
    plot: Destination | None,
    as_json: bool,
    opening: OpenOptions,
) -> None:
    """Measure whether the true sources of an answer are found, where they are known.

    The sources of a query are the training rows with the same value of --gold-field. Influence,
    ranked by inner product, cosine and per token, is compared with BM25, embedding similarity,
    training loss, length and chance. The embedding takes a forward pass of all training rows.

    \b
    Example:
      forvalue evaluate recall --index my.index --data questions.jsonl --gold-field fact
    """
    from forvalue_index.data.upload import require_writable
    from forvalue_index.index import InfluenceIndex

    require_writable([plot], source.allow_remote)
    rows = source.rows(data)
    with InfluenceIndex.open(directory, **opening) as index, progress_bar() as progress:
        result = index.evaluate.recall(
            rows,
            gold_field,
            exact=exact,
            gradient=gradient,
            seed=seed,
            format=format_of(index.config.format, fields),
            progress=progress,
        )
    columns = {"mrr": "MRR", "hit_1": "hit@1", "hit_10": "hit@10"}
    columns |= {"auc": "AUC", "recall": "recall@gold"}
    note = (
        f"{result.queries:,} queries with {number(result.sources.mean)} sources each among "
        f"{result.samples:,} training samples; recipe {result.recipe}, {result.dim:,} numbers per "
        "vector; recall@gold: share of the n sources found among the first n; ± standard error "
        "over the queries"
    )
    show(
        result,
        columns,
        note,
        title="Finding the sources",
        as_json=as_json,
        plot=plot,
        allow_remote=source.allow_remote,
    )

"""`forvalue evaluate identify`: whether the class of an output is identified."""

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
    "--class-field", required=True, metavar="NAME", help="Field of the class, as rows have it."
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
def identify(
    directory: Path,
    class_field: str,
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
    """Measure whether influence tells which class of the training data drove an output.

    AUC: the chance that a training row of the query's class scores above another row. Recall: the
    share of rows of that class among the highest scores, taking as many as the class has rows
    (For-Value, arXiv 2508.10180). The stored vectors, and with --exact the exact form, are compared
    with last-layer and full gradients, BM25, embedding similarity, loss, length and chance.

    \b
    Example:
      forvalue evaluate identify --index my.index --data test.jsonl --class-field task --exact
    """
    from forvalue_index.data.upload import require_writable
    from forvalue_index.index import InfluenceIndex

    require_writable([plot], source.allow_remote)
    rows = source.rows(data)
    with InfluenceIndex.open(directory, **opening) as index, progress_bar() as progress:
        result = index.evaluate.identify(
            rows,
            class_field,
            exact=exact,
            gradient=gradient,
            seed=seed,
            format=format_of(index.config.format, fields),
            progress=progress,
        )
    note = (
        f"{result.queries:,} queries, {result.samples:,} training samples, "
        f"{number(result.sources.mean)} of the query's class; recipe {result.recipe}, "
        f"{result.dim:,} numbers per vector; ± standard error over the queries"
    )
    columns = {"auc": "AUC", "recall": "recall"}
    show(
        result,
        columns,
        note,
        title="Identifying the class",
        as_json=as_json,
        plot=plot,
        allow_remote=source.allow_remote,
    )

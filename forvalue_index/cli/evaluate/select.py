"""`forvalue evaluate select`: what a selection is worth for fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forvalue_index.cli.evaluate.tables import show
from forvalue_index.cli.options.data import DataOptions, data_options, index_option
from forvalue_index.cli.options.format import field_options, format_of
from forvalue_index.cli.options.model import OpenOptions, opening_options
from forvalue_index.cli.options.output import json_option, plot_option
from forvalue_index.cli.options.study import (
    exact_option,
    gradient_option,
    seeds_option,
    train_options,
)
from forvalue_index.cli.progress import progress_bar
from forvalue_index.config import TrainConfig

if TYPE_CHECKING:
    from forvalue_index.data.upload import Destination


@click.command()
@index_option
@click.option("--data", required=True, metavar="FILE", help="The targets.")
@data_options
@field_options
@click.option(
    "--budget", required=True, type=click.IntRange(min=1), metavar="N", help="Rows to choose."
)
@train_options(3, "Epochs of fine-tuning.")
@seeds_option
@exact_option
@gradient_option
@plot_option
@json_option
@opening_options
def select(
    directory: Path,
    data: str,
    source: DataOptions,
    fields: dict[str, Any],
    budget: int,
    train: TrainConfig,
    seeds: int,
    exact: bool,
    gradient: bool,
    plot: Destination | None,
    as_json: bool,
    opening: OpenOptions,
) -> None:
    """Fine-tune on selections of one size and compare the targets' loss afterwards.

    The targets are split at random: rows are chosen for one half, and the loss is that of the
    other. Fine-tuning starts from the index's model. Selections by value are compared with random
    ones, the longest rows, those of the highest loss, and the most similar by embedding and BM25.

    \b
    Example:
      forvalue evaluate select --index my.index --data targets.jsonl --budget 500
    """
    from forvalue_index.data.upload import require_writable
    from forvalue_index.index import InfluenceIndex

    require_writable([plot], source.allow_remote)
    rows = source.rows(data)
    with InfluenceIndex.open(directory, **opening) as index, progress_bar() as progress:
        result = index.evaluate.select(
            rows,
            budget,
            seeds=seeds,
            train=train,
            exact=exact,
            gradient=gradient,
            format=format_of(index.config.format, fields),
            progress=progress,
        )
    note = (
        f"{result.budget:,} of {result.samples:,} rows chosen for one half of {result.targets:,} "
        f"targets; loss of the other half in nats per token; recipe {result.recipe}; ± standard "
        f"error over {result.seeds} seeds"
    )
    title = f"Fine-tuning on {budget} rows"
    show(
        result,
        {"loss": "held-out loss"},
        note,
        title=title,
        as_json=as_json,
        plot=plot,
        allow_remote=source.allow_remote,
    )

"""`forvalue evaluate mislabel`: whether rows that were made wrong on purpose are found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from forvalue_index.cli.evaluate.tables import number, show
from forvalue_index.cli.options.data import DataOptions, data_options
from forvalue_index.cli.options.format import format_for, format_options
from forvalue_index.cli.options.model import device_option, model_options
from forvalue_index.cli.options.output import json_option, plot_option
from forvalue_index.cli.options.study import (
    exact_option,
    gradient_option,
    recipe_option,
    seeds_option,
    share_range,
    train_options,
)
from forvalue_index.cli.progress import progress_bar
from forvalue_index.config import ModelConfig, TrainConfig, VectorConfig

if TYPE_CHECKING:
    from forvalue_index.data.upload import Destination


@click.command()
@model_options
@click.option("--data", required=True, metavar="FILE", help="Rows that are right.")
@data_options
@format_options
@click.option(
    "--class-field",
    metavar="NAME",
    help="Field of the class; wrong responses come from other classes.  [default: from any row]",
)
@click.option(
    "--share", type=share_range, default=0.2, show_default=True, help="Share of rows to make wrong."
)
@click.option(
    "--trusted",
    type=share_range,
    default=0.1,
    show_default=True,
    help="Share of rows to set aside as known to be right.",
)
@train_options(0, "Epochs of fine-tuning on the partly wrong rows before they are scored.")
@recipe_option
@seeds_option
@exact_option
@gradient_option
@plot_option
@json_option
@device_option
def mislabel(
    model: ModelConfig,
    data: str,
    source: DataOptions,
    fields: dict[str, Any],
    class_field: str | None,
    share: float,
    trusted: float,
    train: TrainConfig | None,
    recipe: str,
    seeds: int,
    exact: bool,
    gradient: bool,
    plot: Destination | None,
    as_json: bool,
    device: str | None,
) -> None:
    """Make rows wrong on purpose and measure whether they are found.

    A share of the rows gets the response of another row. Values compare a row with trusted rows (of
    its class); methods that begin with "audit" need none. AUC: the chance that a wrong row scores
    below a right one. Precision: the share of wrong rows among the lowest values, taking as many as
    there are wrong rows.

    \b
    Example:
      forvalue evaluate mislabel --model my-model --data train.jsonl --class-field task --share 0.4
    """
    from forvalue_index.analysis.evaluate import mislabel as study
    from forvalue_index.data.upload import require_writable
    from forvalue_index.model.language_model import load_model

    require_writable([plot], source.allow_remote)
    rows = source.rows(data)  # what is wrong with the rows is reported before a model is loaded
    format = format_for(rows, fields)
    with progress_bar() as progress:
        result = study.mislabel(
            load_model(model, device),
            rows,
            format,
            class_field=class_field,
            share=share,
            trusted=trusted,
            seeds=seeds,
            train=train,
            vector=VectorConfig(recipe=recipe),
            exact=exact,
            gradient=gradient,
            progress=progress,
        )
    note = (
        f"{number(result.wrong.mean)} of {result.rows:,} rows are wrong, {result.trusted:,} more "
        f"are trusted; recipe {result.recipe}; ± standard error over {result.seeds} seeds"
    )
    columns = {"auc": "AUC", "precision": "precision"}
    title = f"Finding wrong rows, {share:.0%} of all"
    show(
        result,
        columns,
        note,
        title=title,
        as_json=as_json,
        plot=plot,
        allow_remote=source.allow_remote,
    )

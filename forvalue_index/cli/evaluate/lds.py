"""`forvalue evaluate lds`: whether summed influence predicts the effect of training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forvalue_index.cli.evaluate.tables import number, show
from forvalue_index.cli.options.data import DataOptions, data_options, seed_option
from forvalue_index.cli.options.format import format_for, format_options
from forvalue_index.cli.options.model import device_option, model_options
from forvalue_index.cli.options.output import json_option, plot_option
from forvalue_index.cli.options.study import (
    at_option,
    gradient_option,
    share_range,
    train_options,
    work_option,
)
from forvalue_index.cli.progress import progress_bar
from forvalue_index.config import RECIPES, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from forvalue_index.data.upload import Destination


@click.command()
@model_options
@click.option("--data", required=True, metavar="FILE", help="Rows to fine-tune on.")
@click.option("--targets", required=True, metavar="FILE", help="Rows whose loss is predicted.")
@data_options
@format_options
@work_option
@click.option(
    "--subsets", type=click.IntRange(min=3), default=32, show_default=True, help="Subsets to run."
)
@click.option(
    "--share",
    type=share_range,
    default=0.5,
    show_default=True,
    help="Share of the rows that a subset keeps; the others are removed.",
)
@click.option(
    "--trainings",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trainings of each subset, each with another seed; their losses are averaged.",
)
@train_options(3, "Epochs per run.")
@click.option(
    "--recipe",
    "recipes",
    type=click.Choice(RECIPES),
    multiple=True,
    help="Recipe to compare; repeatable.  [default: all]",
)
@at_option
@seed_option
@gradient_option
@plot_option
@json_option
@device_option
def lds(
    model: ModelConfig,
    data: str,
    targets: str,
    source: DataOptions,
    fields: dict[str, Any],
    work: Path,
    subsets: int,
    share: float,
    trainings: int,
    train: TrainConfig,
    recipes: tuple[str, ...],
    at: str,
    seed: int,
    gradient: bool,
    plot: Destination | None,
    as_json: bool,
    device: str | None,
) -> None:
    """Measure whether summed influence predicts what training on a subset does.

    The model is fine-tuned on random subsets of the rows. For each target, the final losses are
    rank-correlated with the summed influence of the rows trained on: the linear datamodeling score,
    1 for a perfect prediction, 0 for none.

    \b
    Example:
      forvalue evaluate lds --model base-model --data train.jsonl --targets test.jsonl --work runs
    """
    from forvalue_index.analysis.evaluate import lds as study
    from forvalue_index.analysis.evaluate.subsets import SubsetConfig
    from forvalue_index.data.upload import require_writable
    from forvalue_index.model.language_model import load_model

    require_writable([plot], source.allow_remote)
    rows = source.rows(data)  # what is wrong with the rows is reported before a model is loaded
    format = format_for(rows, fields)
    whole = DataOptions(split=None, subset=None, allow_remote=source.allow_remote)
    with progress_bar() as progress:
        result = study.lds(
            load_model(model, device),
            rows,
            whole.rows(targets),
            work,
            format,
            subsets=subsets,
            trainings=trainings,
            config=SubsetConfig(share, seed, train),
            recipes=recipes or RECIPES,
            at=at,
            gradient=gradient,
            progress=progress,
        )
    note = (
        f"{result.subsets} subsets that keep {result.share:.0%} of {result.rows:,} rows and remove "
        f"the others, {result.trainings} training{'s' * (result.trainings > 1)} each; "
        f"{result.targets:,} targets; influence with the {at} model; ± standard error over the "
        "subsets. Loss of the targets: "
        f"{number(result.loss_before)} before, {number(result.loss_all)} trained on all rows, "
        f"{number(result.loss_subsets)} on a subset, with a spread of "
        f"{number(result.loss_spread)}"
    )
    if result.noise is not None:
        note += f"; another seed alone moves it by {number(result.noise)}"
    title = "Linear datamodeling score"
    show(
        result,
        {"lds": "LDS"},
        note,
        title=title,
        as_json=as_json,
        plot=plot,
        allow_remote=source.allow_remote,
    )

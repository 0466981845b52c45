"""Studies that train or spoil something first: wrong rows, selections, subsets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forvalue_index.cli.evaluate.tables import (
    exact_option,
    gradient_option,
    number,
    plot_option,
    show,
    train_options,
)
from forvalue_index.cli.options import (
    data_options,
    device_option,
    field_options,
    format_for,
    format_of,
    format_options,
    index_option,
    json_option,
    model_option,
    seed_option,
)
from forvalue_index.cli.progress import build_progress
from forvalue_index.config import RECIPES, VectorConfig

if TYPE_CHECKING:
    from forvalue_index.data.rows import Rows
    from forvalue_index.model.language_model import LanguageModel

base_option = click.option("--model", required=True, metavar="PATH_OR_ID", help="The model.")
share = click.FloatRange(0, 1, min_open=True, max_open=True)
seeds_option = click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How often to repeat it all with new random draws.",
)


@click.command()
@base_option
@click.option("--data", required=True, metavar="FILE", help="Rows that are right.")
@data_options
@format_options
@click.option(
    "--class-field",
    metavar="NAME",
    help="Field of the class; wrong responses come from other classes.  [default: from any row]",
)
@click.option(
    "--share", type=share, default=0.2, show_default=True, help="Share of rows to make wrong."
)
@click.option(
    "--trusted",
    type=share,
    default=0.1,
    show_default=True,
    help="Share of rows to set aside as known to be right.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Epochs of fine-tuning on the partly wrong rows before they are scored.",
)
@train_options
@click.option(
    "--recipe",
    type=click.Choice(RECIPES),
    default=VectorConfig().recipe,
    show_default=True,
    help="Recipe of the index.",
)
@seeds_option
@exact_option
@gradient_option
@plot_option
@json_option
@device_option
def mislabel(
    model: str,
    data: str,
    split: str | None,
    subset: str | None,
    fields: dict[str, Any],
    class_field: str | None,
    share: float,
    trusted: float,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    recipe: str,
    seeds: int,
    exact: bool,
    gradient: bool,
    plot: Path | None,
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
    from forvalue_index.analysis.evaluate import mislabel as analysis
    from forvalue_index.analysis.evaluate.training import TrainConfig

    rows, lm = _rows_and_model(data, split, subset, model, device)
    train = TrainConfig(epochs, learning_rate, batch_size) if epochs else None
    with build_progress() as progress:
        result = analysis.mislabel(
            lm,
            rows,
            format_for(rows, fields),
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
    show(result, columns, note, title=title, as_json=as_json, plot=plot)


@click.command()
@index_option
@click.option("--data", required=True, metavar="FILE", help="The targets.")
@data_options
@field_options
@click.option(
    "--budget", required=True, type=click.IntRange(min=1), metavar="N", help="Rows to choose."
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Epochs of fine-tuning.",
)
@train_options
@seeds_option
@exact_option
@gradient_option
@plot_option
@json_option
@model_option
@device_option
def select(
    directory: Path,
    data: str,
    split: str | None,
    subset: str | None,
    fields: dict[str, Any],
    budget: int,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seeds: int,
    exact: bool,
    gradient: bool,
    plot: Path | None,
    as_json: bool,
    model: str | None,
    device: str | None,
) -> None:
    """Fine-tune on selections of one size and compare the targets' loss afterwards.

    The targets are split at random: rows are chosen for one half, and the loss is that of the
    other. Fine-tuning starts from the index's model. Selections by value are compared with random
    ones, the longest rows, those of the highest loss, and the most similar by embedding and BM25.

    \b
    Example:
      forvalue evaluate select --index my.index --data targets.jsonl --budget 500
    """
    from forvalue_index.analysis.evaluate.selection import evaluate_selection
    from forvalue_index.analysis.evaluate.training import TrainConfig
    from forvalue_index.data.sources import open_rows
    from forvalue_index.index import InfluenceIndex

    rows = open_rows(data, split=split, subset=subset)
    with (
        InfluenceIndex.open(directory, model=model, device=device) as index,
        build_progress() as progress,
    ):
        result = evaluate_selection(
            index,
            rows,
            budget,
            seeds=seeds,
            train=TrainConfig(epochs, learning_rate, batch_size),
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
    show(result, {"loss": "held-out loss"}, note, title=title, as_json=as_json, plot=plot)


@click.command()
@base_option
@click.option("--data", required=True, metavar="FILE", help="Rows to fine-tune on.")
@click.option("--targets", required=True, metavar="FILE", help="Rows whose loss is predicted.")
@data_options
@format_options
@click.option(
    "--work",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keeps every finished run; the same command continues where it stopped.",
)
@click.option(
    "--subsets", type=click.IntRange(min=3), default=32, show_default=True, help="Subsets to run."
)
@click.option(
    "--share", type=share, default=0.5, show_default=True, help="Share of rows in a subset."
)
@click.option(
    "--epochs", type=click.IntRange(min=1), default=3, show_default=True, help="Epochs per run."
)
@train_options
@click.option(
    "--recipe",
    "recipes",
    type=click.Choice(RECIPES),
    multiple=True,
    help="Recipe to compare; repeatable.  [default: all]",
)
@click.option(
    "--at",
    type=click.Choice(["tuned", "base"]),
    default="tuned",
    show_default=True,
    help="Measure influence with the model fine-tuned on all rows, or with the original.",
)
@seed_option
@gradient_option
@plot_option
@json_option
@device_option
def lds(
    model: str,
    data: str,
    targets: str,
    split: str | None,
    subset: str | None,
    fields: dict[str, Any],
    work: Path,
    subsets: int,
    share: float,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    recipes: tuple[str, ...],
    at: str,
    seed: int,
    gradient: bool,
    plot: Path | None,
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
    from forvalue_index.analysis.evaluate import lds as analysis
    from forvalue_index.analysis.evaluate.subsets import SubsetConfig
    from forvalue_index.analysis.evaluate.training import TrainConfig
    from forvalue_index.data.sources import open_rows

    rows, lm = _rows_and_model(data, split, subset, model, device)
    with build_progress() as progress:
        result = analysis.lds(
            lm,
            rows,
            open_rows(targets),
            work,
            format_for(rows, fields),
            subsets=subsets,
            config=SubsetConfig(share, seed, TrainConfig(epochs, learning_rate, batch_size)),
            recipes=recipes or RECIPES,
            at=at,
            gradient=gradient,
            progress=progress,
        )
    note = (
        f"{result.subsets} subsets of {result.share:.0%} of {result.rows:,} rows, "
        f"{result.targets:,} targets; ± standard error over the subsets. Loss of the targets: "
        f"{number(result.loss_before)} before, {number(result.loss_all)} trained on all rows, "
        f"{number(result.loss_subsets)} on a subset, with a spread of "
        f"{number(result.loss_spread)}"
    )
    title = "Linear datamodeling score"
    show(result, {"lds": "LDS"}, note, title=title, as_json=as_json, plot=plot)


def _rows_and_model(
    data: str, split: str | None, subset: str | None, model: str, device: str | None
) -> tuple[Rows, LanguageModel]:
    """Returns the rows and the loaded model; what is wrong with the rows comes first."""
    from forvalue_index.config import ModelConfig
    from forvalue_index.data.sources import open_rows
    from forvalue_index.model.language_model import load_model

    rows = open_rows(data, split=split, subset=subset)
    return rows, load_model(ModelConfig(model), device)

"""Options of studies: what is compared, and how models are fine-tuned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from forvalue_index.cli.options.group import F, grouped
from forvalue_index.cli.options.number import FiniteRange
from forvalue_index.config import RECIPES, TrainConfig, VectorConfig

queries_option = click.option(
    "--data",
    required=True,
    metavar="FILE",
    help="Queries: a file that `build` can read.",
)
exact_option = click.option(
    "--exact",
    is_flag=True,
    help="Also compare the exact forms of recipe and last layer; runs all samples again.",
)
gradient_option = click.option(
    "--gradient",
    is_flag=True,
    help="Also compare gradients of the whole model: one backward pass per sample; for small "
    "models.",
)
seeds_option = click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How often to repeat it all with new random draws.",
)
work_option = click.option(
    "--work",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keeps every finished run; the same command continues where it stopped.",
)
at_option = click.option(
    "--at",
    type=click.Choice(["tuned", "base"]),
    default="tuned",
    show_default=True,
    help="Measure influence with the model fine-tuned on all rows, or with the original.",
)
recipe_option = click.option(
    "--recipe",
    type=click.Choice(RECIPES),
    default=VectorConfig().recipe,
    show_default=True,
    help="Recipe of the index.",
)
share_range = FiniteRange(0, 1, min_open=True, max_open=True)


def train_options(epochs: int, help: str) -> Callable[[F], F]:
    """Adds the options of fine-tuning; the command gets a TrainConfig as `train`.

    Args:
        epochs: the default; if it is 0, 0 is allowed, and `train` is None.
        help: of --epochs.
    """
    options = [
        click.option(
            "--epochs",
            type=click.IntRange(min=min(epochs, 1)),
            default=epochs,
            show_default=True,
            help=help,
        ),
        click.option(
            "--learning-rate",
            type=FiniteRange(0, min_open=True),
            default=1e-4,
            show_default=True,
            help="Peak learning rate of the fine-tuning; small models need more.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=16,
            show_default=True,
            help="Rows per step of the fine-tuning.",
        ),
    ]
    return lambda command: grouped(command, options, "train", _config)


def _config(epochs: int, learning_rate: float, batch_size: int) -> TrainConfig | None:
    return TrainConfig(epochs, learning_rate, batch_size) if epochs else None

"""`forvalue evaluate removal`: what removing the rows that a method ranks first does."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from forvalue_index.cli import render
from forvalue_index.cli.evaluate.tables import number, table, with_error
from forvalue_index.cli.options.data import DataOptions, data_options, seed_option
from forvalue_index.cli.options.format import format_for, format_options
from forvalue_index.cli.options.model import device_option, model_options
from forvalue_index.cli.options.output import json_option
from forvalue_index.cli.options.study import (
    at_option,
    exact_option,
    recipe_option,
    share_range,
    train_options,
    work_option,
)
from forvalue_index.cli.progress import progress_bar
from forvalue_index.config import ModelConfig, TrainConfig, VectorConfig


@click.command()
@model_options
@click.option("--data", required=True, metavar="FILE", help="Rows to fine-tune on.")
@click.option("--queries", required=True, metavar="FILE", help="Rows whose loss is measured.")
@data_options
@format_options
@work_option
@click.option(
    "--share",
    "shares",
    type=share_range,
    multiple=True,
    default=(0.01, 0.05),
    show_default=True,
    help="Share of the rows to remove for each query; repeatable.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help='Method to compare, such as "stored hybrid" or "bm25"; repeatable.  [default: all]',
)
@click.option(
    "--draws",
    type=click.IntRange(min=2),
    default=4,
    show_default=True,
    help="Random removals that each share is compared with; each is trained with two seeds.",
)
@train_options(3, "Epochs per run.")
@recipe_option
@at_option
@exact_option
@seed_option
@json_option
@device_option
def removal(
    model: ModelConfig,
    data: str,
    queries: str,
    source: DataOptions,
    fields: dict[str, Any],
    work: Path,
    shares: tuple[float, ...],
    methods: tuple[str, ...],
    draws: int,
    train: TrainConfig,
    recipe: str,
    at: str,
    exact: bool,
    seed: int,
    as_json: bool,
    device: str | None,
) -> None:
    """Measure what removing the rows that a method ranks first does.

    For each query and method, the first rows are removed and the model is fine-tuned again from
    where it began. The table has how much the query's loss rises, in nats per token, over removing
    as many random rows. It takes a training for every query, method and share.

    \b
    Example:
      forvalue evaluate removal --model base-model --data train.jsonl --queries test.jsonl \\
        --work runs --method "stored hybrid" --method bm25
    """
    from forvalue_index.analysis.evaluate import removal as study
    from forvalue_index.model.language_model import load_model

    rows = source.rows(data)  # what is wrong with the rows is reported before a model is loaded
    format = format_for(rows, fields)
    whole = DataOptions(split=None, subset=None, allow_remote=source.allow_remote)
    with progress_bar() as progress:
        result = study.removal(
            load_model(model, device),
            rows,
            whole.rows(queries),
            work,
            format,
            shares=shares,
            methods=methods,
            draws=draws,
            train=train,
            vector=VectorConfig(recipe=recipe),
            at=at,
            exact=exact,
            seed=seed,
            progress=progress,
        )
    if as_json:
        render.json_line(asdict(result))
    else:
        _show(result)


def _show(result: Any) -> None:
    """Prints the rises of all methods, a column for each share."""
    shares = list(result.removed)
    heads = [(f"{float(s):.3g} = {result.removed[s]:,} rows", "the best less this") for s in shares]
    rows = table("", *itertools.chain.from_iterable(heads))
    for name, found in result.methods.items():
        own = (
            (
                with_error(found[s]),
                "" if name == result.best[s] else with_error(result.less[name][s]),
            )
            for s in shares
        )
        rows.add_row(name, *itertools.chain.from_iterable(own))
    console = render.console()
    console.print(rows)
    random = ", ".join(f"{number(loss)} without {s}" for s, loss in result.loss_random.items())
    noise = ", ".join(number(result.noise[share]) for share in shares)
    console.print(
        f"Rise of a query's loss over {result.draws} random removals, nats per token; "
        f"{result.rows:,} rows, {result.queries:,} queries; ± standard error over the queries. "
        f"Recipe {result.recipe}, influence with the {result.at} model. Mean loss: "
        f"{number(result.loss_before)} before, {number(result.loss_all)} trained on all rows, "
        f"random rows removed: {random}. Another seed alone moves a query's loss by {noise} "
        f"(standard deviation)",
        style="dim",
    )

"""`forvalue build` and `forvalue add`: rows into an index."""

from __future__ import annotations

from pathlib import Path

import click

from forvalue_index.cli import render
from forvalue_index.cli.options import (
    device_option,
    dtype_option,
    field_options,
    format_of,
    index_option,
    model_option,
    trust_option,
)
from forvalue_index.cli.progress import build_progress
from forvalue_index.config import RECIPES, SKETCHES, FormatConfig, ModelConfig, VectorConfig


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@index_option
@click.option("--model", required=True, metavar="PATH_OR_ID", help="The fine-tuned model.")
@click.option("--revision", metavar="REV", help="Revision of a model on the hub.")
@field_options
@click.option("--key-field", metavar="NAME", help="Field of your own id.  [default: content hash]")
@click.option("--add-eos", is_flag=True, help="Append the end token to every row, and score it.")
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    metavar="N",
    help="Longest row in tokens; more is cut and counted.  [default: the model's, at most 2048]",
)
@click.option(
    "--recipe",
    type=click.Choice(RECIPES),
    default=VectorConfig().recipe,
    show_default=True,
    help="What influence means; see the README.",
)
@click.option(
    "--dim",
    type=click.IntRange(min=2),
    default=VectorConfig().dim,
    show_default=True,
    help="Numbers in a stored vector, two bytes each.",
)
@click.option(
    "--sketch",
    type=click.Choice(SKETCHES),
    default=VectorConfig().sketch,
    show_default=True,
    help="How a gradient is made short; see the README.",
)
@click.option(
    "--sketch-dim",
    type=click.IntRange(min=2),
    default=VectorConfig().sketch_dim,
    show_default=True,
    help="Numbers in the sketch that a vector is projected from; not stored.",
)
@click.option(
    "--fit-samples",
    type=click.IntRange(min=1),
    default=VectorConfig().fit_samples,
    show_default=True,
    help="Rows that recipe and projection are learned from.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Seed of the sketch.",
)
@click.option(
    "--catalog",
    metavar="URL",
    help="PostgreSQL database for rows: postgresql+psycopg://user@host/name.  [default: SQLite]",
)
@dtype_option
@device_option
@trust_option
def build(
    data: tuple[str, ...],
    directory: Path,
    model: str,
    revision: str | None,
    prompt_field: str | None,
    response_field: str | None,
    text_field: str | None,
    key_field: str | None,
    add_eos: bool,
    max_length: int | None,
    recipe: str,
    dim: int,
    sketch: str,
    sketch_dim: int,
    fit_samples: int,
    seed: int,
    catalog: str | None,
    dtype: str,
    device: str | None,
    trust_remote_code: bool,
) -> None:
    """Build an index of training rows in JSON Lines files (- is standard input).

    One forward pass per row. All rows are checked before the first is encoded; a build that was
    interrupted goes on when the same command is run again.

    \b
    Example:
      forvalue build train.jsonl --index my.index --model Qwen/Qwen2.5-0.5B \\
        --prompt-field question --response-field answer
    """
    from forvalue_index.index import InfluenceIndex

    base = FormatConfig(key_field=key_field, add_eos=add_eos, max_length=max_length)
    with build_progress() as progress:
        index, report = InfluenceIndex.build(
            directory,
            data,
            ModelConfig(model, revision, dtype, trust_remote_code),
            format=format_of(base, prompt_field, response_field, text_field),
            vector=VectorConfig(recipe, dim, sketch, sketch_dim, fit_samples, seed),
            catalog=catalog,
            device=device,
            progress=progress,
        )
    index.close()
    render.added(directory, report)


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@index_option
@click.option("--update", is_flag=True, help="Replace rows that are there with other content.")
@model_option
@device_option
@trust_option
def add(
    data: tuple[str, ...],
    directory: Path,
    update: bool,
    model: str | None,
    device: str | None,
    trust_remote_code: bool,
) -> None:
    """Add rows to an index; those that are there already cost no forward pass.

    Rows are read as the index was built: the same fields, key and lengths.

    \b
    Example:
      forvalue add more.jsonl --index my.index
      forvalue add corrected.jsonl --index my.index --update
    """
    from forvalue_index.index import InfluenceIndex

    with (
        InfluenceIndex.open(
            directory, model=model, device=device, trust_remote_code=trust_remote_code
        ) as index,
        build_progress() as progress,
    ):
        report = index.add(data, update=update, progress=progress)
    render.added(directory, report)

"""`forvalue build`: an index of training rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from forvalue_index.cli import render
from forvalue_index.cli.options.data import (
    DataOptions,
    data_options,
    index_option,
    on_error_option,
)
from forvalue_index.cli.options.format import format_for, format_options
from forvalue_index.cli.options.model import device_option, devices_option, model_options
from forvalue_index.cli.progress import progress_bar
from forvalue_index.config import BITS, MOST, RECIPES, SKETCHES, ModelConfig, VectorConfig
from forvalue_index.store.manifest import MOST as MOST_SHARDS


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@index_option
@model_options
@data_options
@format_options
@click.option(
    "--recipe",
    type=click.Choice(RECIPES),
    default=VectorConfig().recipe,
    show_default=True,
    help="How influence is defined; see the documentation.",
)
@click.option(
    "--dim",
    type=click.IntRange(2, MOST),
    default=VectorConfig().dim,
    show_default=True,
    help="Numbers in a stored vector.",
)
@click.option(
    "--bits",
    type=click.Choice([str(bits) for bits in BITS]),
    default=str(VectorConfig().bits),
    show_default=True,
    help="Bits of each of these numbers; a vector is dim x bits / 8 bytes and a little.",
)
@click.option(
    "--sketch",
    type=click.Choice(SKETCHES),
    default=VectorConfig().sketch,
    show_default=True,
    help="How a gradient is compressed; see the documentation.",
)
@click.option(
    "--sketch-dim",
    type=click.IntRange(2, MOST),
    default=VectorConfig().sketch_dim,
    show_default=True,
    help="Numbers in the sketch that a vector is projected from; not stored.",
)
@click.option(
    "--fit-samples",
    type=click.IntRange(1, MOST),
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
@click.option(
    "--shards",
    type=click.IntRange(1, MOST_SHARDS),
    metavar="N",
    help="Keep the rows in N indexes, each in that of its key; see the documentation.  "
    "[default: one index]",
)
@on_error_option
@device_option
@devices_option
def build(
    data: tuple[str, ...],
    directory: Path,
    model: ModelConfig,
    source: DataOptions,
    fields: dict[str, Any],
    recipe: str,
    dim: int,
    bits: str,
    sketch: str,
    sketch_dim: int,
    fit_samples: int,
    seed: int,
    catalog: str | None,
    shards: int | None,
    on_error: str,
    device: str | None,
    devices: str | None,
) -> None:
    """Build an index of training rows: files, patterns, a data set folder, or a hub id.

    Files are .jsonl, .json, .csv, .tsv (also with .gz or .zst), .parquet and .arrow; - is standard
    input, JSON Lines. The fields to read are guessed from their names unless you name them.

    It takes one forward pass per row. All rows are checked before the first is encoded. An
    interrupted build resumes when you run the same command again.

    \b
    Example:
      forvalue build train.jsonl --index my.index --model Qwen/Qwen2.5-0.5B \\
        --prompt-field question --response-field answer
      forvalue build "data/train-*.parquet" --index my.index --model my-model --on-error skip
      forvalue build reviews.csv --index my.index --model my-classifier \\
        --text-field review --label-field stars
      forvalue build org/data-set --split train --index my.index --model my-model --devices all
    """
    from forvalue_index.index import InfluenceIndex

    rows = source.rows(data)
    format = format_for(rows, fields)
    with progress_bar() as progress:
        index, report = InfluenceIndex.build(
            directory,
            rows,
            model,
            format=format,
            vector=VectorConfig(recipe, dim, sketch, sketch_dim, fit_samples, seed, int(bits)),
            catalog=catalog,
            device=device,
            devices=devices,
            on_error=on_error,
            progress=progress,
            shards=shards,
        )
    index.close()
    render.added(directory, report)

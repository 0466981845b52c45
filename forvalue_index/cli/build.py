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
from forvalue_index.cli.options.model import (
    device_option,
    devices_option,
    gpus_option,
    model_options,
    ray_option,
)
from forvalue_index.cli.options.vector import shards_option, vector_options
from forvalue_index.cli.progress import progress_bar
from forvalue_index.config import ModelConfig, VectorConfig
from forvalue_index.store.manifest import parse_shard, read_manifest, shard_directory


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@index_option
@model_options
@data_options
@format_options
@vector_options
@click.option(
    "--catalog",
    metavar="URL",
    help="PostgreSQL database for rows: postgresql+psycopg://user@host/name.  [default: SQLite]",
)
@shards_option
@click.option(
    "--shard",
    metavar="I/N",
    help="Build one shard of the index that forvalue learn made, such as 3/64; the first is 0.",
)
@on_error_option
@device_option
@devices_option
@ray_option
@gpus_option
def build(
    data: tuple[str, ...],
    directory: Path,
    model: ModelConfig,
    source: DataOptions,
    fields: dict[str, Any],
    vector: VectorConfig,
    catalog: str | None,
    shards: int | None,
    shard: str | None,
    on_error: str,
    device: str | None,
    devices: str | None,
    ray: str | None,
    gpus: float,
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
      forvalue build "data/*.jsonl" --index my.index --model my-model --shards 64 --ray auto
    """
    from forvalue_index.index import InfluenceIndex

    if ray is not None and (shard or catalog or device or devices):
        raise click.UsageError("--ray goes without --shard, --catalog, --device and --devices")
    if shard is not None and (shards or catalog or devices):
        raise click.UsageError("--shard goes without --shards, --catalog and --devices")
    rows = source.rows(data)
    format = format_for(rows, fields)
    if shard is not None:
        with progress_bar() as progress:
            report = InfluenceIndex.build_shard(
                directory,
                rows,
                shard,
                model,
                format=format,
                vector=vector,
                device=device,
                on_error=on_error,
                progress=progress,
            )
        number, _ = parse_shard(shard)
        render.added(shard_directory(directory, read_manifest(directory), number), report)
        return
    if ray is not None:
        with progress_bar() as progress:
            report = InfluenceIndex.build_on_ray(
                directory,
                rows,
                model,
                shards,
                ray,
                format=format,
                vector=vector,
                gpus=gpus,
                on_error=on_error,
                progress=progress,
            )
        render.added(directory, report)
        return
    with progress_bar() as progress:
        index, report = InfluenceIndex.build(
            directory,
            rows,
            model,
            format=format,
            vector=vector,
            catalog=catalog,
            device=device,
            devices=devices,
            on_error=on_error,
            progress=progress,
            shards=shards,
        )
    index.close()
    render.added(directory, report)

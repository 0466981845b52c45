"""`forvalue learn`: a sharded index whose shards are built by themselves."""

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
from forvalue_index.cli.options.model import device_option, model_options
from forvalue_index.cli.options.vector import shards_option, vector_options
from forvalue_index.cli.progress import progress_bar
from forvalue_index.config import ModelConfig, VectorConfig


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@index_option
@model_options
@data_options
@format_options
@vector_options
@shards_option
@on_error_option
@device_option
def learn(
    data: tuple[str, ...],
    directory: Path,
    model: ModelConfig,
    source: DataOptions,
    fields: dict[str, Any],
    vector: VectorConfig,
    shards: int | None,
    on_error: str,
    device: str | None,
) -> None:
    """Make a sharded index that has learned its vectors from rows, and holds none yet.

    Then forvalue build --shard builds each shard in a job of its own, with the same options, and
    forvalue attach joins them. A part of the rows is enough to learn from, if it is like the rest.

    \b
    Example:
      forvalue learn "data/*.jsonl" --index my.index --model my-model --shards 64
      forvalue build "data/*.jsonl" --index my.index --model my-model --shard 3/64
      forvalue attach --index my.index
    """
    from forvalue_index.index import InfluenceIndex

    if shards is None:
        raise click.UsageError("give --shards N: how many indexes the rows will be in")
    rows = source.rows(data)
    format = format_for(rows, fields)
    with progress_bar() as progress:
        fidelity = InfluenceIndex.learn(
            directory,
            rows,
            model,
            shards,
            format=format,
            vector=vector,
            device=device,
            on_error=on_error,
            progress=progress,
        )
    kept = "" if fidelity is None else f"; vectors will keep {fidelity}"
    render.notes.print(f"{directory} waits for its {shards} shards{kept}", markup=False)

"""`forvalue add`: more rows into an index."""

from __future__ import annotations

from pathlib import Path

import click

from forvalue_index.cli import render
from forvalue_index.cli.options.data import (
    DataOptions,
    data_options,
    index_option,
    on_error_option,
)
from forvalue_index.cli.options.model import (
    OpenOptions,
    devices_option,
    gpus_option,
    opening_options,
    ray_option,
)
from forvalue_index.cli.progress import progress_bar


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@index_option
@click.option(
    "--update", is_flag=True, help="Replace rows that have the same key and other content."
)
@data_options
@on_error_option
@opening_options
@devices_option
@ray_option
@gpus_option
def add(
    data: tuple[str, ...],
    directory: Path,
    update: bool,
    source: DataOptions,
    on_error: str,
    opening: OpenOptions,
    devices: str | None,
    ray: str | None,
    gpus: float,
) -> None:
    """Add rows to an index; rows that it already holds cost no forward pass.

    Rows are read with the settings of the index: the same fields, key and lengths.

    \b
    Example:
      forvalue add more.jsonl --index my.index
      forvalue add corrected.jsonl --index my.index --update
    """
    from forvalue_index.index import InfluenceIndex

    rows = source.rows(data)
    if ray is not None:
        if devices or any(opening.values()):
            raise click.UsageError("--ray goes without --model, --partial and options of devices")
        with progress_bar() as progress:
            report = InfluenceIndex.build_on_ray(
                directory,
                rows,
                None,
                None,
                ray,
                update=update,
                gpus=gpus,
                on_error=on_error,
                progress=progress,
            )
        render.added(directory, report)
        return
    with InfluenceIndex.open(directory, **opening) as index, progress_bar() as progress:
        report = index.add(
            rows, update=update, on_error=on_error, progress=progress, devices=devices
        )
    render.added(directory, report)

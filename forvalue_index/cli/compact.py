"""`forvalue compact`: removed samples off the disk."""

from __future__ import annotations

from pathlib import Path

import click

from forvalue_index.cli import render
from forvalue_index.cli.options.data import index_option
from forvalue_index.cli.progress import progress_bar


@click.command()
@index_option
def compact(directory: Path) -> None:
    """Delete removed samples from the disk, and merge small segments.

    Queries keep working meanwhile. It can be interrupted and run again.

    \b
    Example:
      forvalue compact --index my.index
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory) as index, progress_bar() as progress:
        report = index.compact(progress)
    render.notes.print(
        f"{report.removed:,} removed samples deleted, {report.rewritten:,} segments rewritten; "
        f"{report.segments:,} segments, {report.bytes_before:,} bytes before and "
        f"{report.bytes_after:,} after"
    )

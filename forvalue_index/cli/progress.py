"""Progress of long work: bars on stderr if it is a terminal, else nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from forvalue_index.cli.render import notes

if TYPE_CHECKING:
    from forvalue_index.records import Progress as Callback


@contextmanager
def progress_bar() -> Iterator[Callback]:
    """Gives a callback that draws a bar for each stage, with samples and tokens per second."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        tasks: dict[str, tuple[TaskID, float]] = {}

        def report(stage: str, done: int, total: int, tokens: int) -> None:
            if stage not in tasks:
                tasks[stage] = (bar.add_task(stage, total=total or None, rate=""), time.monotonic())
            task, start = tasks[stage]
            seconds = max(time.monotonic() - start, 1e-9)
            rate = f"{done / seconds:,.0f} samples/s"
            if tokens:
                rate += f"  {tokens / seconds:,.0f} tokens/s"
            bar.update(task, completed=done, total=total or None, rate=rate)

        yield report

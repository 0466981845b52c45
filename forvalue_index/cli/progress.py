"""Progress of long work on stderr: bars if it is a terminal, else a line now and then."""

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

EVERY = 30.0
"""Seconds between two lines; what takes less prints none."""


@contextmanager
def progress_bar() -> Iterator[Callback]:
    """Gives a callback that shows each stage: how much is done, how fast, and the time left."""
    if not notes.is_terminal:
        yield _Lines()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, transient=True) as bar:
        tasks: dict[str, TaskID] = {}
        begun: dict[str, tuple[float, int, int]] = {}  # when, and what was done then

        def report(stage: str, done: int, total: int, tokens: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None, rate="")
            now, rate = time.monotonic(), ""
            start, before, read = begun.setdefault(stage, (now, done, tokens))
            if now > start and done > before:  # of the first step it is not known how long it took
                rate = f"{(done - before) / (now - start):,.0f} samples/s"
                if tokens > read:
                    rate += f"  {(tokens - read) / (now - start):,.0f} tokens/s"
            bar.update(tasks[stage], completed=done, total=total or None, rate=rate)

        yield report


class _Lines:
    """Prints a line at most every 30 seconds: in the log of a job, silence looks like a hang."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._begun: dict[str, tuple[float, int]] = {}  # by stage: when, and what was done then

    def __call__(self, stage: str, done: int, total: int, tokens: int) -> None:
        now = time.monotonic()
        start, before = self._begun.setdefault(stage, (now, done))
        if now - self._last < EVERY:
            return
        self._last = now
        said = f"{stage}: {done:,}" + (f" of {total:,}" if total else "")
        if now > start and done > before:
            rate = (done - before) / (now - start)
            said += f", {rate:,.0f} per second" if rate >= 10 else f", {rate:.2g} per second"
            if total:
                said += f", {_in_words((total - done) / rate)} left"
        notes.print(said, markup=False, soft_wrap=True)


def _in_words(seconds: float) -> str:
    """Returns a time, in the unit of which there are a few."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

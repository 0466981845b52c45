"""What a process takes: seconds, processor time, memory; what it leaves on disk."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import click
import psutil

TOOLS = str(Path(__file__).parent.parent.resolve())


@dataclass(frozen=True)
class Step:
    """What a process took."""

    wall: float  # seconds
    cpu: float  # seconds of all its threads and children
    peak: int  # bytes


def run(command: list[str], folder: Path) -> Step:
    """Returns what a command took.

    Raises:
        click.ClickException: it failed; the message has the end of what it wrote.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": TOOLS}
    log, done, peak = folder / "log.txt", Event(), [0]
    start = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder
        )

        def watch() -> None:
            while not done.wait(0.1):
                peak[0] = max(peak[0], memory(process.pid))

        thread = Thread(target=watch)
        thread.start()
        code = process.wait()
    wall = time.perf_counter() - start
    done.set()
    thread.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise click.ClickException(f"{' '.join(command)} failed: {log.read_text()[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Step(wall, cpu, peak[0])


def memory(pid: int) -> int:
    """Returns the bytes of memory of a process and its children; shared ones count in part."""
    total = 0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            total += each.memory_full_info().pss
    except psutil.Error:  # it has ended
        pass
    return total


def size(directory: Path) -> int:
    """Returns the bytes of all files."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())

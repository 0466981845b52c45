"""One page of what benchmarks printed, with the machine, the versions, the date and the commit.

    python tools/report.py run docs/results -- python tools/bench_start.py --runs 3
    python tools/report.py again docs/results bench_start
    python tools/report.py page docs/results --output report.html

`run` runs a command as it is, shows what it prints, and keeps that in a file of the folder; `again`
does so with all commands that the folder has; `page` puts all of its files on one page, with a
chart for each block of lines with numbers. Models, data and rows that the commands name are where
they are run: `models` and `data` hold what docs/measurements.md names, `sets` the rows that are
drawn from it as a section says, GRAMMARS_N of N rows.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
PACKAGES = ("forvalue-index", "torch", "transformers", "faiss-cpu", "numpy")
NUMBER = re.compile(r"(?<![\w.])[+-]?(?:\d[\d,]*)?\.?\d+(?![\w.]*\d)")
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:64em;margin:2em auto;padding:0 1em}"
    "pre{background:#f4f4f4;padding:.8em;overflow-x:auto}svg{max-width:100%;height:auto}"
)


@click.group()
def main() -> None:
    """Keep what benchmarks print, and put it on one page."""


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("command", nargs=-1, required=True)
def run(folder: Path, command: tuple[str, ...]) -> None:
    """Run a command, show what it prints, and keep it."""
    keep(folder, command)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("text", default="")
def again(folder: Path, text: str) -> None:
    """Run all kept commands again, or those that hold a text, and keep what they print now."""
    kept = [json.loads(path.read_text())["command"] for path in sorted(folder.glob("*.json"))]
    for command in kept:
        if text in command:
            click.echo(f"== {command}")
            keep(folder, shlex.split(command))


def keep(folder: Path, command: Sequence[str]) -> None:
    """Runs a command, shows what it prints, and keeps that in a folder, by the command's name."""
    start, lines = time.perf_counter(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            click.echo(line, nl=False)
            lines.append(line)
    if process.returncode:
        raise click.ClickException(f"the command ended with {process.returncode}: nothing is kept")
    kept: dict[str, Any] = {
        "command": shlex.join(command),
        "printed": "".join(lines),
        "seconds": round(time.perf_counter() - start, 1),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": _commit(),
        "machine": _machine(),
        "versions": _versions(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", kept["command"].replace("tools/", ""))[:60].strip("-")
    digest = hashlib.sha256(kept["command"].encode()).hexdigest()[:8]
    (folder / f"{name}-{digest}.json").write_text(json.dumps(kept, indent=2) + "\n")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="An .html file.")
def page(folder: Path, output: Path) -> None:
    """Write all that a folder keeps as one page."""
    kept = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not kept:
        raise click.ClickException(f"{folder} keeps no results: make some with report.py run")
    parts = [f"<!doctype html><meta charset=utf-8><title>Benchmarks</title><style>{STYLE}</style>"]
    parts.append("<h1>Benchmarks</h1>")
    parts += [_section(result) for result in kept]
    output.write_text("\n".join(parts))
    click.echo(output)


def _section(result: dict[str, Any]) -> str:
    printed = html.escape(result["printed"].rstrip())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    about = f"{result['date']}, commit {result['commit']}, {result['seconds']} s"
    charts = "".join(_chart(block) for block in blocks(result["printed"]))
    return (
        f"<h2><code>{html.escape(result['command'])}</code></h2>"
        f"<p>{html.escape(about)}<br>{html.escape(result['machine'])}<br>{html.escape(versions)}"
        f"</p><pre>{printed}</pre>{charts}"
    )


def blocks(printed: str) -> list[list[tuple[str, float]]]:
    """Returns runs of two or more lines that have a name and then a number: name and number."""
    found = []
    for is_figure, lines in groupby(printed.splitlines(), key=lambda line: bool(_figure(line))):
        block = [figure for figure in map(_figure, lines) if figure is not None]
        if is_figure and len(block) > 1:
            found.append(block)
    return found


def _figure(line: str) -> tuple[str, float] | None:
    """Returns the name at the start of a line, and the first number after it."""
    cells = [cell.strip() for cell in re.split(r"\s{2,}|[|│]", line) if cell.strip()]
    if len(cells) < 2 or not re.search(r"[^\W\d]", cells[0]):
        return None
    number = NUMBER.match(cells[1])
    return None if number is None else (cells[0], float(number[0].replace(",", "")))


def _chart(block: Sequence[tuple[str, float]]) -> str:
    """Returns a bar for each line, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.5 + 0.3 * len(block)))
    names, values = zip(*reversed(block), strict=True)
    axes.barh(range(len(names)), values, tick_label=names)
    axes.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight")
    pyplot.close(figure)
    return out.getvalue().partition("<svg")[1] + out.getvalue().partition("<svg")[2]


def _commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(git, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _machine() -> str:
    names = re.findall(r"^model name\s*: (.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"MemTotal:\s+(\d+)", _text("/proc/meminfo"))
    gigabytes = f", {int(memory[1]) / 2**20:.0f} GiB" if memory else ""
    cpu = names[0] if names else platform.processor() or platform.machine()
    threads = os.environ.get("OMP_NUM_THREADS")
    of_each = f", OMP_NUM_THREADS={threads}" if threads else ""
    return f"{os.cpu_count()} x {cpu}{gigabytes}, {platform.system()}{of_each}"


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())

"""Building and asking an index of the same data with the same model: this package and its peers.

    python tools/bench_peers.py --model MODEL --data FOLDER --venv DIR [--peer NAME ...]
        [--rows N] [--queries N] [--repeats 3] [--json]

FOLDER holds grammars_{train,test}.jsonl and math_without_reason_{train,test}.jsonl, as for
bench_identify.py. bergson (https://github.com/EleutherAI/bergson), kronfluence
(https://github.com/pomonam/kronfluence) and dattri (https://github.com/TRAIS-Lab/dattri) share an
environment of their own in DIR, which is made when it is not there. Every step is a process of its
own; all take turns, figures are medians over the turns.

- samples/s: of the build. A build of --few rows is taken off, so that what a process needs to start
  does not count; `CPU` is by processor time, which other load changes less;
- x, CPU x: how many times as fast forvalue is;
- peak: the largest memory of the build's processes together (proportional set size); query MiB:
  the same when asked;
- bytes: what each further sample adds on disk, its row included; MiB in all: what a build leaves;
- query s: the seconds that all queries take together, with the start of the processes;
- AUC: whether the training rows of the query's class stand above the others (bench_identify.py),
  whole texts scored.

What each does:
- bergson stores projected gradients, 16 x 16 numbers a module; the score is their cosine. It is run
  with each of --tokens per batch, up to what the model takes;
- kronfluence fits EKFAC factors, which is its build, and computes the gradients of all training
  rows again whenever it is asked (peers/kronfluence_run.py has its settings);
- dattri projects gradients as LoGra does, 16 x 16 numbers a module, but on a CPU holds them in
  memory only: a new process that is asked builds again, and a process that stays needs only what
  the query takes longer than the build (peers/dattri_run.py).

All three take the linear modules without the head, in float32. But for dattri's projection and
damping, the settings are the ones of their own examples with language models; others may do better
here. The scores of kronfluence and dattri are what they return, products that no length
divides.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np
from numpy.typing import NDArray
from peers.environment import environment
from peers.steps import Step, run, size
from rich.console import Console
from rich.table import Table

from forvalue_index import InfluenceIndex
from forvalue_index.analysis.evaluate.metrics import auc
from forvalue_index.data.sources import open_rows
from forvalue_index.records import Row
from forvalue_index.system.machine import cores

PEERS = ("forvalue", "bergson", "kronfluence", "dattri")
TASKS = ("grammars", "math_without_reason")
MAX_LENGTH = 300


class Peer(Protocol):
    """What is measured."""

    @property
    def name(self) -> str:
        """What its row is called."""

    def build(self, rows: Path, out: Path) -> Step:
        """Builds an index of a file of rows."""

    def scores(self, index: Path, queries: Path) -> tuple[Step, NDArray[np.float32]]:
        """Asks for all queries; returns what that took, and all scores [q, n]."""


class Forvalue:
    """This package, as it is."""

    name = "forvalue"

    def __init__(self, model: str, folder: Path) -> None:
        self._model = model
        self._folder = folder

    def build(self, rows: Path, out: Path) -> Step:
        """Builds an index of a file of rows."""
        options = ["--index", str(out), "--model", self._model, "--text-field", "text"]
        command = [sys.executable, "-m", "forvalue_index", "build", str(rows), *options]
        return run([*command, "--max-length", str(MAX_LENGTH)], self._folder)

    def scores(self, index: Path, queries: Path) -> tuple[Step, NDArray[np.float32]]:
        """Asks for the best of all queries; returns what that took, and all scores [q, n]."""
        options = ["--index", str(index), "--data", str(queries), "--json"]
        step = run([sys.executable, "-m", "forvalue_index", "query", *options], self._folder)
        with InfluenceIndex.open(index) as opened:
            return step, opened.scores(opened.samples(str(queries)))[1]


class Bergson:
    """bergson, with as many tokens in a batch."""

    def __init__(self, model: str, folder: Path, commands: Path, tokens: int) -> None:
        self.name = f"bergson, {tokens} tokens a batch"
        self._model = model
        self._folder = folder
        self._commands = commands
        self._tokens = str(tokens)

    def build(self, rows: Path, out: Path) -> Step:
        """Builds an index of a file of rows."""
        command = [str(self._commands / "bergson"), "build", str(out), "--model", self._model]
        command += ["--dataset", str(rows), "--truncation", "--projection_dim", "16"]
        return run([*command, "--token_batch_size", self._tokens], self._folder)

    def scores(self, index: Path, queries: Path) -> tuple[Step, NDArray[np.float32]]:
        """Asks for the best of all queries; returns what that took, and all scores [q, n]."""
        asked, out = index.with_suffix(".queries"), index.with_suffix(".npy")
        step = self.build(queries, asked)
        python = [str(self._commands / "python"), "-m", "peers.bergson_cosines"]
        more = run([*python, str(index), str(asked), str(out)], self._folder)
        both = Step(step.wall + more.wall, step.cpu + more.cpu, max(step.peak, more.peak))
        return both, np.load(out)


class Driven:
    """kronfluence or dattri: what keeps no gradients and is asked with the training rows again."""

    def __init__(self, name: str, model: str, folder: Path, commands: Path) -> None:
        self.name = name
        self._folder = folder
        self._command = [str(commands / "python"), "-m", f"peers.{name}_run", model]
        self._rows: dict[Path, Path] = {}  # by index

    def build(self, rows: Path, out: Path) -> Step:
        """Builds what there is to keep of a file of rows."""
        self._rows[out] = rows
        return self._run(out)

    def scores(self, index: Path, queries: Path) -> tuple[Step, NDArray[np.float32]]:
        """Asks for all queries; returns what that took, and all scores [q, n]."""
        out = index.with_suffix(".npy")
        step = self._run(index, "--queries", str(queries), "--scores", str(out))
        return step, np.load(out)

    def _run(self, index: Path, *more: str) -> Step:
        options = [str(self._rows[index]), str(index), "--max-length", str(MAX_LENGTH)]
        return run([*self._command, *options, *more], self._folder)


def spread(rows: list[Row], number: int | None) -> list[Row]:
    """Returns so many of the rows (None: all), evenly from first to last: they lie by class."""
    if number is None or number >= len(rows):
        return rows
    return [rows[i * len(rows) // number] for i in range(number)]


def write(rows: list[Row], path: Path) -> Path:
    """Writes the texts alone, each different from the others."""
    lines = [json.dumps({"text": row["text"], "number": i}) + "\n" for i, row in enumerate(rows)]
    path.write_text("".join(lines))
    return path


def measure(
    rows: list[Row],
    queries: list[Row],
    peers: Callable[[Path], Sequence[Peer]],
    few: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Returns a row of figures for each peer.

    Raises:
        click.UsageError: there are no more rows than the few of the build that is taken off.
    """
    more = len(rows) - few
    if more <= 0:
        raise click.UsageError(f"{len(rows)} rows, and --few takes off {few}: ask for fewer.")
    same = np.array([[a["variation"] == b["variation"] for b in rows] for a in queries])
    taken: dict[str, list[tuple[Step, Step]]] = {}
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, test = write(rows, folder / "train.jsonl"), write(queries, folder / "test.jsonl")
        start = write(spread(rows, few), folder / "few.jsonl")
        for turn in range(repeats):
            for number, peer in enumerate(peers(folder)):
                some, whole = folder / f"few-{number}-{turn}", folder / f"all-{number}-{turn}"
                steps = peer.build(start, some), peer.build(train, whole)
                taken.setdefault(peer.name, []).append(steps)
                if turn:
                    continue
                kept, more_kept = size(whole), size(whole) - size(some)  # before it is asked
                step, scores = peer.scores(whole, test)
                aucs = [auc(s, p) for s, p in zip(scores, same, strict=True)]
                found.append(
                    {
                        "peer": peer.name,
                        "samples": len(rows),
                        "queries": len(queries),
                        "bytes_per_sample": more_kept / more,
                        "bytes_in_all": kept,
                        "query_seconds": step.wall,
                        "query_peak_bytes": step.peak,
                        "auc": float(np.mean(aucs)),
                    }
                )
    for row in found:
        pairs = taken[row["peer"]]
        wall = np.median([whole.wall - some.wall for some, whole in pairs])
        cpu = np.median([whole.cpu - some.cpu for some, whole in pairs])
        row |= {
            "build_seconds": float(np.median([whole.wall for _, whole in pairs])),
            "build_cpu_seconds": float(np.median([whole.cpu for _, whole in pairs])),
            "samples_per_second": float(more / wall),
            "samples_per_cpu_second": float(more / cpu),
            "peak_bytes": int(np.median([whole.peak for _, whole in pairs])),
        }
    for row in found:
        ours = next((r for r in found if r["peer"] == Forvalue.name), None)
        for times, rate in (
            ("times", "samples_per_second"),
            ("times_cpu", "samples_per_cpu_second"),
        ):
            row[times] = ours[rate] / row[rate] if ours else None
    return found


def table(task: str, found: list[dict[str, Any]]) -> Table:
    """Returns what a person reads."""
    first = found[0]
    title = f"{task}: {first['samples']} rows, {first['queries']} queries, {cores()} cores"
    shown = Table(title=title)
    shown.add_column("", no_wrap=True)
    for column in (
        *("samples/s", "x", "CPU x", "peak MiB", "bytes", "MiB in all"),
        *("query s", "query MiB", "AUC"),
    ):
        shown.add_column(column, justify="right")
    for row in found:
        shown.add_row(
            row["peer"],
            f"{row['samples_per_second']:.1f}",
            *("" if row[x] is None else f"{row[x]:.1f}" for x in ("times", "times_cpu")),
            f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{row['bytes_per_sample']:,.0f}" if row["bytes_per_sample"] >= 1 else "none",
            f"{row['bytes_in_all'] / 2**20:,.1f}",
            f"{row['query_seconds']:.1f}",
            f"{row['query_peak_bytes'] / 2**20:,.0f}",
            f"{row['auc']:.4f}",
        )
    return shown


@click.command()
@click.option("--model", required=True, help="Folder of a causal language model.")
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--venv", required=True, type=click.Path(path_type=Path), help="For the peers.")
@click.option("--peer", "names", multiple=True, default=PEERS, type=click.Choice(PEERS))
@click.option("--task", "tasks", multiple=True, default=TASKS, type=click.Choice(TASKS))
@click.option("--rows", type=int, help="Training rows, evenly from the file [default: all].")
@click.option("--queries", type=int, help="Queries, evenly from the file [default: all].")
@click.option("--tokens", multiple=True, type=int, default=(512,), show_default=True)
@click.option("--few", default=90, show_default=True, help="Rows of the build that is taken off.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    model: str,
    data: Path,
    venv: Path,
    names: tuple[str, ...],
    tasks: tuple[str, ...],
    rows: int | None,
    queries: int | None,
    tokens: tuple[int, ...],
    few: int,
    repeats: int,
    as_json: bool,
) -> None:
    """Prints speed, memory, bytes and AUC of each, and how many times as fast forvalue is."""
    model = str(Path(model).resolve())
    commands = environment(venv.resolve())

    def peers(folder: Path) -> list[Peer]:
        made: dict[str, list[Peer]] = {
            "forvalue": [Forvalue(model, folder)],
            "bergson": [Bergson(model, folder, commands, number) for number in tokens],
            "kronfluence": [Driven("kronfluence", model, folder, commands)],
            "dattri": [Driven("dattri", model, folder, commands)],
        }
        return [peer for name in PEERS if name in names for peer in made[name]]

    console, figures = Console(), []
    console.width = max(console.width, 120)  # a file gets whole columns, too
    for task in tasks:
        train, test = (
            spread([row for _, row in open_rows(data / f"{task}_{part}.jsonl")], number)
            for part, number in (("train", rows), ("test", queries))
        )
        found = measure(train, test, peers, few, repeats)
        figures += [{"task": task} | row for row in found]
        if not as_json:
            console.print(table(task, found))
    if as_json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

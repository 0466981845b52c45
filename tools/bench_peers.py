"""Building and asking an index of the same data with the same model: this package and bergson.

    python tools/bench_peers.py --model MODEL --data FOLDER --venv DIR [--repeats 3] [--json]

FOLDER holds grammars_{train,test}.jsonl and math_without_reason_{train,test}.jsonl, as for
bench_identify.py. bergson (https://github.com/EleutherAI/bergson) gets an environment of its own in
DIR, made when it is not there. Every step is a process of its own; all take turns, figures are
medians over the turns.

- samples/s: of the build. A build of --few rows is taken off, so that what a process needs to start
  does not count; `CPU samples/s` is the same by processor time, which other load changes less;
- peak: the largest memory of the build's processes together (proportional set size);
- bytes: what each further sample adds on disk, its row included;
- AUC: whether the training rows of the query's class stand above the others (bench_identify.py),
  whole texts scored. bergson: the cosine of the projected gradients that it has stored.

bergson is run with each of --tokens per batch, up to what the model takes; the fastest counts.
kronfluence and dattri keep no index that could be asked again, and are not here.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import click
import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from forvalue_index import InfluenceIndex
from forvalue_index.analysis.metrics import auc
from forvalue_index.data.readers import open_rows
from forvalue_index.records import Row

TASKS = ("grammars", "math_without_reason")
MAX_LENGTH = 300
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
BERGSON = "bergson==2.5.1"
NEEDS = [
    "accelerate",
    "datasets",
    "jinja2",
    "jaxtyping>=0.3.3",
    "ml_dtypes",
    "natsort",
    "numpy",
    "scipy",
    "peft>=0.17",
    "petname",
    "pyarrow",
    "pyyaml",
    "simple-parsing",
    "torchopt",
    "transformers>=5",
    "bitsandbytes",
    "huggingface-hub>=1.13",
    "psutil",
    "faiss-cpu",
    "torch",
]
COSINES = """
import sys
import numpy as np
from bergson.data import load_gradients

def unit(path):
    stored = load_gradients(path)
    values = np.asarray(stored, dtype=np.float32).reshape(len(stored), -1)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-30)

train, test, out = sys.argv[1:]
np.save(out, unit(test) @ unit(train).T)
"""


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
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
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


def environment(directory: Path) -> Path:
    """Returns the folder of bergson's commands; installs it if it is not there."""
    commands = directory / "bin"
    if not (commands / "bergson").exists():
        pip = [str(commands / "python"), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS)]
        for command in (
            [sys.executable, "-m", "venv", str(directory)],
            [*pip, *NEEDS],
            [*pip, "--no-deps", BERGSON],
        ):
            subprocess.run(command, check=True)
    return commands


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
        python = str(self._commands / "python")
        more = run([python, "-c", COSINES, str(index), str(asked), str(out)], self._folder)
        both = Step(step.wall + more.wall, step.cpu + more.cpu, max(step.peak, more.peak))
        return both, np.load(out)


Peer = Forvalue | Bergson


def texts(path: Path, folder: Path, name: str, limit: int | None = None) -> tuple[Path, list[Row]]:
    """Returns a file of the texts alone, each different from the others, and the rows."""
    rows = [row for _, row in open_rows(path)][:limit]
    out = folder / f"{name}.jsonl"
    out.write_text(
        "".join(json.dumps({"text": row["text"], "number": i}) + "\n" for i, row in enumerate(rows))
    )
    return out, rows


def measure(
    task: str, data: Path, peers: Callable[[Path], list[Peer]], few: int, repeats: int
) -> list[dict[str, Any]]:
    """Returns a row of figures for each peer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, rows = texts(data / f"{task}_train.jsonl", folder, "train")
        start, _ = texts(data / f"{task}_train.jsonl", folder, "few", few)
        test, queries = texts(data / f"{task}_test.jsonl", folder, "test")
        same = np.array([[a["variation"] == b["variation"] for b in rows] for a in queries])
        taken: dict[str, list[tuple[Step, Step]]] = {}
        found: list[dict[str, Any]] = []
        for turn in range(repeats):
            for number, peer in enumerate(peers(folder)):
                some, whole = folder / f"few-{number}-{turn}", folder / f"all-{number}-{turn}"
                steps = peer.build(start, some), peer.build(train, whole)
                taken.setdefault(peer.name, []).append(steps)
                if turn:
                    continue
                step, scores = peer.scores(whole, test)
                found.append(
                    {
                        "task": task,
                        "peer": peer.name,
                        "samples": len(rows),
                        "bytes_per_sample": (size(whole) - size(some)) / (len(rows) - few),
                        "bytes_in_all": size(whole),
                        "query_seconds": step.wall,
                        "auc": float(
                            np.mean([auc(s, p) for s, p in zip(scores, same, strict=True)])
                        ),
                    }
                )
        for row in found:
            pairs = taken[row["peer"]]
            more = row["samples"] - few
            wall = np.median([whole.wall - some.wall for some, whole in pairs])
            cpu = np.median([whole.cpu - some.cpu for some, whole in pairs])
            row |= {
                "build_seconds": float(np.median([whole.wall for _, whole in pairs])),
                "build_cpu_seconds": float(np.median([whole.cpu for _, whole in pairs])),
                "samples_per_second": float(more / wall),
                "samples_per_cpu_second": float(more / cpu),
                "peak_bytes": int(np.median([whole.peak for _, whole in pairs])),
            }
        return found


@click.command()
@click.option("--model", required=True, help="Folder of a causal language model.")
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--venv", required=True, type=click.Path(path_type=Path), help="For bergson.")
@click.option("--task", "tasks", multiple=True, default=TASKS, type=click.Choice(TASKS))
@click.option("--tokens", multiple=True, type=int, default=(512,), show_default=True)
@click.option("--few", default=90, show_default=True, help="Rows of the build that is taken off.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    model: str,
    data: Path,
    venv: Path,
    tasks: tuple[str, ...],
    tokens: tuple[int, ...],
    few: int,
    repeats: int,
    as_json: bool,
) -> None:
    """Prints speed, memory, bytes and AUC of each, and the ratios to the fastest bergson."""
    commands, model = environment(venv.resolve()), str(Path(model).resolve())

    def peers(folder: Path) -> list[Peer]:
        others: list[Peer] = [Bergson(model, folder, commands, number) for number in tokens]
        return [Forvalue(model, folder), *others]

    rows = [row for task in tasks for row in measure(task, data, peers, few, repeats)]
    for row in rows:
        others = [r for r in rows if r["task"] == row["task"] and r["peer"] != Forvalue.name]
        best = max(others, key=lambda r: r["samples_per_second"])
        row["times_bergson"] = row["samples_per_second"] / best["samples_per_second"]
        row["times_bergson_cpu"] = row["samples_per_cpu_second"] / best["samples_per_cpu_second"]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(title=f"{rows[0]['samples']} rows, {os.cpu_count()} cores")
    for column in ("task", "", "samples/s", "x", "CPU x", "peak MiB", "bytes", "query s", "AUC"):
        table.add_column(column, justify="left" if column in ("task", "") else "right")
    for row in rows:
        table.add_row(
            row["task"],
            row["peer"],
            f"{row['samples_per_second']:.1f}",
            f"{row['times_bergson']:.1f}",
            f"{row['times_bergson_cpu']:.1f}",
            f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{row['bytes_per_sample']:,.0f}",
            f"{row['query_seconds']:.1f}",
            f"{row['auc']:.4f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

"""How an index grows: time and memory of each operation at several sizes, and a formula of each.

    python tools/bench_scale.py --samples 100000,1000000,3000000 --work FOLDER --out scale.jsonl
    python tools/bench_scale.py --fit scale.jsonl

Rows of some 400 bytes and vectors of 4,096 numbers in 4 bits (2,068 bytes) go through the same
code as those of `forvalue add`, from the check of the rows to the commits; only the forward passes
are left out, in whose place a vector is made from a row's number. Rows come in groups of 32 that
are alike, as rows of real data are. A row takes about 3.8 KB of the disk.

Each operation runs in a process of its own. "memory" is the most that it had beside mapped files
(RssAnon), less what Python and the libraries take before the index is opened.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from forvalue_index.config import FormatConfig, IndexConfig, ModelConfig, VectorConfig
from forvalue_index.data.ingest import Rejects, check_rows
from forvalue_index.data.rows import Rows
from forvalue_index.index import InfluenceIndex
from forvalue_index.pipeline.add import add_checked
from forvalue_index.pipeline.session import Session
from forvalue_index.records import Encoded, Row, Sample
from forvalue_index.store.store import Store

GROUP = 32  # rows that are alike
FEW = 1000  # rows that are added, updated and removed
WORDS = [f"w{number:07d}" for number in range(20_000)]
SOURCES = [f"source{number}" for number in range(10)]


class Numbered(Rows):
    """The rows with the numbers from `first` on."""

    def __init__(self, first: int, count: int, version: int = 0) -> None:
        self._numbers, self._version = range(first, first + count), version

    def outcomes(self) -> Iterator[tuple[str, Row]]:
        """Yields the rows."""
        for start in range(0, len(self._numbers), 1024):
            part = self._numbers[start : start + 1024]
            draw = np.random.default_rng((part[0], self._version)).pareto(1.0, (len(part), 40))
            words = np.minimum(draw * 50, len(WORDS) - 1).astype(int).tolist()
            for number, own in zip(part, words, strict=True):
                text = " ".join([WORDS[word] for word in own])
                source = SOURCES[number % len(SOURCES)]
                row = {"id": f"k{number}", "number": number, "source": source, "text": text}
                yield f"row {number + 1}", row


class Synthetic(Session):
    """A session whose vectors come from the numbers of rows, without a model."""

    lm: Any = SimpleNamespace(device=SimpleNamespace(type="cpu"))
    vectoriser: Any = SimpleNamespace(scale=1.0)
    passes = 0.0  # seconds in the place of forward passes

    def formatter(self, format: FormatConfig | None = None) -> Any:
        """Returns what makes samples of rows."""

        def samples(rows: Sequence[tuple[str, Row]], reject: Any = None) -> list[Sample]:
            tokens, scored = np.zeros(100, np.int32), np.ones(100, np.bool_)
            return [
                Sample(row["id"], _content(row), row, tokens, scored, False, source)
                for source, row in rows
            ]

        return SimpleNamespace(samples=samples)

    def encode(
        self, samples: list[Sample], report: Any = None, refused: Any = None
    ) -> list[Encoded]:
        """Returns the vectors of samples."""
        if not samples:
            return []
        start = time.perf_counter()
        vectors = vectors_of([sample.row["number"] for sample in samples], self.store.dim)
        norms = np.linalg.norm(vectors, axis=1).tolist()
        self.passes += time.perf_counter() - start
        return [Encoded(v, 1.0, norm, 1.0) for v, norm in zip(vectors, norms, strict=True)]

    def influence(self, queries: list[Sample], samples: list[Sample]) -> Any:
        """Returns the inner products of vectors."""
        return self.vectors(queries) @ self.vectors(samples).T


def _content(row: Row) -> str:
    from forvalue_index.data.identity import content_hash

    return content_hash(row, config=FormatConfig(key_field="id"))


def vectors_of(numbers: Sequence[int], dim: int) -> np.ndarray[Any, Any]:
    """Returns the vectors of rows [n, dim]: those of a group have cosines of about a half."""
    groups, places = np.unique(np.array(numbers) // GROUP, return_inverse=True)
    bank, _ = _banks(dim)
    made = bank[np.array(numbers) % len(bank)]
    made += centres(groups, dim)[places.reshape(-1)]
    return np.asarray(made)


def centres(groups: Any, dim: int) -> np.ndarray[Any, Any]:
    """Returns what the vectors of groups have in common, [n, dim]: normal numbers."""
    bank, signs = _banks(dim)
    numbers = np.asarray(groups)
    return np.asarray(bank[::-1][numbers % len(bank)] * signs[numbers // len(bank) % len(signs)])


@cache
def _banks(dim: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((509, dim), np.float32)
    return bank, rng.choice(np.array([-1, 1], np.float32), (2003, dim))


def opened(directory: Path) -> Synthetic:
    """Returns a session of the index in a directory."""
    store = Store.open(directory)
    return Synthetic(store, store.config, "cpu")


def add(session: Session, rows: Rows, *, update: bool = False) -> None:
    """Adds rows as `forvalue add` does."""
    with Rejects("stop") as rejects:
        checked = check_rows(rows, session.config.format, rejects, None)
        add_checked(session, rows, checked, rejects, None, update)


def build(directory: Path, n: int, dim: int, catalog: str | None) -> dict[str, float]:
    """Builds an index; returns seconds."""
    format = FormatConfig(text_field="text", key_field="id")
    config = IndexConfig(ModelConfig("synthetic"), format, VectorConfig(dim=dim))
    start = time.perf_counter()
    store = Store.create(directory, config, {"model": "synthetic"}, catalog)
    store.set_vectoriser(b"synthetic", {"dim": dim, "retained": 1.0})
    session = Synthetic(store, config, "cpu")
    add(session, Numbered(0, n))
    session.close()
    return {"build": time.perf_counter() - start}


def timed(*steps: tuple[str, Callable[[Synthetic], object]]) -> Callable[..., dict[str, float]]:
    """Returns what opens an index, does the steps one after another, and returns seconds."""

    def run(directory: Path, n: int, dim: int, catalog: str | None) -> dict[str, float]:
        seconds, start = dict[str, float](), time.perf_counter()
        session = opened(directory)
        for name, step in steps:
            session.passes = 0.0
            step(session)
            seconds[name] = time.perf_counter() - start - session.passes
            start = time.perf_counter()
        session.close()
        return seconds

    return run


def query(group: int = 3, metric: str = "dot", where: str = "") -> Callable[[Session], object]:
    """Returns what asks for the rows of a group; below 0: for what is like no row."""

    def ask(session: Session) -> object:
        noise = np.random.default_rng(abs(group)).standard_normal(session.store.dim, np.float32)
        asked = noise if group < 0 else centres([group], session.store.dim)[0] + 0.5 * noise
        row = {"text": "", "number": 0}
        sample = Sample("q", "", row, np.zeros(9, np.int32), np.ones(9, np.bool_), False, "q")
        session.encode = lambda samples, *_: [Encoded(asked, 1.0, 1.0, 1.0)] * len(samples)  # type: ignore[method-assign]
        hits = InfluenceIndex(session).query(sample, 10, metric=metric, where=where or ())
        if group >= 0 and not where:
            assert {hit.id // GROUP for hit in hits} == {group}, hits
        return hits

    return ask


def index_of(session: Session) -> InfluenceIndex:
    """Returns the index of a session."""
    return InfluenceIndex(session)


def rows_of(first: int, version: int = 0) -> Callable[[Session], object]:
    """Returns what adds, or updates, FEW rows."""
    return lambda session: add(session, Numbered(first, FEW, version), update=version > 0)


STEPS: dict[str, Callable[[int], Callable[..., dict[str, float]]]] = {
    "query": lambda n: timed(
        ("open and first query", query()),
        ("query", query(5)),
        ("query like no row", query(-1)),
        ("query, cosine: first", query(3, "cosine")),
        ("query, cosine", query(5, "cosine")),
    ),
    "where": lambda n: timed(
        ("open, filtered query (the field's first)", query(3, where="source=source3")),
        ("filtered query", query(5, where="source=source4")),
    ),
    "where again": lambda n: timed(
        ("open, filtered query", query(3, where="source=source3")),
        ("list, filtered", lambda s: list(index_of(s).rows("source=source7", limit=50))),
    ),
    "add": lambda n: timed(("open, add 1,000", rows_of(n)), ("add 1,000", rows_of(n + FEW))),
    "update": lambda n: timed(
        ("open, update 1,000", rows_of(n // 2, 1)), ("update 1,000", rows_of(n // 3, 1))
    ),
    "remove": lambda n: timed(
        (
            "open, remove 1,000",
            lambda s: index_of(s).remove([f"k{i * (n // FEW)}" for i in range(FEW)]),
        ),
        ("remove 1,000", lambda s: index_of(s).remove([f"k{i}" for i in range(100, FEW + 100)])),
        ("query after a removal", query(50)),
    ),
    "list": lambda n: timed(
        ("open, list 50", lambda s: list(index_of(s).rows(limit=50))),
        ("list 50 in the middle", lambda s: list(index_of(s).rows(after=n // 2, limit=50))),
        ("show", lambda s: index_of(s).get("k77")),
        ("info", lambda s: index_of(s).store.info()),
    ),
    "search": lambda n: timed(
        ("open, search by words", lambda s: index_of(s).search("w0000077 w0000120 w0000051")),
        ("search by words", lambda s: index_of(s).search("w0000070 w0000121 w0000052")),
    ),
    "verify": lambda n: timed(("verify", lambda s: _none(index_of(s).verify()))),
    "compact": lambda n: timed(("compact", lambda s: index_of(s).compact())),
}


def _none(problems: list[str]) -> None:
    assert not problems, problems


def measured(step: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """Returns what a step returned, and the most memory beside mapped files, in MB."""
    most, ended = 0, threading.Event()
    before = _anonymous()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.01):
            most = max(most, _anonymous())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    seconds = step()
    ended.set()
    watcher.join()
    return {"seconds": seconds, "memory": max(0, most - before) / 1e6}


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0


def run(n: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields what each step took at a size, each measured in a process of its own."""
    directory = arguments.work / f"{n}.index"
    own = [sys.executable, __file__, "--work", str(directory), "--dim", str(arguments.dim)]
    if arguments.catalog:
        own += ["--catalog", arguments.catalog]
    wanted = arguments.steps.split(",") if arguments.steps else ["build", *STEPS]
    for step in wanted:
        command = [*own, "--samples", str(n), "--step", step]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{step} at {n:,} failed:\n{done.stderr[-3000:]}", file=sys.stderr)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        extra = _disk(directory) if step == "build" else {}
        yield {"n": n, "step": step} | found | extra
    if not arguments.keep:
        shutil.rmtree(directory)


def _disk(directory: Path) -> dict[str, Any]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    sizes = {"bytes": sum(path.stat().st_size for path in files), "files": len(files)}
    kinds: dict[str, int] = {}
    for path in files:
        kinds[path.suffix] = kinds.get(path.suffix, 0) + path.stat().st_size
    return sizes | {"kinds": kinds}


def show(lines: Sequence[dict[str, Any]]) -> None:
    """Prints a table: an operation a line, a size a column, and how it grows."""
    sizes = sorted({line["n"] for line in lines})
    table: dict[str, dict[int, float]] = {}
    for line in lines:
        n = line["n"]
        for name, value in line["seconds"].items():
            table.setdefault(f"{name}, s", {})[n] = value
        table.setdefault(f"memory of {line['step']}, MB", {})[n] = line["memory"]
        for name in ("bytes", "files"):
            if name in line:
                table.setdefault(name, {})[n] = line[name]
    print(f"| | {' | '.join(f'{n:,}' for n in sizes)} | growth, m = rows / 1,000,000 |")
    print("|---" * (len(sizes) + 2) + "|")
    for name, values in table.items():
        cells = [_short(values[n]) if n in values else "" for n in sizes]
        print(f"| {name} | {' | '.join(cells)} | {growth(values)} |")


def growth(values: dict[int, float]) -> str:
    """Returns the power law nearest to values by size, as text.

    Nothing where there is one size; a number alone where a value grows by less than a tenth root.
    """
    if len(values) < 2:
        return ""
    sizes = np.log(np.array(list(values), float) / 1e6)
    power, at = np.polyfit(sizes, np.log(np.maximum(list(values.values()), 1e-9)), 1)
    if abs(power) < 0.1:
        return _short(float(np.median(list(values.values()))))
    return f"{_short(float(np.exp(at)))} m^{power:.2f}"


def _short(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def main() -> None:
    """Measures, or shows what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", default="100000,1000000", help="sizes, by commas")
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--work", type=Path, default=Path("scale"))
    parser.add_argument("--out", type=Path, help="append what was measured, JSON Lines")
    parser.add_argument("--steps", help=f"some of build,{','.join(STEPS)}")
    parser.add_argument("--catalog", help="URL of an empty PostgreSQL database")
    parser.add_argument("--keep", action="store_true", help="keep the indexes")
    parser.add_argument("--fit", type=Path, help="show what was measured before")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit:
        show([json.loads(line) for line in arguments.fit.read_text().splitlines()])
        return
    if arguments.step:
        n = int(arguments.samples)
        step = build if arguments.step == "build" else STEPS[arguments.step](n)
        step_arguments = arguments.work, n, arguments.dim, arguments.catalog
        print(json.dumps(measured(lambda: step(*step_arguments))))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    lines = []
    for n in map(int, arguments.samples.split(",")):
        for line in run(n, arguments):
            lines.append(line)
            print(
                f"{n:,} {line['step']}: {line['seconds']}, {line['memory']:.0f} MB", file=sys.stderr
            )
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    show(lines)


if __name__ == "__main__":
    main()

"""The index that is damaged, what it is asked, and what it answers as long as it is whole."""

from __future__ import annotations

import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import make_index_asset as asset
from torture import make_model

from forvalue_index import InfluenceIndex
from forvalue_index.analysis.audit.audit import audit
from forvalue_index.analysis.values import sample_values
from forvalue_index.errors import ForvalueError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row, StoredSample

State = tuple[bool, bool]  # whether rows were added, and whether some were removed
Done = tuple[str, str, Any]  # an operation, how it ended, and what it gave

ADDED: list[Row] = [
    {"id": "new1", "prompt": "which of them", "response": " was it", "source": "math", "n": 100},
    {"id": "new2", "prompt": "something", "response": " else", "source": "code", "n": 101},
]
GONE = "k22", "k7"  # removed by the operation; both are hits
EARLIER = "k38", "k45"  # removed by what is in the log of the index that has one


def hits(index: InfluenceIndex, **how: Any) -> list[Any]:
    """What two questions find, as JSON values."""
    return asset.shown(index.query(asset.questions(), asset.K, **how))


def scored(index: InfluenceIndex) -> list[Any]:
    """What each row is worth to the questions."""
    found = sample_values(index, asset.questions())
    figures = found.value, found.loss, found.self_influence
    return [found.ids.tolist(), *(figure.tolist() for figure in figures)]


def audited(index: InfluenceIndex) -> list[Any]:
    """What speaks against each row."""
    found = audit(index)
    return [found.ids.tolist(), {name: own.tolist() for name, own in found.scores.items()}]


def explained(index: InfluenceIndex) -> float:
    """The exact influence of one row."""
    return float(index.explain(asset.questions()[0], "k14").score)


def listed(samples: Iterable[StoredSample]) -> list[Any]:
    """The rows of samples, with what is kept beside them."""
    return [[s.id, s.key, s.row, s.n_tokens, s.n_scored, s.loss, s.norm] for s in samples]


def informed(index: InfluenceIndex) -> dict[str, Any]:
    """What the index says of itself, but for what depends on where and when."""
    names = "samples", "removed", "dim", "segments", "config"
    found = index.info()
    return {name: found[name] for name in names}


def state_of(index: InfluenceIndex) -> list[Any]:
    """What tells the states of an index apart."""
    return [hits(index, flat=True), sorted(sample.key for sample in index.rows())]


READS: dict[str, Callable[[InfluenceIndex], Any]] = {
    "query": lambda index: hits(index),
    **{
        f"query {name}": lambda index, how=how: hits(index, **how)  # type: ignore[misc]
        for name, how in asset.ASKED.items()
        if how
    },
    "list": lambda index: listed(index.rows()),
    "list where": lambda index: listed(index.rows(["source=math", "n<40"])),
    "show": lambda index: listed([index.get("k14")]),
    "info": informed,
    "score": scored,
    "explain": explained,
    "audit": audited,
}
"""Operations that change nothing, which give the same in an index that is damaged, or an error."""


@dataclass
class Answers:
    """What an index that is whole answers."""

    reads: dict[str, Any] = field(default_factory=dict)
    states: dict[State, list[Any]] = field(default_factory=dict)


@dataclass
class World:
    """The indexes that copies are made of. Nothing in `folder` is changed by a trial."""

    folder: Path
    lm: LanguageModel
    listener: socket.socket  # which nothing may connect to
    answers: dict[str, Answers] = field(default_factory=dict)  # by the name of the index


def make_world(folder: Path) -> World:
    """An index; one whose last change is in SQLite's log; and what stands beside a trial's copy."""
    listener = socket.create_server(("127.0.0.1", 0))
    world = World(folder, make_model(folder / "model"), listener)
    plain, logged, outside = (folder / name for name in ("plain", "logged", "outside"))
    asset.build(plain, world.lm)
    shutil.copytree(plain, folder / "first")
    with closing(sqlite3.connect(folder / "first" / "catalog.db", isolation_level=None)) as other:
        with InfluenceIndex.open(folder / "first") as index:
            other.execute("PRAGMA journal_mode = WAL")  # as the index had it
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM samples").fetchone()  # keeps the log from going
            index.remove(EARLIER)
        other.execute("COMMIT")
        shutil.copytree(folder / "first", logged, ignore=shutil.ignore_patterns("*-shm"))
    assert (logged / "catalog.db-wal").stat().st_size
    shutil.copytree(plain, outside / "index")
    (outside / "index" / "segments" / "000000000999.faiss").write_bytes(b"somebody else's")
    (outside / "file.txt").write_text("somebody else's")
    (outside / "port").write_text(str(listener.getsockname()[1]))
    for name in ("plain", "logged"):
        world.answers[name] = answered(world, name)
    first, second = (world.answers[name].reads["query"] for name in ("plain", "logged"))
    assert first != second, "the log holds nothing that counts"
    assert first == world.answers["plain"].reads["query dot"], "the derived index is no exact one"
    return world


def answered(world: World, name: str) -> Answers:
    """What an index answers, before and after each change."""
    found = Answers()
    for added, removed in product((False, True), repeat=2):
        copy = world.folder / "copy"
        shutil.copytree(world.folder / name, copy)
        with InfluenceIndex.open(copy, model=world.lm) as index:
            if not (added or removed):
                found.reads = {read: ask(index) for read, ask in READS.items()}
            if added:
                index.add(ADDED)
            if removed:
                index.remove(GONE)
            found.states[added, removed] = state_of(index)
            assert index.verify() == []
        shutil.rmtree(copy)
    return found


def operate(directory: Path, lm: LanguageModel) -> list[Done]:
    """Does with an index what its user might, and returns how each operation ended."""
    done: list[Done] = []

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        try:
            result = work()
        except ForvalueError as error:
            done.append((name, "error", str(error)))
            return None
        except Exception as error:
            done.append((name, "traceback", told(error, name)))
            return None
        done.append((name, "answer", result))
        return result

    def opened(name: str, operations: dict[str, Callable[[InfluenceIndex], Any]]) -> None:
        index: InfluenceIndex | None = None

        def open_it() -> None:
            nonlocal index
            index = InfluenceIndex.open(directory, model=lm)

        attempt(name, open_it)
        if index is None:
            return
        for operation, work in operations.items():
            attempt(operation, lambda work=work: work(index))  # type: ignore[misc]
        attempt(f"close after {name}", index.close)

    looked_after: dict[str, Callable[[InfluenceIndex], Any]] = {
        "verify": lambda index: index.verify(),
        "repair": lambda index: index.repair(),
        "state after repair": state_of,
    }
    opened("open", READS | looked_after)
    opened(
        "open to write",
        {
            "add": lambda index: index.add(ADDED).added,
            "state after add": state_of,
            "remove": lambda index: index.remove(GONE),
            "compact": lambda index: index.compact().segments,
        },
    )
    opened("open at last", {"state at last": state_of, "verify at last": lambda i: i.verify()})
    return done


def told(error: BaseException, operation: str) -> str:
    """An exception in words, with the last place in the package that it passed."""
    place, trace = "", error.__traceback__
    while trace is not None:
        name = Path(trace.tb_frame.f_code.co_filename)
        if "forvalue_index" in name.parts:
            place = f" at {name.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    reason = " ".join(str(error).split())[:300]
    return f"traceback: {type(error).__name__}{place}: {operation}: {reason}"


# -- judging -----------------------------------------------------------------------------------


def violations(done: list[Done], answers: Answers) -> list[str]:
    """What may not be, a line each, that begins with its kind."""
    found: list[str] = []
    may: set[State] = {(False, False)}
    for name, end, result in done:
        if end == "traceback":
            found.append(result)
        elif end == "error" and "\n" in result.strip():
            found.append(f"error of several lines: {name}: {result!r}")
        if name in ("add", "remove"):
            place = ("add", "remove").index(name)
            after = {(True, state[1]) if not place else (state[0], True) for state in may}
            may = after if end == "answer" else may | after
        if end != "answer":
            continue
        if name in answers.reads and not same(result, answers.reads[name]):
            found.append(f"wrong answer: {name}: {differing(result, answers.reads[name])}")
        elif name == "add" and result != len(ADDED):
            found.append(f"wrong answer: add: {result} rows were added, not {len(ADDED)}")
        elif name.startswith("state "):
            states = [answers.states[state] for state in may]
            if not any(same(result, state) for state in states):
                found.append(f"wrong answer: {name}: {differing(result, states[0])}")
    return found


def same(value: Any, wanted: Any) -> bool:
    """Whether two JSON values are the same, numbers nearly."""
    if isinstance(value, float) and isinstance(wanted, int | float):
        if value != value or wanted != wanted:
            return value != value and wanted != wanted
        return abs(value - wanted) <= 1e-4 * max(1.0, abs(wanted))
    if isinstance(value, list | tuple) and isinstance(wanted, list | tuple):
        pairs = zip(value, wanted, strict=False)
        return len(value) == len(wanted) and all(same(a, b) for a, b in pairs)
    if isinstance(value, dict) and isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(same(value[x], wanted[x]) for x in wanted)
    return type(value) is type(wanted) and bool(value == wanted)


def differing(value: Any, wanted: Any, place: str = "") -> str:
    """Where two JSON values first differ, in words."""
    if type(value) is type(wanted) and isinstance(value, list | dict):
        if len(value) != len(wanted):
            return f"{len(value)} of {len(wanted)} at {place or 'the top'}"
        names = wanted if isinstance(wanted, dict) else range(len(wanted))
        for name in names:
            if isinstance(value, dict) and name not in value:
                return f"no {name!r} at {place or 'the top'}"
            if not same(value[name], wanted[name]):
                return differing(value[name], wanted[name], f"{place}/{name}")
    return f"{str(value)[:80]!r}, not {str(wanted)[:80]!r}, at {place or 'the top'}"

"""Every method's scores for a task, kept in a folder with what they took.

    index-RECIPE/  index-RECIPE.json   an index of the rows, and the seconds that it took
    scores/GROUP.npz  GROUP.json       scores of methods that are computed together, and their names

What is there is not made again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from real.encoder import Encoder
from real.peers import peer_scores

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.analysis.evaluate.methods import (
    all_stored,
    exact_of,
    influence_scores,
    other_scores,
)
from forvalue_index.config import ModelConfig
from forvalue_index.data.row_text import texts_of
from forvalue_index.data.writers import complete
from forvalue_index.errors import InputError
from forvalue_index.model.gradients import gradient_sketches
from forvalue_index.records import Progress, Row

NOT_OF_A_QUERY = ("loss", "length")  # baselines that say the same for every query


@dataclass(frozen=True)
class Task:
    """Rows to be found, and the queries that they are found for."""

    folder: Path
    rows: list[Row]  # each has a "key" and a "source"
    queries: list[Row]  # each has a "source"
    model: ModelConfig
    format: FormatConfig


@dataclass(frozen=True)
class Ways:
    """Which methods are compared."""

    recipes: Sequence[str]
    exact: bool
    gradient: bool
    encoder: str | None
    peers: Sequence[str]
    venv: Path | None  # of the peers


@dataclass(frozen=True)
class Scored:
    """The scores of one method, and what they took."""

    method: str
    scores: NDArray[Any]  # [q, n], rows in the order of the task's
    build: float = 0.0  # seconds for what is kept of the rows
    ask: float = 0.0  # seconds for all queries
    size: int = 0  # bytes kept of a row


def scored(task: Task, ways: Ways, progress: Progress) -> list[Scored]:
    """Returns the scores of all methods."""
    (task.folder / "scores").mkdir(parents=True, exist_ok=True)
    first = ways.recipes[0]
    groups: dict[str, Callable[[], Iterator[Scored]]] = {}
    for recipe in ways.recipes:
        name = recipe if ways.exact else f"{recipe}-stored"
        groups[name] = partial(_by_index, task, recipe, ways.exact, progress)
    groups["others"] = partial(_others, task, first, progress)
    if ways.gradient:
        groups["gradient"] = partial(_gradients, task, first, progress)
    if ways.encoder is not None:
        groups["encoder"] = partial(_encoded, task, ways.encoder)
    for peer in ways.peers:
        groups[peer] = partial(_by_peer, task, peer, ways.venv)
    return [
        one for name, make in groups.items() for one in _kept(task.folder / "scores", name, make)
    ]


def indexed(task: Task, recipe: str, progress: Progress) -> InfluenceIndex:
    """Returns the index of the rows; it is built, or continued, where it is not complete."""
    path = task.folder / f"index-{recipe}"
    start = time.perf_counter()
    index, report = InfluenceIndex.build(
        path,
        task.rows,
        task.model,
        format=task.format,
        vector=VectorConfig(recipe=recipe),
        progress=progress,
    )
    took = path.with_suffix(".json")
    if report.added or not took.exists():
        took.write_text(json.dumps(time.perf_counter() - start))
    return index


def _by_index(task: Task, recipe: str, exact: bool, progress: Progress) -> Iterator[Scored]:
    with indexed(task, recipe, progress) as index:
        seconds = json.loads((task.folder / f"index-{recipe}.json").read_text())
        stored = all_stored(index)
        assert [item.key for item in stored] == [row["key"] for row in task.rows]
        start = time.perf_counter()
        queries = index.samples(task.queries)
        true = exact_of(index, queries, stored, progress) if exact else None
        methods = influence_scores(index, queries, stored, exact=true, hybrid=True)
        for one in _timed(methods, start):
            kept = {"build": seconds, "size": index.snapshot.bytes_per_vector}
            if one.method == "stored hybrid" and index.snapshot.states is not None:
                kept["size"] += index.snapshot.states.dim
            kept = kept if one.method.startswith("stored") else {}
            yield replace(one, method=f"{recipe}, {one.method}", **kept)


def _others(task: Task, recipe: str, progress: Progress) -> Iterator[Scored]:
    with indexed(task, recipe, progress) as index:
        queries, stored = index.samples(task.queries), all_stored(index)
        for one in _timed(other_scores(index, queries, stored, task.format, progress=progress)):
            if one.method not in NOT_OF_A_QUERY:
                yield one


def _gradients(task: Task, recipe: str, progress: Progress) -> Iterator[Scored]:
    with indexed(task, recipe, progress) as index:
        stored = all_stored(index)
        start = time.perf_counter()
        rows = gradient_sketches(
            index.lm, index.training_samples(item.id for item in stored), progress
        )
        build, start = time.perf_counter() - start, time.perf_counter()
        asked = gradient_sketches(index.lm, index.samples(task.queries), progress)
        dot = asked @ rows.T
        ask, size = time.perf_counter() - start, rows[0].nbytes
        yield Scored("gradient of all weights, dot", dot, build, ask, size)
        lengths = np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
        yield Scored("gradient of all weights, cosine", dot / lengths, build, ask, size)


def _encoded(task: Task, name: str) -> Iterator[Scored]:
    def texts(rows: Sequence[Row]) -> list[str]:
        return ["".join(texts_of(row, "", task.format)) for row in rows]

    encoder = Encoder(name)
    start = time.perf_counter()
    rows = encoder.vectors(texts(task.rows))
    build, start = time.perf_counter() - start, time.perf_counter()
    scores = encoder.vectors(texts(task.queries)) @ rows.T
    yield Scored("sentence encoder", scores, build, time.perf_counter() - start, rows[0].nbytes)


def _by_peer(task: Task, peer: str, venv: Path | None) -> Iterator[Scored]:
    if venv is None:
        raise InputError(f"{peer} needs --venv, a folder for its environment")
    found = peer_scores(peer, task.model, task.rows, task.queries, task.folder / peer, venv)
    yield Scored(peer, found.scores, found.build, found.ask, found.size)


def _timed(
    methods: Iterator[tuple[str, NDArray[Any]]], start: float | None = None
) -> Iterator[Scored]:
    """Yields what methods give, with the seconds that each took."""
    start = start or time.perf_counter()
    for name, scores in methods:
        yield Scored(name, scores, ask=time.perf_counter() - start)
        start = time.perf_counter()


def _kept(folder: Path, group: str, make: Callable[[], Iterator[Scored]]) -> list[Scored]:
    """Returns the scores of a group from its files; makes them where they are not there."""
    arrays, names = folder / f"{group}.npz", folder / f"{group}.json"
    if not names.exists():
        made = list(make())
        with complete(arrays) as file:
            np.savez(file, *(one.scores.astype(np.float32) for one in made))
        facts = [asdict(one) for one in made]
        for fact in facts:
            del fact["scores"]
        with complete(names, text=True) as file:
            json.dump(facts, file)
    scores = np.load(arrays)
    facts = json.loads(names.read_text())
    return [Scored(**fact | {"scores": scores[f"arr_{i}"]}) for i, fact in enumerate(facts)]

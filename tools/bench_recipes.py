"""Measures recipes on a task whose truth is known: exact, stored at several sizes, re-ranked.

What the studies of bench_recall.py share; they say what the tasks are.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.analysis.evaluate.baselines import baselines
from forvalue_index.analysis.evaluate.exact import exact_scores, reranked
from forvalue_index.analysis.evaluate.methods import all_stored, by_metric
from forvalue_index.metric import METRICS
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row, Sample, StoredSample

Scores = NDArray[Any]  # [q, n]
Figures = dict[str, float]
Judge = Callable[[Scores], Figures]

EXACT, RERANKED, BASELINE = "exact", "2 KB + exact", ""
SIZES = {"4 KB": (4096, 8), "2 KB": (4096, 4), "1 KB": (4096, 2)}
"""Of a vector, about -> its numbers, and bits of each."""
MAIN = {"recall": "mrr", "identify": "recall", "mislabel": "auc"}
"""Study -> the figure by which its recipes are compared."""


@dataclass(frozen=True)
class Task:
    """Rows and queries of one model, and what good scores are."""

    study: str
    set: str
    seed: int
    lm: LanguageModel
    rows: list[Row]
    queries: list[Row]
    format: FormatConfig
    judge: Callable[[Sequence[Sample], Sequence[StoredSample]], Judge]
    k: int = 10  # hits that are looked at; ten times as many are re-ranked, as `query` does
    is_distraction: Callable[[Row], bool] | None = None  # of a row that BM25 is tried without, too


@dataclass(frozen=True)
class Result:
    """How one way of scoring did on one task."""

    study: str
    set: str
    seed: int
    method: str  # a recipe or a baseline
    vectors: str  # EXACT, a size, RERANKED, or BASELINE
    metric: str
    figures: Figures


def measure(
    task: Task,
    recipes: Sequence[str],
    wanted: Sequence[str],
    vector: VectorConfig,
) -> Iterator[Result]:
    """Yields the results of all recipes, sizes and ways to rank, and once those of the baselines.

    Args:
        task: what is measured.
        recipes: names of recipes.
        wanted: metrics.
        vector: the rest of how vectors are made.
    """

    def result(method: str, vectors: str, metric: str, scores: Scores) -> Result:
        return Result(task.study, task.set, task.seed, method, vectors, metric, judge(scores))

    linear = [name for name in wanted if METRICS[name].has_exact]
    for recipe in recipes:
        exact: dict[str, Scores] = {}
        for size, (dim, bits) in SIZES.items():
            note(f"{task.study} {task.set}, seed {task.seed}: {recipe}, {size}")
            with (
                tempfile.TemporaryDirectory() as folder,
                build(
                    folder,
                    task.rows,
                    task.lm,
                    task.format,
                    replace(vector, recipe=recipe, dim=dim, bits=bits),
                ) as index,
            ):
                queries = index.samples(task.queries)
                ids, scores = index.scores(queries)
                rows = all_stored(index)
                judge = task.judge(queries, rows)
                n_scored = np.array([row.n_scored for row in rows])
                stored = dict(by_metric(scores, np.array([row.norm for row in rows]), n_scored))
                if not exact:  # the same for every size
                    true = exact_scores(index, queries, ids)
                    exact = dict(by_metric(true.scores, true.sample_lengths, n_scored))
                    yield from (result(recipe, EXACT, metric, exact[metric]) for metric in linear)
                    if recipe == recipes[0]:
                        for name, others in _baselines(task, index, queries, rows):
                            yield result(name, BASELINE, "", others)
                for metric in set(wanted) - set(linear):
                    found = index.scores(queries, metric)[1]
                    yield result(recipe, size, metric, found)
                    if told := _told(task, rows, found):
                        yield result(recipe, size, f"{metric}, told", told[0])
            for metric in linear:
                yield result(recipe, size, metric, stored[metric])
                # A mislabelled row is looked for among all rows, so that nothing is re-ranked.
                if RERANKED.startswith(size) and task.study != "mislabel":
                    both = reranked(stored[metric], exact[metric], 10 * task.k)
                    yield result(recipe, RERANKED, metric, both)


def _baselines(
    task: Task, index: InfluenceIndex, queries: Sequence[Sample], rows: Sequence[StoredSample]
) -> Iterator[tuple[str, Scores]]:
    for name, scores in baselines(index, queries, rows, task.format, seed=task.seed):
        if task.study == "mislabel" and name == "loss":
            yield "low loss", -scores  # a wrong response is an unlikely one
        else:
            yield name, scores
        if name == "bm25" and (told := _told(task, rows, scores)):
            yield "bm25, told", told[0]


def _told(task: Task, rows: Sequence[StoredSample], scores: Scores) -> list[Scores]:
    """Returns the scores of what is told which rows are no sources; none where the task knows none.

    Only methods of words are told: rows that repeat the question share most words with it.
    """
    if task.is_distraction is None:
        return []
    return [np.where([task.is_distraction(r.row) for r in rows], -np.inf, scores)]


def build(
    folder: str, rows: list[Row], lm: LanguageModel, format: FormatConfig, vector: VectorConfig
) -> InfluenceIndex:
    """Returns a new index of rows, in `folder`."""
    path = Path(folder) / "index"
    return InfluenceIndex.build(path, rows, lm, format=format, vector=vector)[0]


def show(results: Sequence[Result]) -> None:
    """Prints all results of one study as one table."""
    study = results[0].study
    columns = [
        (set, name)
        for set in dict.fromkeys(result.set for result in results)
        for name in results[0].figures
    ]
    table = Table(title=f"{study}, mean ± spread over seeds", title_justify="left")
    for column in ("method", "vectors", "metric"):
        table.add_column(column, no_wrap=True)
    for set, name in columns:
        table.add_column(f"{set}\n{name.replace('_', '@')}", justify="right", no_wrap=True)
    table.add_column(f"{MAIN[study]}\n/ raw", justify="right")
    sets = list(dict.fromkeys(set for set, _ in columns))
    for set in sets:
        table.add_column(f"{set} {MAIN[study]}\n/ exact", justify="right")
    means = _means(results)
    previous = None
    keys = dict.fromkeys((r.method, r.vectors, r.metric) for r in results)
    for key in sorted(keys, key=lambda key: key[1] == BASELINE):  # these stand below
        method, vectors, metric = key
        group = method if vectors else BASELINE
        if previous not in (None, group):
            table.add_section()
        previous = group
        cells = [
            _spread(r.figures[name] for r in results if _is(r, set, key)) for set, name in columns
        ]
        raw = _ratio(means, key, ("raw", vectors, metric), sets)
        exact = [_ratio(means, key, (method, EXACT, metric), [set]) for set in sets]
        table.add_row(method, vectors, metric, *cells, *([raw, *exact] if vectors else []))
    console = Console(width=None if sys.stdout.isatty() else 48 + 16 * (len(columns) + len(sets)))
    console.print(table)
    seeds = len({result.seed for result in results})
    console.print(
        f"{seeds} seeds; / raw: geometric mean over the sets of {MAIN[study]} by that of raw with "
        f"the same vectors; / exact: by that of the same recipe's exact form; {machine()}\n"
    )


def machine() -> str:
    """Returns what the figures were taken on."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def note(text: str) -> None:
    """Prints a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


Key = tuple[str, str, str]


def _is(result: Result, set: str, key: Key) -> bool:
    return result.set == set and (result.method, result.vectors, result.metric) == key


def _means(results: Sequence[Result]) -> dict[Key, dict[str, float]]:
    """Returns the mean over seeds of the main figure, by method and set."""
    values: dict[Key, dict[str, list[float]]] = {}
    for r in results:
        sets = values.setdefault((r.method, r.vectors, r.metric), {})
        sets.setdefault(r.set, []).append(r.figures[MAIN[r.study]])
    return {
        key: {set: float(np.mean(found)) for set, found in sets.items()}
        for key, sets in values.items()
    }


def _ratio(means: dict[Key, dict[str, float]], key: Key, base: Key, sets: Sequence[str]) -> str:
    """Returns the geometric mean over sets of one method's figure by another's, if it has one."""
    if not all(set in means.get(way, {}) for way in (key, base) for set in sets):
        return "–"
    tiny = 1e-6
    logs = [np.log(max(means[key][set], tiny) / max(means[base][set], tiny)) for set in sets]
    return f"{np.exp(np.mean(logs)):.3f}"


def _spread(values: Iterable[float]) -> str:
    numbers = list(values)
    if not numbers:
        return "–"
    spread = f" ± {np.std(numbers, ddof=1):.3f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.3f}{spread}"

"""How well scores find what was planted, and the table of it."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from real.methods import Scored
from rich.console import Console
from rich.table import Table

from forvalue_index.analysis.evaluate.metrics import Figure, auc, recall, top
from forvalue_index.records import Row

Values = NDArray[np.float64]  # of each query
NAMES = ("P@n", "AP", "AUC")


@dataclass(frozen=True)
class Found:
    """How one method did in one seed's study."""

    seed: int
    scored: Scored
    values: dict[str, Values]


def judged(
    seed: int, scored: Sequence[Scored], rows: Sequence[Row], queries: Sequence[Row]
) -> list[Found]:
    """Returns the figures of all methods; a query's sources are the rows of its `source`."""
    gold = np.array([[q["source"] == row["source"] for row in rows] for q in queries])
    # Ties are broken in a fixed random order.
    order = np.random.default_rng(0).permutation(len(rows))
    result = []
    for one in scored:
        pairs = [(s[order], g[order]) for s, g in zip(one.scores, gold, strict=True)]
        values = {
            "P@n": np.array([recall(*pair) for pair in pairs]),
            "AP": np.array([average_precision(*pair) for pair in pairs]),
            "AUC": np.array([auc(*pair) for pair in pairs]),
        }
        result.append(Found(seed, one, values))
    return result


def average_precision(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> float:
    """Returns the mean, over the positives, of the share of positives down to its rank."""
    found = positive[top(scores, len(scores))]
    precision = np.cumsum(found) / np.arange(1, len(found) + 1)
    return float(precision[found].mean())


def figure(found: Sequence[Found], name: str) -> tuple[float, float, float | None]:
    """Returns the mean over seeds, its standard error over queries, and the spread over seeds."""
    figures = [Figure.of(one.values[name]) for one in found]
    means = np.array([one.mean for one in figures], np.float64)
    error = np.sqrt(sum((one.se or 0.0) ** 2 for one in figures)) / len(figures)
    spread = float(means.std(ddof=1)) if len(means) > 1 else None
    return float(means.mean()), float(error), spread


def show(title: str, found: Sequence[Found], note: str) -> None:
    """Prints a row for each method, the best average precision first."""
    methods: dict[str, list[Found]] = defaultdict(list)
    for one in found:
        methods[one.scored.method].append(one)
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    for name in (*NAMES, "build s", "ask s", "bytes a row"):
        table.add_column(name, justify="right", no_wrap=True)
    for method in sorted(methods, key=lambda name: -figure(methods[name], "AP")[0]):
        own = methods[method]
        cells = [_cell(*figure(own, name)) for name in NAMES]
        build, ask, size = (
            float(np.mean([getattr(one.scored, name) for one in own]))
            for name in ("build", "ask", "size")
        )
        table.add_row(
            method, *cells, _number(build), f"{ask:,.1f}", f"{size:,.0f}" if size else "–"
        )
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    console.print("± standard error over the queries (standard deviation over the seeds)")
    console.print(note)


def _cell(mean: float, error: float, spread: float | None) -> str:
    more = "" if spread is None else f" ({_decimals(spread)})"
    return f"{_decimals(mean)} ± {_decimals(error)}{more}"


def _decimals(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value else "–"

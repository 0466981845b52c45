"""Metrics: each against a plain formula from exact vectors, and the only place that knows them."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import forvalue_index
from forvalue_index.cli import main
from forvalue_index.errors import InputError
from forvalue_index.metric import DERIVED, METRICS, Metric, metric_of

PACKAGE = Path(forvalue_index.__file__).parent
RNG = np.random.default_rng(0)
SCALE = 3.0
QUERIES, SAMPLES = RNG.standard_normal((4, 8)), RNG.standard_normal((6, 8))  # as they are
Q_TOKENS, S_TOKENS = np.array([1, 2, 5, 9]), np.array([3, 1, 1, 7, 2, 4])
DOT = QUERIES @ SAMPLES.T
LENGTHS = np.linalg.norm(QUERIES, axis=1)[:, None] * np.linalg.norm(SAMPLES, axis=1)
FORMULAS = {
    "dot": DOT,
    "cosine": DOT / LENGTHS,
    "per-token": DOT / Q_TOKENS[:, None] / S_TOKENS,
    "decorrelated": DOT,  # of queries that were turned
}


@pytest.mark.parametrize("name", FORMULAS)
def test_scores_of_stored_vectors(name: str) -> None:
    metric = METRICS[name]
    stored, asked = SCALE * SAMPLES, (SCALE * QUERIES).astype(np.float32)
    weights = metric.weights(np.linalg.norm(stored, axis=1), S_TOKENS)
    assert weights.dtype == np.float32
    scores = asked @ stored.T * weights * metric.query_weights(asked, Q_TOKENS, SCALE)[:, None]
    np.testing.assert_allclose(scores, FORMULAS[name], rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.has_exact])
def test_exact_scores(name: str) -> None:
    sizes = [
        METRICS[name].sizes(np.linalg.norm(vectors, axis=1), tokens)
        for vectors, tokens in ((QUERIES, Q_TOKENS), (SAMPLES, S_TOKENS))
    ]
    np.testing.assert_allclose(DOT / sizes[0][:, None] / sizes[1], FORMULAS[name])


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_what_has_no_length_scores_nothing(metric: Metric) -> None:
    none, one = np.zeros(1), np.ones(1, np.int64)
    weights = metric.weights(none, one)
    assert np.isfinite(weights).all() and (weights > 0).all()
    asked = metric.query_weights(np.zeros((1, 8), np.float32), one, SCALE)
    assert np.isfinite(asked).all()
    if metric.needs_lengths:
        assert 1e-20 / metric.sizes(none, one) < 1e-40


def test_a_metric_is_found_by_its_name() -> None:
    for name, metric in METRICS.items():
        assert metric_of(name) is metric_of(metric) is metric
        assert (name in DERIVED) == (metric.linear and metric.derived == name)
        assert metric.derived in DERIVED or not metric.linear
    with pytest.raises(InputError, match="'best' is not one of dot, cosine, per-token, decor"):
        metric_of("best")
    with pytest.raises(InputError, match=r"'decorrelated' .* has no exact form"):
        metric_of("decorrelated", exact=True)
    for name in METRICS.keys() - FORMULAS.keys():
        with pytest.raises(InputError, match="use dot, cosine, per-token"):
            metric_of(name, linear=True)


def test_no_other_module_compares_a_metric_with_a_name() -> None:
    def named(node: ast.expr) -> bool:
        inner = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
        return not METRICS.keys().isdisjoint(value for value in inner if isinstance(value, str))

    def compared(path: Path) -> list[int]:
        nodes = ast.walk(ast.parse(path.read_text()))
        return [node.lineno for node in nodes if isinstance(node, ast.Compare) and named(node)]

    assert named(ast.parse("x in (1, 'dot')", mode="eval").body)
    found = {str(path): lines for path in PACKAGE.rglob("*.py") if (lines := compared(path))}
    assert set(found) <= {str(PACKAGE / "metric.py")}


@pytest.mark.parametrize("command", ["query", "ask", "score", "select", "optimize", "explain"])
def test_commands_take_a_metric_and_no_rank(command: str) -> None:
    names = {name for option in main.commands[command].params for name in option.opts}
    assert "--metric" in names and "--rank" not in names


def test_no_command_speaks_of_rank_for_it() -> None:
    for command in main.commands.values():
        names = {name for option in command.params for name in option.opts}
        assert "--rank" not in names

"""`forvalue evaluate` as a person or a program runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from forvalue_index import InfluenceIndex, VectorConfig
from forvalue_index.cli import main
from forvalue_index.cli.evaluate import evaluate
from forvalue_index.records import Row


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def run_well(*arguments: Any) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture()
def index(tmp_path: Path, rows: list[Row], model_dir: Path) -> Path:
    path = tmp_path / "my.index"
    train = [row | {"kind": row["n"] % 3} for row in rows]
    vector = VectorConfig(recipe="raw", dim=256, sketch_dim=256)
    InfluenceIndex.build(path, train, str(model_dir), vector=vector)[0].close()
    return path


@pytest.fixture()
def queries(tmp_path: Path) -> Path:
    rows = [{"prompt": f"ask {i}", "response": f" so {i}", "kind": i % 3} for i in range(4)]
    return write(tmp_path / "queries.jsonl", rows)


FIGURE = {"mean", "sd", "se", "n"}


def test_fidelity_as_json(index: Path, queries: Path) -> None:
    result = json.loads(run_well("fidelity", "--index", index, "--data", queries, "--json"))
    assert {name for name, value in result.items() if isinstance(value, dict)} == {
        *("pearson", "spearman", "overlap_10", "overlap_100", "top_10_in_100", "error")
    }
    assert set(result["pearson"]) == FIGURE
    assert 0 < result["pearson"]["mean"] < 1
    assert result["overlap_100"] == {"mean": None, "sd": None, "se": None, "n": 0}
    del result["pearson"], result["spearman"], result["overlap_10"], result["overlap_100"]
    del result["top_10_in_100"], result["error"]
    assert result.pop("bytes_per_sample") == 2 * result.pop("dim") > 0
    assert result == {"recipe": "raw", "queries": 4, "samples": 30}


def test_fidelity_for_people(index: Path, queries: Path) -> None:
    out = run_well("fidelity", "--index", index, "--data", queries, "--sample", 20)
    assert "Pearson correlation" in out
    assert "4 queries, 20 training samples, recipe raw, " in out
    assert "–" in next(line for line in out.splitlines() if "top 100" in line)


def test_recall_as_json(index: Path, queries: Path) -> None:
    arguments = ("recall", "--index", index, "--data", queries, "--gold-field", "kind", "--json")
    result = json.loads(run_well(*arguments))
    stored = ["stored dot", "stored cosine", "stored per-token"]
    others = ["bm25", "embedding", "loss", "length", "random"]
    assert list(result["methods"]) == [*stored, *others]
    for found in result["methods"].values():
        assert set(found) == {"mrr", "hit_1", "hit_10", "auc", "recall"}
        assert all(set(figure) == FIGURE and figure["n"] == 4 for figure in found.values())
    assert (result["queries"], result["samples"], result["gold_field"]) == (4, 30, "kind")
    assert result["sources"]["mean"] == 10
    exact = json.loads(run_well(*arguments, "--exact"))["methods"]
    assert list(exact) == [*stored, *(name.replace("stored", "exact") for name in stored), *others]
    reseeded = json.loads(run_well(*arguments, "--seed", 1))["methods"]
    assert {name for name in reseeded if reseeded[name] != exact[name]} == {"random"}


def test_recall_for_people_fits_a_terminal(
    index: Path, queries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = run_well("recall", "--index", index, "--data", queries, "--gold-field", "kind", "--exact")
    assert "recall@gold" in out
    assert "exact per-token" in out
    assert "…" not in out
    assert "4 queries with 10.000 sources each of 30 training samples" in out.replace("\n", " ")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "response": " b"}, "queries.jsonl:1: no field 'kind'; the row's fields"),
        ({"prompt": "a", "response": " b", "kind": 7}, "no training row has kind = 7"),
        ({"prompt": "a", "kind": 1}, "queries.jsonl:1: no field 'response'"),
    ],
)
def test_bad_queries_are_one_line(index: Path, queries: Path, row: Row, message: str) -> None:
    write(queries, [row])
    result = run("recall", "--index", index, "--data", queries, "--gold-field", "kind")
    assert_one_line(result, message)


def test_no_queries_are_one_line(index: Path, queries: Path) -> None:
    queries.write_text("\n")
    for arguments in (("fidelity",), ("recall", "--gold-field", "kind")):
        result = run(*arguments, "--index", index, "--data", queries)
        assert_one_line(result, "there is no query in the data")


def test_an_unknown_gold_field_is_one_line(index: Path, queries: Path, rows: list[Row]) -> None:
    write(queries, [{"prompt": "a", "response": " b", "fact": 1}])
    result = run("recall", "--index", index, "--data", queries, "--gold-field", "fact")
    assert_one_line(result, "training rows: no field 'fact'; the row's fields are: id, prompt")


def test_wrong_usage_is_exit_code_2(index: Path, queries: Path) -> None:
    assert run("recall", "--index", index, "--data", queries).exit_code == 2
    assert run("fidelity", "--index", index, "--data", queries, "--sample", 1).exit_code == 2


def assert_one_line(result: Result, message: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.parametrize("name", sorted(evaluate.commands))
def test_every_subcommand_has_help_with_an_example(name: str) -> None:
    command = evaluate.commands[name]
    with click.Context(command) as context:
        text = command.get_help(context)
    assert f"forvalue evaluate {name}" in text.split("Example:")[1]
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert all(option.help for option in options), "an option without help"

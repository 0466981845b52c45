"""`forvalue select`: the greedy choice against a plain loop, and the rows that are written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from forvalue_index import InfluenceIndex, VectorConfig
from forvalue_index.analysis import greedy as module
from forvalue_index.analysis.select import select
from forvalue_index.analysis.values import sample_values
from forvalue_index.cli import main
from forvalue_index.data.sources import open_rows
from forvalue_index.errors import InputError
from forvalue_index.records import Row

TARGETS = [{"prompt": f"ask {i}", "response": f" so {'abc'[i]}{i}"} for i in range(3)]
ROWS: list[Row] = [
    {
        "id": f"row-{i}",
        "prompt": f"{'pqr'[i % 3]} word {i}",
        "response": " so " + "abcno"[i % 5] * (1 + i % 4),
        "source": "a" if i < 30 else "bc"[i % 2],
    }
    for i in range(40)
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("select") / "my.index"
    vector = VectorConfig(recipe="raw", dim=256, sketch_dim=256)
    # Ten rows stand twice, under another key.
    rows = ROWS + [row | {"id": f"copy-{i}"} for i, row in enumerate(ROWS[:10])]
    InfluenceIndex.build(path, rows, str(model_dir), vector=vector)[0].close()
    return path


@pytest.fixture()
def index(path: Path) -> Iterator[InfluenceIndex]:
    with InfluenceIndex.open(path) as index:
        yield index


def greedy(index: InfluenceIndex, budget: int, diversity: float, dedup: float) -> list[int]:
    """The choice by looking at every row again for every place."""
    ids, scores = index.scores(index.samples(TARGETS))
    value = (scores / scores.max(1, keepdims=True)).max(0).round(5).astype(np.float64)
    vectors = index.flat.vectors(ids).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest, chosen = np.zeros(len(ids)), []
    left = np.ones(len(ids), bool)
    while len(chosen) < budget and left.any():
        worth = np.where(value > 0, value * np.maximum(1 - nearest**2, 0) ** diversity, value)
        best = int(np.argmax(np.where(left, worth, -np.inf)))
        left[best] = False
        if nearest[best] >= dedup:
            continue
        chosen.append(int(ids[best]))
        nearest = np.maximum(nearest, vectors @ vectors[best])
    return chosen


@pytest.mark.parametrize(("diversity", "dedup"), [(1.0, 0.98), (0.0, 0.9), (2.0, 0.6)])
@pytest.mark.parametrize("window", [1, 4, 128])
def test_the_choice_by_windows_is_the_greedy_one(
    index: InfluenceIndex,
    diversity: float,
    dedup: float,
    window: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WINDOW", window)
    monkeypatch.setattr(module, "_BLOCK", 8)
    chosen = select(index, TARGETS, budget=50, diversity=diversity, dedup=dedup)
    # A row and its copy are worth the same: either may come first.
    wanted = greedy(index, 50, diversity, dedup)
    assert (chosen.ids % 40).tolist() == [id % 40 for id in wanted]
    assert chosen.copies == 50 - len(chosen.ids) >= 10
    few = select(index, TARGETS, budget=12, diversity=diversity, dedup=dedup).ids
    assert few.tolist() == chosen.ids[:12].tolist()


def test_without_diversity_it_is_the_order_of_values(index: InfluenceIndex) -> None:
    found = sample_values(index, TARGETS, where=["source=a"], combine="each")
    chosen = select(index, TARGETS, ratio=0.5, diversity=0, dedup=None, where=["source=a"])
    assert chosen.ids.tolist() == found.ids[found.best(20)].tolist()
    assert len(chosen.ids) == 20  # of 30 and ten copies
    diverse = select(index, TARGETS, ratio=0.5, dedup=None, where=["source=a"])
    assert diverse.ids.tolist() != chosen.ids.tolist()
    assert diverse.values.value[diverse.places].sum() < found.value[found.best(20)].sum()


def test_groups_get_as_many_rows_each(index: InfluenceIndex) -> None:
    counts = Counter(
        ROWS[id % 40]["source"] for id in select(index, TARGETS, budget=12, balance="source").ids
    )
    assert counts == {"a": 4, "b": 4, "c": 4}
    # b and c have five rows each: what they lack goes to a. Copies leave room for others.
    chosen = select(index, TARGETS, budget=24, balance="source", dedup=0.999, diversity=0)
    counts = Counter(ROWS[id % 40]["source"] for id in chosen.ids)
    assert counts == {"a": 14, "b": 5, "c": 5}
    every = select(index, TARGETS, budget=50, balance="source", dedup=0.9999, diversity=0)
    assert len(every.ids) == 50 - every.copies == 40
    assert len(set(every.ids.tolist())) == 40


def test_shares_fill_up_to_what_there_is() -> None:
    for budget, counts, wanted in (
        (9, [5, 5, 5], [3, 3, 3]),
        (10, [5, 5, 5], [4, 3, 3]),
        (10, [1, 9, 9], [1, 5, 4]),
        (100, [1, 2, 3], [1, 2, 3]),
        (2, [4, 4, 4], [1, 1, 0]),
    ):
        assert module.shares(budget, np.array(counts)).tolist() == wanted


def test_the_report_tells_what_was_chosen(index: InfluenceIndex) -> None:
    chosen = select(index, TARGETS, budget=20, balance="source")
    report = chosen.report()
    found = sample_values(index, TARGETS, combine="each")
    own = found.value[np.searchsorted(found.ids, chosen.ids)]
    positive = found.value[found.value > 0].sum()
    assert (report["targets"], report["rows"], report["chosen"]) == (3, 50, 20)
    assert report["mean_value"] == pytest.approx(own.mean())
    assert report["lowest_value"] == own.min()
    assert report["harmful"] == (own < 0).sum()
    assert [point["rows"] for point in report["curve"]] == list(range(2, 21, 2))
    for point in report["curve"]:
        best = np.sort(found.value)[::-1][: point["rows"]].sum()
        assert point["share"] == pytest.approx(own[: point["rows"]].sum() / positive)
        assert point["best"] == pytest.approx(best / positive)
    assert sum(group["chosen"] for group in report["groups"]) == 20
    assert {group["name"]: group["of"] for group in report["groups"]} == {"a": 40, "b": 5, "c": 5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "a selection needs either a budget or a ratio: give one of them"),
        ({"budget": 3, "ratio": 0.1}, "give one of them"),
        ({"budget": 0}, "budget is 0, but it is a number of rows"),
        ({"ratio": 1.5}, "ratio is 1.5: use a share"),
        ({"budget": 3, "diversity": -1.0}, "diversity is -1.0"),
        ({"budget": 3, "balance": "kind"}, "no training row has a field 'kind'"),
    ],
)
def test_wrong_settings_are_named(
    index: InfluenceIndex, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        select(index, TARGETS, **settings)


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture()
def targets(tmp_path: Path) -> Path:
    path = tmp_path / "targets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TARGETS))
    return path


def run(path: Path, targets: Path, output: Path, *arguments: Any) -> Result:
    given = ["select", "--index", path, "--data", targets, "--output", output, *arguments]
    return CliRunner().invoke(main, list(map(str, given)))


def test_rows_are_written_as_they_were_given(
    path: Path, targets: Path, tmp_path: Path, index: InfluenceIndex
) -> None:
    output, report = tmp_path / "chosen.jsonl", tmp_path / "report.json"
    result = run(path, targets, output, "--budget", 10, "--report", report, "--json")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    by_key = {row["id"]: row for row in ROWS} | {
        f"copy-{i}": row | {"id": f"copy-{i}"} for i, row in enumerate(ROWS[:10])
    }
    assert rows == [by_key[row["id"]] for row in rows]
    ids = select(index, TARGETS, budget=10).ids.tolist()
    assert [row["id"] for row in rows] == [sample.row["id"] for sample in index.stored(ids)]
    assert json.loads(result.stdout) == json.loads(report.read_text())
    # What was chosen can be indexed, and chosen from, again.
    assert len(rows) == json.loads(result.stdout)["chosen"] == 10


def test_a_choice_in_csv_is_to_be_trained_on_and_stays_as_it_is(
    targets: Path, tmp_path: Path, model_dir: Path
) -> None:
    rows = [{"prompt": "=a", "response": "- b"}]
    InfluenceIndex.build(tmp_path / "index", rows, str(model_dir))[0].close()
    result = run(tmp_path / "index", targets, tmp_path / "c.csv", "--budget", 1)
    assert result.exit_code == 0, result.stderr
    assert [row for _, row in open_rows(tmp_path / "c.csv")] == rows


def test_select_for_people(path: Path, targets: Path, tmp_path: Path) -> None:
    result = run(path, targets, tmp_path / "c.csv", "--ratio", 0.9, "--balance", "source")
    assert result.exit_code == 0, result.stderr
    assert "█" in result.stdout
    assert "of 50 rows for 3 targets" in result.stdout.replace("\n", " ")
    assert "rows in" in result.stderr


def test_wrong_usage(path: Path, targets: Path, tmp_path: Path) -> None:
    output = tmp_path / "c.jsonl"
    assert run(path, targets, output).exit_code == 2
    assert run(path, targets, output, "--budget", 1, "--ratio", 0.5).exit_code == 2
    assert run(path, targets, tmp_path / "c.txt", "--budget", 1).exit_code == 1
    assert not list(tmp_path.glob("c.*"))


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_the_value_may_be_another_than_the_share(index: InfluenceIndex, combine: str) -> None:
    value = sample_values(index, TARGETS, combine=combine)
    chosen = select(index, TARGETS, budget=5, diversity=0, dedup=None, combine=combine)
    assert chosen.places.tolist() == value.best(5).tolist()
    each = sample_values(index, TARGETS, combine="each")
    assert chosen.places.tolist() != each.best(5).tolist()


def test_the_best_rows_of_all_targets_have_the_same_value(index: InfluenceIndex) -> None:
    _, scores = index.scores(index.samples(ROWS[::3]))
    found = sample_values(index, [*ROWS[::3]], combine="each").value
    assert set(found[scores.argmax(1)].tolist()) == {1.0}

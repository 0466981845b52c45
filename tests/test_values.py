"""`forvalue score`: values against plain sums over scores, and how they are written."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from forvalue_index import InfluenceIndex, VectorConfig
from forvalue_index.analysis.values import (
    GroupValue,
    exact_values,
    group_values,
    sample_values,
    value_rows,
)
from forvalue_index.cli import main
from forvalue_index.cli.score import _groups
from forvalue_index.data.sources import open_rows
from forvalue_index.data.writers import write_rows
from forvalue_index.errors import InputError, StorageError
from forvalue_index.records import Row
from forvalue_index.search import stored as vectors

TARGETS = [
    {"prompt": f"ask {i}", "response": f" so {'abcde'[i]}{i}", "skill": "xy"[i % 2]}
    for i in range(5)
]


GROUPS = [("math", 1.23e-4), ("web", 0.41e-4), ("code", -1.23e-4)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("values") / "my.index"
    rows = [
        {
            "id": f"row-{i}",
            "prompt": f"{'pqr'[i % 3]} word {i}",
            "response": " " + "lmnop"[i % 5] * (1 + i % 4),
            "source": "abc"[i % 3],
            "meta": {"year": 2000 + i},
        }
        for i in range(30)
    ]
    vector = VectorConfig(recipe="raw", dim=256, sketch_dim=256)
    InfluenceIndex.build(path, rows, str(model_dir), vector=vector)[0].close()
    return path


@pytest.fixture()
def index(path: Path) -> Iterator[InfluenceIndex]:
    with InfluenceIndex.open(path) as index:
        yield index


@pytest.mark.parametrize("combine", ["mean", "max", "each"])
@pytest.mark.parametrize("metric", ["dot", "cosine", "per-token"])
def test_a_value_is_the_mean_or_highest_score(
    index: InfluenceIndex, metric: str, combine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "_NUMBERS", 7 * index.dim)  # vectors come in blocks of 7
    monkeypatch.setattr("forvalue_index.analysis.values._TARGETS", 2)
    samples = index.samples(TARGETS)
    ids, scores = index.scores(samples)
    stored = list(index.store.catalog.samples(ids.tolist()).values())
    if metric == "cosine":
        own = np.linalg.norm(index.vectors(samples), axis=1) / index.vectoriser.scale
        theirs = np.array([sample.norm for sample in stored]) / index.vectoriser.scale
        scores = scores / own[:, None] / theirs
    elif metric == "per-token":
        own, theirs = ([s.n_scored for s in side] for side in (samples, stored))
        scores = scores / np.array(own)[:, None] / np.array(theirs)
    found = sample_values(index, TARGETS, combine=combine, metric=metric, target_group="skill")
    if combine == "each":
        scores = scores / np.abs(scores.max(1, keepdims=True))
    method = np.mean if combine == "mean" else np.max
    np.testing.assert_array_equal(found.ids, ids)
    atol = 1e-5 if combine == "each" else 1e-7
    np.testing.assert_allclose(found.value, method(scores, axis=0), rtol=1e-4, atol=atol)
    assert found.group_sizes == {"x": 3, "y": 2}
    for number, name in enumerate("xy"):
        wanted = method(scores[number::2], axis=0)
        np.testing.assert_allclose(found.groups[name], wanted, rtol=1e-4, atol=atol)
    assert np.std(found.value) > 0
    squares = [(sample.norm / index.vectoriser.scale) ** 2 for sample in stored]
    np.testing.assert_allclose(found.self_influence, squares)


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_exact_values_are_those_of_the_exact_form(
    index: InfluenceIndex, combine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_index.analysis.values._TARGETS", 2)
    ids = [3, 17, 4]
    exact = index.influence(index.samples(TARGETS), index.training_samples(ids))
    found = exact_values(index, TARGETS, ids, combine=combine)
    np.testing.assert_allclose(found, getattr(np, combine)(exact, axis=0), rtol=1e-5)
    with pytest.raises(InputError, match="use mean or max"):
        exact_values(index, TARGETS, ids, combine="each")


def test_conditions_leave_the_others_out(index: InfluenceIndex) -> None:
    every = sample_values(index, TARGETS)
    some = sample_values(index, TARGETS, where=["source=b"])
    assert some.ids.tolist() == list(range(1, 30, 3))
    np.testing.assert_allclose(some.value, every.value[1::3], rtol=1e-6)
    with pytest.raises(InputError, match="no training sample is left to score"):
        sample_values(index, TARGETS, where=["source=b", "source=c"])


def test_groups_add_up(index: InfluenceIndex) -> None:
    found = sample_values(index, TARGETS)
    groups = group_values(index, found, "source")
    assert [group.mean for group in groups] == sorted((g.mean for g in groups), reverse=True)
    for group in groups:
        own = found.value["abc".index(group.name) :: 3]
        assert (group.samples, group.helpful) == (10, np.mean(own > 0))
        assert group.sum == pytest.approx(own.sum())
        assert group.se == pytest.approx(own.std(ddof=1) / 10**0.5)
    assert len(group_values(index, found, "meta.year")) == 30
    with pytest.raises(InputError, match=r"no training row has a field 'src': the fields are id"):
        group_values(index, found, "src")


def test_wrong_settings_are_named(index: InfluenceIndex) -> None:
    for settings, message in (
        ({"metric": "best"}, "metric 'best' is not one of dot"),
        ({"combine": "sum"}, "combine 'sum' is not one of mean, max, each"),
        ({"target_group": "kind"}, "row 1: no field 'kind'; the row's fields are: prompt"),
    ):
        with pytest.raises(InputError, match=message):
            sample_values(index, TARGETS, **settings)


def test_rows_come_in_order_with_what_is_kept(index: InfluenceIndex) -> None:
    found = sample_values(index, TARGETS, target_group="skill")
    rows = list(value_rows(index, found, found.best(30), {5: 0.5}))
    assert [row["value"] for row in rows] == sorted(found.value, reverse=True)
    for row in rows:
        stored = index.store.catalog.samples([row["id"]])[row["id"]]
        assert (row["loss"], row["tokens"], row["sample"]) == (
            *(stored.loss, stored.n_tokens),
            stored.row,
        )
        assert row["exact"] == (0.5 if row["id"] == 5 else None)
        assert row["values"] == {name: own[row["id"]] for name, own in found.groups.items()}


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture()
def targets(tmp_path: Path) -> Path:
    path = tmp_path / "targets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TARGETS))
    return path


def run(path: Path, targets: Path, *arguments: Any) -> Result:
    given = ["score", "--index", path, "--data", targets, *arguments]
    return CliRunner().invoke(main, list(map(str, given)))


def run_well(path: Path, targets: Path, *arguments: Any) -> str:
    result = run(path, targets, *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_score_as_json(path: Path, targets: Path, index: InfluenceIndex) -> None:
    arguments = ("--json", "--exact", "-k", 2, "--group-by", "source")
    result = json.loads(run_well(path, targets, *arguments))
    assert (result["targets"], result["samples"], result["combine"]) == (5, 30, "mean")
    assert [group["name"] for group in result["groups"]] == [
        group.name for group in group_values(index, sample_values(index, TARGETS), "source")
    ]
    listed = result["best"] + result["worst"]
    exact = exact_values(index, TARGETS, [row["id"] for row in listed])
    np.testing.assert_allclose([row["exact"] for row in listed], exact, rtol=1e-5)
    assert result["best"][0]["exact"] >= result["best"][1]["exact"] > result["worst"][0]["exact"]


def test_the_index_scores_as_the_command_does(
    path: Path, targets: Path, index: InfluenceIndex
) -> None:
    told = json.loads(run_well(path, targets, "--json", "-k", 3, "--group-by", "source"))
    found = index.score(TARGETS, k=3, group_by="source")
    assert [row["key"] for row in found.best] == [row["key"] for row in told["best"]]
    assert [row["key"] for row in found.worst] == [row["key"] for row in told["worst"]]
    assert [group.name for group in found.groups] == [group["name"] for group in told["groups"]]
    assert found.summary()["mean"] == pytest.approx(told["mean"])
    rows = list(found.rows())
    assert len(rows) == 30 and rows[:3] == found.best and rows[:-4:-1] == found.worst
    assert found.exact is None and "exact" not in rows[0]


def test_stored_rows_come_in_the_order_of_the_ids_page_by_page(
    index: InfluenceIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_index.store.rows.PAGE", 4)
    ids = np.random.default_rng(0).permutation(30)
    assert [sample.id for sample in index.stored(ids)] == ids.tolist()
    assert [sample.row for sample in index.stored(range(30))] == [s.row for s in index.rows()]
    assert list(index.stored([])) == []


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_all_values_are_written(path: Path, targets: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"values.{suffix}"
    arguments = ("--output", file, "--exact", "-k", 1, "--target-group", "skill")
    run_well(path, targets, *arguments)
    if suffix == "csv":
        with file.open(newline="") as lines:
            rows: list[Any] = list(csv.DictReader(lines))
    else:
        rows = [row for _, row in open_rows(file)]
    written = [float(row["value"]) for row in rows]
    assert len(rows) == 30
    assert written == sorted(written, reverse=True)
    assert [i for i, row in enumerate(rows) if row["exact"] not in ("", None)] == [0, 29]
    if suffix == "jsonl":
        assert rows[0]["sample"]["meta"]["year"] >= 2000
        assert set(rows[0]["values"]) == {"x", "y"}
    else:
        assert {"value.x", "value.y", "sample.source", "self_influence"} <= set(rows[0])
    assert not list(tmp_path.glob("*.tmp"))


def test_score_for_people(path: Path, targets: Path) -> None:
    out = run_well(path, targets, "--group-by", "source", "--target-group", "skill", "-k", 2)
    assert "helped most" in out
    assert "█" in out
    assert "30 training samples, mean over 5 targets" in out.replace("\n", " ")


@pytest.mark.parametrize(("width", "bars"), [(80, False), (100, True), (60, False)])
def test_of_groups_the_figures_are_whole(width: int, bars: bool) -> None:
    groups = [
        GroupValue("a source whose name is long, " * 2, 12345678, 8.12e-05, 1.2e-06, 1.23e05, 1.0),
        GroupValue("数据" * 20, 1234, -7.77e-05, None, -0.155, 0.12),
    ]
    console = Console(width=width)
    with console.capture() as capture:
        console.print(_groups("source", groups, width))
    out = capture.get()
    figures = "12,345,678 +8.12e-05 1.2e-06 +1.23e+05 100% 1,234 -7.77e-05 – -0.155 12%"
    assert set(figures.split()) <= set(out.split())
    assert ("█" in out) == bars
    assert out.count("\n") == 3


def test_short_names_leave_room_for_bars() -> None:
    groups = [GroupValue(name, 500, mean, 1.23e-05, mean * 5, 0.5) for name, mean in GROUPS]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(_groups("source", groups, console.width))
    lengths = [line.count("█") for line in capture.get().splitlines()[1:]]
    assert lengths[0] > 2 * lengths[1] > 0 and lengths[2] == lengths[0]


def test_errors_are_one_line(path: Path, targets: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (
            ("--output", tmp_path / "values.txt"),
            "the name of the file must end in .jsonl, .csv, .parquet",
        ),
        (("--output", tmp_path / "no" / "v.csv"), "cannot be written"),
        (("--group-by", "kind"), "no training row has a field 'kind'"),
        (("--target-group", "kind"), "targets.jsonl:1: no field 'kind'"),
    ):
        result = run(path, targets, *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


# -- files -----------------------------------------------------------------------------------------

MIXED: list[Row] = [
    {"a": 1, "b": "x", "c": [1, 2], "d": None},
    {"a": 2.5, "b": 3, "c": [], "e": {"f": "\ud800"}},
]


def test_parquet_keeps_types_and_falls_back_to_json(tmp_path: Path) -> None:
    assert write_rows(tmp_path / "rows.parquet", MIXED) == 2
    rows = [row for _, row in open_rows(tmp_path / "rows.parquet")]
    assert [row["a"] for row in rows] == [1.0, 2.5]
    assert [row["b"] for row in rows] == ["x", "3"]
    assert [row["c"] for row in rows] == [[1, 2], []]
    assert [row["d"] for row in rows] == [None, None]
    assert [row["e"] for row in rows] == [None, '{"f": "\\ud800"}']


def test_half_a_surrogate_pair_stops_no_file(tmp_path: Path) -> None:
    rows: list[Row] = [{"a": "x\ud800", "\udfff": 1}, {"a": None}]
    for name in ("rows.parquet", "rows.csv"):
        assert write_rows(tmp_path / name, rows) == 2
    found = [row for _, row in open_rows(tmp_path / "rows.parquet")]
    assert found == [{"a": "x?", "?": 1}, {"a": None, "?": None}]


def test_json_lines_are_the_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", MIXED)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == MIXED


def test_a_spreadsheet_runs_no_formula(tmp_path: Path) -> None:
    texts = ["=cmd|' /C calc'!A0", "+1", "-x", "@SUM(1)", "\t=1", "\r=1", "\n=1", "'=1", "＝1"]
    harmless = ["fine", "'quoted'", " =1", ""]
    rows: list[Row] = [{"=a": text, "b": -5, "c": -0.5} for text in texts + harmless]
    for spreadsheet in (True, False):
        write_rows(tmp_path / "rows.csv", rows, **({} if spreadsheet else {"spreadsheet": False}))
        with (tmp_path / "rows.csv").open(newline="") as file:
            (name, *_), *found = csv.reader(file)
        mark = "'" if spreadsheet else ""
        assert name == mark + "=a"
        assert [row[0] for row in found] == [mark + text for text in texts] + harmless
        assert {tuple(row[1:]) for row in found} == {("-5", "-0.5")}


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    def broken() -> Iterator[Row]:
        yield {"a": 1}
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"rows\.jsonl cannot be written: No space left"):
        write_rows(tmp_path / "rows.jsonl", broken())
    assert not list(tmp_path.iterdir())

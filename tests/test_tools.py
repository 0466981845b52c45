"""The tools that make the demo's data: the same from a seed, with sources that are really known."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import click
import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import bench_filters  # noqa: E402
import bench_peers  # noqa: E402
import check_figures  # noqa: E402
from bench_search import WAYS, measure, write  # noqa: E402
from make_docs import docs, installed  # noqa: E402
from make_facts import STYLES, make_study  # noqa: E402
from peers.steps import Step, run  # noqa: E402


@pytest.mark.parametrize("name", STYLES)
def test_facts_are_the_same_from_a_seed_and_every_question_has_sources(name: str) -> None:
    rows, questions = make_study(STYLES[name], 8, 0)
    assert (rows, questions) == make_study(STYLES[name], 8, 0)
    assert rows != make_study(STYLES[name], 8, 1)[0]
    assert len({row["key"] for row in rows}) == len(rows)
    sources = Counter(row["fact"] for row in rows)
    texts = {row["prompt"] + row["response"] for row in rows}
    for question in questions:
        assert sources[question["fact"]] >= 3
        assert question["prompt"] + question["response"] not in texts


def test_docs_are_answers_of_public_names_each_once(tmp_path: Path) -> None:
    def text(first: str, words: int) -> str:
        return f"{' '.join(f'{first}{i}' for i in range(words))}\n\n>>> 1\n1\n\n{'end ' * 200}"

    package = tmp_path / "ours"
    (package / "tests").mkdir(parents=True)
    parts = {"long": 60, "short": 30, "again": 60, "_hidden": 60}
    source = "".join(
        f'def {name}(a, b):\n    """{text("w" if name == "again" else name[0], words)}"""\n\n'
        for name, words in parts.items()
    )
    (package / "__init__.py").write_text(source.replace("again", "more"))
    (package / "wrong.py").write_text("def (")
    (package / "tests" / "test_x.py").write_text(source)
    (package / "kind.py").write_text(
        f'class Kind:\n    def method(self):\n        """{text("l", 70)}"""\n'
        f'    def other(self):\n        """{text("z", 260)}"""\n'
    )
    rows = docs({package: tmp_path})
    assert rows == docs({package: tmp_path}) and docs({package: tmp_path}, 1) == rows[:1]
    names = {row["name"] for row in rows}
    assert len({"ours.long", "ours.kind.Kind.method"} & names) == 1  # they begin alike
    assert names <= {"ours.long", "ours.kind.Kind.method", "ours.short", "ours.more"}
    assert {"ours.short", "ours.more"} <= names
    for row in rows:
        assert 60 <= len(row["answer"].split()) <= 250 and ">>>" not in row["answer"]
    assert {row["question"] for row in rows} >= {"What does more(a, b) of ours do?"}
    roots = installed(["numpy", "no_such_package"])
    assert {root.name for root in roots} > {"numpy"} and all(map(Path.is_dir, roots))


def test_the_shipped_questions_are_about_the_shipped_rows() -> None:
    folder = ROOT / "forvalue_index" / "assets" / "demo"
    rows, questions = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("train.jsonl", "questions.jsonl")
    )
    for question in questions:
        answers = {row["response"] for row in rows if row["fact"] == question["fact"]}
        assert answers == {question["response"]}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 6e6


def test_the_search_bench_measures_every_way(tmp_path: Path) -> None:
    (tmp_path / "segments").mkdir()
    segments = write(tmp_path / "segments", 700, 32, bits=4, rank=8, size=300)
    assert [segment.ntotal for segment in segments] == [300, 300, 100]
    sizes = {"n": 700, "dim": 32, "bits": 4, "rank": 8, "batch": 40, "size": 300, "k": 5}
    rows = measure(tmp_path, **sizes, repeats=2, wanted=WAYS)
    assert [row["way"] for row in rows] == list(WAYS)
    assert all(0 < row["p50"] <= row["p95"] and row["batch_seconds"] > 0 for row in rows)


def test_the_filter_bench_measures_every_condition(tmp_path: Path) -> None:
    found = bench_filters.measure(f"sqlite:///{tmp_path / 'catalog.db'}", 56, tmp_path)
    assert found.keys() == bench_filters.conditions_of(56).keys()
    assert found["größe=3"][0] == found['in "quotes"=3'][0] == 8
    assert found["id in (100 values)"][0] == found["number in (10,000 values)"][0] == 56
    assert all(met > 0 for name, (met, *_) in found.items() if name != "prompt=word1")


class Known:
    """A peer with known figures: 2 s to start, 10 bytes a row and 7 more that asking leaves."""

    def __init__(self, name: str, rate: float, sign: int) -> None:
        self.name, self._rate, self._sign = name, rate, sign

    def build(self, rows: Path, out: Path) -> Step:
        count = len(rows.read_text().splitlines())
        out.mkdir()
        (out / "rows").write_bytes(bytes(100 + 10 * count))
        return Step(wall=2 + count / self._rate, cpu=1 + 2 * count / self._rate, peak=count)

    def scores(self, index: Path, queries: Path) -> tuple[Step, NDArray[np.float32]]:
        (index / "asked").write_bytes(bytes(7))
        alike = np.repeat(np.repeat(np.eye(3, dtype=np.float32), 2, axis=0), 10, axis=1)
        return Step(wall=3, cpu=3, peak=5), self._sign * alike  # [6, 30]


def test_the_peers_are_measured_without_what_they_take_to_start() -> None:
    train = [{"text": f"{i}", "variation": i // 10} for i in range(30)]
    queries = [{"text": f"{i}", "variation": i // 2} for i in range(6)]
    peers = [Known("forvalue", 20, 1), Known("slow", 5, -1)]
    ours, slow = bench_peers.measure(train, queries, lambda _: peers, few=12, repeats=2)
    assert ours["samples_per_second"] == pytest.approx(20)
    assert ours["samples_per_cpu_second"] == pytest.approx(10)
    assert (ours["times"], slow["times"]) == (1, pytest.approx(4))
    assert (ours["bytes_per_sample"], ours["bytes_in_all"]) == (10, 400)
    assert (ours["peak_bytes"], ours["query_peak_bytes"], ours["query_seconds"]) == (30, 5, 3)
    assert (ours["auc"], slow["auc"]) == (1, 0)
    (alone,) = bench_peers.measure(train, queries, lambda _: peers[1:], few=12, repeats=1)
    assert alone["times"] is None
    assert bench_peers.table("task", [slow, alone]).row_count == 2
    with pytest.raises(click.UsageError, match="30 rows"):
        bench_peers.measure(train, queries, lambda _: peers, few=30, repeats=1)


@pytest.mark.parametrize("number", [1, 7, 10, 23, 30, 40, None])
def test_fewer_rows_are_taken_from_all_classes(number: int | None) -> None:
    rows = [{"variation": i // 3, "number": i} for i in range(30)]
    taken = bench_peers.spread(rows, number)
    numbers = [row["number"] for row in taken]
    assert len(taken) == min(number or 30, 30) and numbers == sorted(set(numbers))
    assert len({row["variation"] for row in taken}) == min(len(taken), 10)


def test_a_step_has_its_time_and_a_failed_one_says_what_it_wrote(tmp_path: Path) -> None:
    step = run([sys.executable, "-c", "import time; time.sleep(0.5)"], tmp_path)
    assert step.wall >= 0.5 and step.cpu > 0 and step.peak > 2**20
    with pytest.raises(click.ClickException, match="no such thing"):
        run([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path)


def test_figures_of_a_page_are_held_to_what_its_benchmarks_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_figures, "RESULTS", tmp_path)
    monkeypatch.setattr(check_figures, "MEASUREMENTS", tmp_path / "measurements.md")
    for name, command, printed in [
        ("lds", "forvalue evaluate lds --work runs", "| influence | 0.5437 | 98.2 % |"),
        ("start", "python tools/bench_start.py --runs 3", "query 3.74 s, 1,234.5 MiB"),
    ]:
        result = {"command": command, "printed": printed}
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    (tmp_path / "measurements.md").write_text(
        "# Study\n`forvalue evaluate lds --model\nM`: .544, .98 and 0.54, not .543 or 3.74\n\n"
        "```\n# 9.99\n```\nthen .545\n\n"
        "# Speed\n`python tools/bench_start.py`, torch `2.13`: 3.7 s, 1,234.5 MiB\n"
        "# Words\nnothing was measured: .888\n"
    )
    found = check_figures.unprinted(tmp_path / "measurements.md")
    assert [line.split(": ")[:2] for line in found] == [
        ["measurements.md#study", ".543"],
        ["measurements.md#study", "3.74"],
        ["measurements.md#study", ".545"],
    ]
    (tmp_path / "README.md").write_text(
        "# Measured\n| [lds](docs/measurements.md#study) | .544, .111 |\n| a word | .222 |\n"
    )
    monkeypatch.setattr(sys, "argv", ["check_figures.py", str(tmp_path / "README.md")])
    with pytest.raises(SystemExit, match="1"):
        check_figures.main()
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("README.md#measured: .111: ")

"""The tools that make the demo's data: the same from a seed, with sources that are really known."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from bench_search import measure, write  # noqa: E402
from make_facts import STYLES, make_study  # noqa: E402


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
    sizes = [segment.ntotal for segment in write(tmp_path / "segments", 700, 8, 300)]
    assert sizes == [300, 300, 100]
    rows = measure(tmp_path, n=700, dim=32, batch=40, size=300, k=5, repeats=2)
    assert {row["way"] for row in rows} >= {"forvalue", "faiss fp16", "faiss.knn", "numpy", "torch"}
    assert all(0 < row["p50"] <= row["p95"] and row["batch_seconds"] > 0 for row in rows)

"""Compaction: nothing is left of what was removed, and readers go on meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.faults import Killed, die_at
from helpers.indexes import SETTINGS, bytes_in, changed, every

from forvalue_index import InfluenceIndex
from forvalue_index.catalog.catalog import Catalog
from forvalue_index.errors import CorruptIndexError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row
from forvalue_index.search.ann_build import make_derived
from forvalue_index.store import compact
from forvalue_index.store.compact import plan
from forvalue_index.vectors.codes import Codes

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_compaction_leaves_nothing_of_what_was_removed(
    anywhere: InfluenceIndex, rows: list[Row], database: str | None
) -> None:
    secret = [
        {"id": f"s{i}", "prompt": f"Zqx{i} marker", "response": f"wvu{i} {'pad ' * 5}", "n": 99}
        for i in range(12)
    ]
    anywhere.add(secret)
    ids = [anywhere.get(row["id"]).id for row in secret]
    vectors = anywhere.flat.data(ids)
    make_derived(anywhere.directory / "derived", anywhere.flat, "Flat")
    before = every(anywhere, rows[0])
    texts = [row["prompt"].encode() for row in secret]
    assert all(vector.tobytes() in bytes_in(anywhere.directory) for vector in vectors)
    anywhere.add(changed(secret[0]), update=True)
    anywhere.remove(where=["n=99"])
    report = anywhere.compact()
    assert (report.removed, report.segments) == (13, 1)
    left = bytes_in(anywhere.directory)
    assert not any(vector.tobytes() in left for vector in vectors)
    assert not any(vector.astype(np.float32).tobytes() in left for vector in vectors)
    if database is None:
        assert rows[0]["prompt"].encode() in left
        assert not any(text in left for text in texts)
    assert anywhere.verify() == []
    assert every(anywhere, rows[0]) == [hit for hit in before if hit[1]["n"] != 99]
    assert anywhere.info()["removed"] == 0
    with pytest.raises(CorruptIndexError, match="no row"):
        anywhere.store.catalog.samples(ids)
    # Ids are not given out again.
    anywhere.add(secret[:1])
    assert anywhere.get("s0").id > max(ids)


def test_all_can_be_removed_and_the_index_lives_on(
    anywhere: InfluenceIndex, rows: list[Row]
) -> None:
    anywhere.remove(row["id"] for row in rows)
    assert anywhere.query(rows[0]) == []
    assert anywhere.query(rows[0], metric="cosine") == []
    assert anywhere.compact().segments == 0
    assert list((anywhere.directory / "segments").iterdir()) == []
    assert anywhere.verify() == []
    anywhere.add(rows[:3])
    assert len(anywhere.query(rows[0], k=9)) == 3


def test_scores_are_the_same_to_the_bit_after_a_compaction(
    index: InfluenceIndex, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "TARGET", 12 * index.flat.codes.size)
    index.remove(["row-1", "row-9", "row-29"])
    before = every(index, rows[0])
    report = index.compact()
    assert (report.removed, report.rewritten, report.segments) == (3, 3, 3)
    assert every(index, rows[0]) == before
    unchanged = {path.stat().st_ino for path in (index.directory / "segments").iterdir()}
    assert index.compact().rewritten == 0
    assert {path.stat().st_ino for path in (index.directory / "segments").iterdir()} == unchanged


@pytest.mark.parametrize(
    ("segments", "groups"),
    [
        ({}, []),
        ({"a": (10, 10)}, []),
        ({"a": (2, 2)}, []),
        ({"a": (2, 1)}, [["a"]]),
        ({"a": (2, 2), "b": (10, 10), "c": (3, 3)}, [["a", "c"]]),
        ({"a": (10, 9), "b": (4, 4), "c": (4, 4)}, [["a"], ["b", "c"]]),
        ({"a": (10, 0)}, [["a"]]),
        ({"a": (4, 4), "b": (4, 4), "c": (4, 4), "d": (3, 3)}, [["a", "b"], ["c", "d"]]),
    ],
)
def test_the_plan_of_a_compaction(
    segments: dict[str, tuple[int, int]], groups: list[list[str]]
) -> None:
    assert plan(segments, 10) == groups


def test_readers_go_on_during_a_compaction(
    index: InfluenceIndex, rows: list[Row], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step: one that has it open, and one that opens it then."""
    long = InfluenceIndex.open(index.directory, model=lm)
    index.remove(["row-1", "row-12"])
    expected, steps = every(index, rows[0]), 0

    def step(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            for moment in ("before", "after"):
                result = original(*arguments, **options) if moment == "after" else None
                steps += 1
                assert every(long, rows[0]) == expected
                with InfluenceIndex.open(index.directory, model=lm) as fresh:
                    assert every(fresh, rows[0]) == expected
            return result

        return wrapped

    monkeypatch.setattr(compact, "write_codes", step(compact.write_codes))
    monkeypatch.setattr(Catalog, "replace_segments", step(Catalog.replace_segments))
    monkeypatch.setattr(Catalog, "vacuum", step(Catalog.vacuum))
    index.compact()
    monkeypatch.undo()
    assert steps == 6
    assert every(long, rows[0]) == expected
    long.close()


def test_a_reader_between_snapshot_and_files_looks_again(
    index: InfluenceIndex, rows: list[Row], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.remove(["row-1"])
    expected = every(index, rows[0])
    original, compactions = Catalog.snapshot, 0

    def late(self: Catalog) -> Any:
        nonlocal compactions
        snapshot = original(self)
        compactions += 1
        if compactions == 1:
            index.compact()
        return snapshot

    with InfluenceIndex.open(index.directory, model=lm) as reader:
        monkeypatch.setattr(Catalog, "snapshot", late)
        assert every(reader, rows[0]) == expected
    assert compactions > 1


def test_rows_that_go_while_a_query_runs(
    index: InfluenceIndex, rows: list[Row], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Catalog.samples, 0

    def late(self: Catalog, ids: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            with InfluenceIndex.open(index.directory, model=lm) as writer:
                writer.remove(["row-1"])
                writer.compact()
        return original(self, ids)

    monkeypatch.setattr(Catalog, "samples", late)
    assert "row-1" not in {key for key, _, _ in every(index, rows[0])}
    assert calls == 3  # of the query, of the words of the new segment, of the query again


@pytest.mark.parametrize("target", ["os.fsync", "os.replace", "os.unlink", "commit"])
@pytest.mark.parametrize("after", [False, True])
def test_a_compaction_that_dies_anywhere_is_ended_by_the_next(
    tmp_path: Path,
    rows: list[Row],
    lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    after: bool,
) -> None:
    monkeypatch.setattr(compact, "TARGET", 10 * Codes(504, 4).size)
    name = "sqlalchemy.engine.default.DefaultDialect.do_commit" if target == "commit" else target
    with InfluenceIndex.build(tmp_path / "0", rows, lm, **SETTINGS)[0] as index:
        index.remove(["row-1", "row-29"])
        expected = every(index, rows[0])
    deaths = 0
    for number in range(1, 100):
        path = shutil.copytree(tmp_path / "0", tmp_path / str(number))
        with InfluenceIndex.open(path, model=lm) as index:
            with monkeypatch.context() as patch:
                die_at(patch, name, number, after)
                try:
                    index.compact()
                except Killed:
                    deaths += 1
                else:
                    break
            assert every(index, rows[0]) == expected
            assert index.verify() == []
            assert index.compact().segments == 4
            assert every(index, rows[0]) == expected
            assert index.verify() == []
            assert rows[1]["prompt"].encode() not in bytes_in(path)
    assert deaths >= 2

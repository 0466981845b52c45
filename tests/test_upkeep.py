"""Updating, removing, listing and exporting: what is gone is gone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.indexes import SETTINGS, changed, every

from forvalue_index import InfluenceIndex
from forvalue_index.errors import InputError, KeyConflictError, LockedError, StorageError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_an_update_takes_the_place_of_the_row(anywhere: InfluenceIndex, rows: list[Row]) -> None:
    index, new = anywhere, [changed(rows[3]), changed(rows[20]), rows[7]]
    with pytest.raises(KeyConflictError, match=r"'row-3' is .*other content: give --update"):
        index.add(new)
    report = index.add(new, update=True)
    assert (report.added, report.updated, report.skipped, report.samples) == (2, 2, 1, 30)
    found = {key: sample for key, sample, _ in every(index, rows[0])}
    assert found == {row["id"]: row for row in [*rows, *new]}
    assert index.info()["removed"] == 2
    again = index.add(new, update=True)
    assert (again.added, again.updated, again.skipped) == (0, 0, 3)
    fresh = index.vectors(index.samples(new[0]))[0]
    stored = index.flat.vectors([index.get("row-3").id])[0]
    assert stored @ fresh > 0.98 * np.linalg.norm(stored) * np.linalg.norm(fresh)


def test_what_is_removed_is_in_no_answer_of_any_reader(
    anywhere: InfluenceIndex, rows: list[Row], lm: LanguageModel
) -> None:
    with InfluenceIndex.open(anywhere.directory, model=lm) as reader:
        best = reader.query(rows[0], k=1)[0].key
        assert anywhere.remove([best, "nobody", best]) == 1
        assert anywhere.remove([best]) == 0
        for metric in ("dot", "cosine", "per-token"):
            hits = reader.query(rows[0], k=1000, metric=metric)
            assert sorted(hit.key for hit in hits) == sorted(
                row["id"] for row in rows if row["id"] != best
            )
        assert anywhere.remove(where=["n>=20"]) == 10 - (best in {r["id"] for r in rows[20:]})
        assert max(hit.sample["n"] for hit in reader.query(rows[0], k=1000)) == 19
        ids, _ = reader.scores(reader.samples(rows[0]))
        assert len(ids) == len(reader) == len(list(reader.rows()))
    with pytest.raises(InputError, match="remove by one or the other"):
        anywhere.remove(["a"], where=["n=1"])
    assert anywhere.remove([]) == 0
    assert anywhere.add(rows).added == 30 - len(ids)


def test_rows_by_page_and_condition(anywhere: InfluenceIndex, rows: list[Row]) -> None:
    anywhere.remove(["row-2"])
    first = list(anywhere.rows(limit=4))
    assert [sample.key for sample in first] == ["row-0", "row-1", "row-3", "row-4"]
    rest = list(anywhere.rows(after=first[-1].id))
    assert [sample.row for sample in rest] == rows[5:]
    found = anywhere.rows(["n>=10", "n<20"], after=11, limit=3)
    assert [sample.row["n"] for sample in found] == [12, 13, 14]
    assert anywhere.get("row-9").row == rows[9]
    with pytest.raises(InputError, match=r"no sample .* has key 'row-2': see `forvalue list`"):
        anywhere.get("row-2")


@pytest.mark.parametrize("start", ["row-1", "row-1…"])
def test_the_beginning_of_a_key_names_the_whole(anywhere: InfluenceIndex, start: str) -> None:
    anywhere.remove(where="n!=17")
    with pytest.raises(InputError, match=f"has key '{start}': the one that begins so is row-17$"):
        anywhere.get(start)
    with pytest.raises(InputError, match="has key 'row-%': see `forvalue list`"):
        anywhere.get("row-%")


def test_an_export_holds_influences(
    anywhere: InfluenceIndex, rows: list[Row], tmp_path: Path
) -> None:
    anywhere.remove(["row-5"])
    shape = anywhere.export(tmp_path / "v.npy", tmp_path / "r.jsonl", where=["n<10"])
    vectors = np.load(tmp_path / "v.npy")
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert shape == vectors.shape == (9, 504)
    assert [line["row"] for line in lines] == [row for row in rows[:10] if row["n"] != 5]
    ids, scores = anywhere.scores(anywhere.samples(rows[2]))
    own = scores[0][np.isin(ids, [line["id"] for line in lines])]
    np.testing.assert_allclose(vectors @ vectors[2], own, rtol=1e-2, atol=3e-2 * own.max())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "r.jsonl", "v.npy"]
    with pytest.raises(StorageError, match="cannot be written"):
        anywhere.export(tmp_path / "no" / "v.npy", tmp_path / "r2.jsonl")


def test_a_second_writer_is_told_who_the_first_is(
    index: InfluenceIndex, rows: list[Row], lm: LanguageModel
) -> None:
    with index.store.writer.lock(), InfluenceIndex.open(index.directory, model=lm) as second:
        for write in (
            lambda: second.add(changed(rows[0]), update=True),
            lambda: second.remove(["row-1"]),
            second.compact,
            second.repair,
        ):
            with pytest.raises(LockedError, match=f"process {os.getpid()} on"):
                write()
        assert len(second.query(rows[0], k=100)) == 30
        with pytest.raises(LockedError):  # a build finds it, and does not delete it
            InfluenceIndex.build(
                index.directory,
                [*rows, {"id": "x", "prompt": "a", "response": "b"}],
                lm,
                **SETTINGS,
            )
    assert len(index) == 30

"""Rows that cannot be used: refused, or passed over and listed."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli import run
from helpers.faults import no_file_over
from helpers.indexes import KEYED, SMALL, exported, rejects_of

from forvalue_index import InfluenceIndex, VectorConfig
from forvalue_index.data.formatter import Formatter
from forvalue_index.data.ingest import Rejects
from forvalue_index.errors import InputError, KeyConflictError, RowError, StorageError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row, Sample


def bad_lines(rows: list[Row]) -> tuple[str, list[tuple[int, str]]]:
    """Lines among which some are bad, in every way that is found before the model is there."""
    lines = [json.dumps(row) for row in rows]
    lines.insert(3, "{x}")
    lines.insert(7, json.dumps({"id": "no-response", "prompt": "a"}))
    lines.insert(9, json.dumps({"id": rows[20]["id"], "prompt": "a", "response": ""}))
    lines.append(json.dumps(rows[2] | {"response": "again"}))
    reasons = [
        (4, "not JSON"),
        (8, "no field 'response'"),
        (10, "field 'response' is empty"),
        (34, "key 'row-2' already occurs at"),
    ]
    return "\n".join(lines), reasons


def test_skipped_rows_are_listed_and_the_rest_is_as_if_they_had_never_been(
    tmp_path: Path, lm: LanguageModel, rows: list[Row]
) -> None:
    path = tmp_path / "bad.jsonl"
    lines, reasons = bad_lines(rows)
    path.write_text(lines)
    with pytest.raises(RowError, match=r"bad\.jsonl:4: not JSON"):
        InfluenceIndex.build(tmp_path / "a", path, lm, format=KEYED, vector=SMALL)
    assert not (tmp_path / "a").exists()
    settings: dict[str, Any] = {"format": KEYED, "vector": SMALL}
    index, report = InfluenceIndex.build(tmp_path / "a", path, lm, on_error="skip", **settings)
    clean, expected = InfluenceIndex.build(tmp_path / "b", rows, lm, **settings)
    with index, clean:
        assert report == replace(expected, rejected=4)
        notes = rejects_of(tmp_path / "a")
        assert [(note["file"], note["line"]) for note in notes] == [
            (str(path), line) for line, _ in reasons
        ]
        assert all(
            note["reason"].startswith(r) for note, (_, r) in zip(notes, reasons, strict=True)
        )
        assert [note["row"] and note["row"]["id"] for note in notes] == [
            *(None, "no-response", "row-20", "row-2")
        ]
        found, wanted = exported(index, tmp_path), exported(clean, tmp_path)
        assert found[0] == wanted[0]
        assert np.array_equal(found[1], wanted[1])
        assert index.verify() == []
        again = index.add(path, on_error="skip")
        assert (again.added, again.skipped, again.rejected) == (0, 30, 4)
        assert rejects_of(tmp_path / "a") == notes
        assert index.add(rows, on_error="skip").rejected == 0
        assert not (tmp_path / "a" / "rejects.jsonl").exists()


class Fussy(Formatter):
    """Refuses some rows only when it comes to tokens, as a chat template or an image may."""

    def samples(self, rows: Any) -> list[Sample]:
        for source, row in rows:
            if "bad" in row:
                raise RowError(source, "no such picture")
        return super().samples(rows)


@pytest.mark.parametrize("fit_samples", [5, 4096])
def test_rows_that_fail_later_are_skipped_too(
    fit_samples: int,
    tmp_path: Path,
    lm: LanguageModel,
    rows: list[Row],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("forvalue_index.data.labels.Formatter", Fussy)
    monkeypatch.setattr("forvalue_index.pipeline.add.CHUNK", 4)
    vector = VectorConfig(dim=32, sketch_dim=512, fit_samples=fit_samples)
    settings: dict[str, Any] = {"format": KEYED, "vector": vector}
    mixed = [x for i, row in enumerate(rows) for x in (row, row | {"id": f"bad-{i}", "bad": True})]
    with pytest.raises(RowError, match="no such picture"):
        InfluenceIndex.build(tmp_path / "a", mixed, lm, **settings)
    calls: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int, tokens: int) -> None:
        calls.append((stage, done, total))

    index, report = InfluenceIndex.build(
        tmp_path / "a", mixed, lm, on_error="skip", progress=progress, **settings
    )
    clean, _ = InfluenceIndex.build(tmp_path / "b", rows, lm, **settings)
    with index, clean:
        assert (report.added, report.rejected, report.samples) == (30, 30, 30)
        assert calls[-1] == ("encoding", 30, 30)
        found, wanted = exported(index, tmp_path), exported(clean, tmp_path)
        assert [row["key"] for row in found[0]] == [row["key"] for row in wanted[0]]
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-3, atol=1e-4)
        notes = rejects_of(tmp_path / "a")
        assert sorted(note["line"] for note in notes) == list(range(2, 61, 2))
        assert {note["reason"] for note in notes} == {"no such picture"}
        again = index.add(mixed, on_error="skip")
        assert (again.added, again.skipped, again.rejected) == (0, 30, 30)
        changed = [row | {"n": -1} | ({"bad": 1} if i == 0 else {}) for i, row in enumerate(rows)]
        updated = index.add(changed, update=True, on_error="skip")
        assert (updated.added, updated.updated, updated.rejected) == (29, 29, 1)
        assert index.get("row-0").row == rows[0]  # nothing took its place
        assert len(index) == 30


def test_nothing_is_made_of_rows_that_are_all_bad(
    tmp_path: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"none of the 2 rows can be used; the first: row 1: f"):
        InfluenceIndex.build(tmp_path / "a", [{"text": ""}, {"a": 1}], lm, on_error="skip")
    monkeypatch.setattr("forvalue_index.data.labels.Formatter", Fussy)
    rows = [{"prompt": "a", "response": "b", "bad": 1}]
    with pytest.raises(InputError, match=r"none of the rows can be used; the first: row 1: no"):
        InfluenceIndex.build(tmp_path / "a", rows, lm, on_error="skip")
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="on_error 'ignore' is not one of stop, skip"):
        InfluenceIndex.build(tmp_path / "a", rows, lm, on_error="ignore")


def test_a_row_that_json_cannot_hold_is_noted_without_it(
    tmp_path: Path, lm: LanguageModel, rows: list[Row]
) -> None:
    data = [*rows, rows[0] | {"n": float("inf")}, rows[0] | {"n": object()}]
    index, report = InfluenceIndex.build(tmp_path / "a", data, lm, vector=SMALL, on_error="skip")
    index.close()
    assert report.rejected == 2
    for note in rejects_of(tmp_path / "a"):
        assert note["file"] is None and "row" not in note
        assert note["reason"].startswith("cannot be stored as JSON")


def test_a_key_with_other_content_in_the_index_is_no_bad_row(
    tmp_path: Path, lm: LanguageModel, rows: list[Row]
) -> None:
    index, _ = InfluenceIndex.build(tmp_path / "a", rows, lm, format=KEYED, vector=SMALL)
    with index, pytest.raises(KeyConflictError, match="give --update"):
        index.add([rows[0] | {"n": -1}], on_error="skip")


def test_the_command_line_skips_and_counts(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(bad_lines(rows)[0])
    index = ("--index", tmp_path / "i")
    made = ("--model", model_dir, "--dim", 64, "--sketch-dim", 512, "--key-field", "id")
    result = run("build", path, *index, *made)
    assert result.exit_code == 1 and "bad.jsonl:4: not JSON" in result.stderr
    result = run("build", path, *index, *made, "--on-error", "skip")
    assert result.exit_code == 0, result.stderr
    said = result.stderr.replace("\n", "")
    assert (
        "30 samples added" in said
        and f"4 rejected (see {tmp_path / 'i' / 'rejects.jsonl'})" in said
    )
    assert "4 rejected" in run("add", path, *index, "--on-error", "skip").stderr


@pytest.mark.parametrize("size", [10, 100_000])  # what is written at the end, and at once
def test_notes_that_find_no_room_are_an_error_that_says_what_to_do(
    size: int, tmp_path: Path
) -> None:
    reason = (
        r"the list of unusable rows cannot be stored in /.* \(File too large\): set TMPDIR to a"
    )
    with (
        no_file_over(20),
        pytest.raises(StorageError, match=reason),
        Rejects("skip") as rejects,
    ):
        rejects.add(RowError("row 1", "no"), {"text": "x" * size})
        rejects.save(tmp_path / "rejects.jsonl")
    assert not list(tmp_path.iterdir())


def test_no_folder_for_notes_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match=r"gone \(No such file or directory\): set TMPDIR"):
        Rejects("skip")

"""Rows of which the model makes nothing, or whose vectors cannot be stored: skipped, or named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.indexes import KEYED, SMALL, exported, rejects_of
from helpers.models import tiny_model, tiny_tokenizer

from forvalue_index import InfluenceIndex, VectorConfig
from forvalue_index.config import FormatConfig
from forvalue_index.data.formatter import Formatter
from forvalue_index.errors import InputError, ModelError, RowError
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.fit import fit_vectoriser
from forvalue_index.model.language_model import LanguageModel, wrap_model
from forvalue_index.records import Row

BAD = "{"
"""A letter for which the model gives NaN, and that no other row has."""


@pytest.fixture
def lm() -> LanguageModel:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with torch.no_grad():
        letter = tokenizer.convert_tokens_to_ids(BAD)
        model.model.embed_tokens.weight[letter] = float("nan")
    return wrap_model(model, tokenizer)


def written(path: Path, rows: list[Row], bad: list[int]) -> Path:
    """The rows, with one more that is bad behind each of those at `bad`."""
    lines = []
    for i, row in enumerate(rows):
        lines.append(row)
        if i in bad:
            lines.append(row | {"id": f"bad-{i}", "prompt": row["prompt"] + BAD})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("fit_samples", [5, 4096])
@pytest.mark.parametrize("devices", [None, "cpu,cpu"])
@pytest.mark.usefixtures("small_chunks")
def test_rows_that_give_nan_are_as_if_they_had_never_been(
    fit_samples: int, devices: str | None, tmp_path: Path, rows: list[Row], lm: LanguageModel
) -> None:
    bad = list(range(0, 30, 3))
    path = written(tmp_path / "a.jsonl", rows, bad)
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    model: Any = lm if devices is None else str(tmp_path / "model")
    settings: dict[str, Any] = {
        "format": KEYED,
        "vector": VectorConfig(dim=8, sketch_dim=512, fit_samples=fit_samples),
    }
    index, report = InfluenceIndex.build(
        tmp_path / "a", path, model, on_error="skip", devices=devices, **settings
    )
    clean, _ = InfluenceIndex.build(tmp_path / "b", rows, lm, **settings)
    with index, clean:
        assert (report.added, report.rejected, len(index)) == (30, len(bad), 30)
        found, wanted = exported(index, tmp_path), exported(clean, tmp_path)
        assert [row["key"] for row in found[0]] == [row["key"] for row in wanted[0]]
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-3, atol=1e-3)
        notes = rejects_of(tmp_path / "a")
        lines = path.read_text().splitlines()
        assert sorted(note["line"] for note in notes) == [
            i for i, line in enumerate(lines, 1) if BAD in json.loads(line)["prompt"]
        ]
        assert all(note["file"] == str(path) for note in notes)
        assert all("the model gives NaN or infinity" in note["reason"] for note in notes)
        again = index.add(path, on_error="skip")
        assert (again.added, again.skipped, again.rejected) == (0, 30, len(bad))
        assert index.verify() == []


@pytest.mark.usefixtures("small_chunks")
def test_a_row_that_gives_nan_is_named_and_the_chunks_before_it_stay(
    tmp_path: Path, rows: list[Row], lm: LanguageModel
) -> None:
    with InfluenceIndex.build(tmp_path / "i", rows[:2], lm, format=KEYED, vector=SMALL)[0] as index:
        path = written(tmp_path / "a.jsonl", rows, [20])
        with pytest.raises(ModelError, match=r"a\.jsonl:22: the model gives NaN") as error:
            index.add(path)
        assert isinstance(error.value, RowError)
        assert (len(index), index.verify()) == (2 + 16, [])


def test_the_statistics_and_the_projection_learn_nothing_of_nan(
    rows: list[Row], lm: LanguageModel
) -> None:
    formatter = Formatter(lm.tokenizer, FormatConfig(), 64)
    mixed = rows + [row | {"prompt": BAD} for row in rows[:3]]
    samples = formatter.samples([(f"f:{i}", row) for i, row in enumerate(mixed)])
    refused: dict[int, RowError] = {}
    (found,), _ = Encoder(lm).read(samples, refused)
    (wanted,), _ = Encoder(lm).read(samples[:30])
    assert sorted(refused) == [30, 31, 32]
    assert found.n_tokens == wanted.n_tokens
    torch.testing.assert_close(found.hidden_moment, wanted.hidden_moment, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.error_square, wanted.error_square, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match="f:30: the model gives NaN"):
        fit_vectoriser(lm, samples, SMALL, lambda _: None)


def loud(row: Row) -> Row:
    return row | {"id": f"loud-{row['id']}", "prompt": row["prompt"] + "}"}


def test_a_vector_that_does_not_fit_into_its_type_is_skipped_or_named(
    tmp_path: Path, rows: list[Row]
) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    lm = wrap_model(model, tokenizer)
    halves = replace(SMALL, bits=16)
    index, _ = InfluenceIndex.build(tmp_path / "i", rows[:20], lm, format=KEYED, vector=halves)
    with index:
        vectors = index.session.vectoriser
        vectors.scale = 2.0**17 * vectors.scale  # beyond fp16
        before = exported(index, tmp_path)
        with pytest.raises(RowError, match=r"row 21: its vector does not fit into fp16 \(the lar"):
            index.add(rows)
        report = index.add(rows, on_error="skip")
        assert (report.added, report.rejected, report.skipped) == (0, 10, 20)
        assert {note["line"] for note in rejects_of(tmp_path / "i")} == set(range(21, 31))
        after = exported(index, tmp_path)
        assert before[0] == after[0] and np.array_equal(before[1], after[1])


def test_a_model_that_gives_nothing_but_nan(
    tmp_path: Path, rows: list[Row], lm: LanguageModel
) -> None:
    bad = [row | {"prompt": BAD} for row in rows]
    with pytest.raises(InputError, match=r"none of the rows can be used; the first: row .*NaN"):
        InfluenceIndex.build(tmp_path / "i", bad, lm, on_error="skip", format=KEYED)
    assert not (tmp_path / "i").exists()


def test_rows_that_give_nan_are_no_queries_of_the_fidelity(
    tmp_path: Path, lm: LanguageModel
) -> None:
    rows = [{"id": str(i), "prompt": f"a {i}", "response": f" b {i}"} for i in range(120)]
    path = written(tmp_path / "a.jsonl", rows, list(range(0, 120, 2)))
    settings: dict[str, Any] = {"format": KEYED, "vector": SMALL}
    index, report = InfluenceIndex.build(tmp_path / "a", path, lm, on_error="skip", **settings)
    with index:
        assert (report.added, report.rejected) == (120, 60)
        assert report.fidelity is not None
    with pytest.raises(RowError, match="NaN"):
        InfluenceIndex.build(tmp_path / "b", path, lm, **settings)

"""Rows that hold their tokens: what is scored, packed rows, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from click.testing import CliRunner
from helpers.models import tiny_tokenizer

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig, preview
from forvalue_index.cli import main
from forvalue_index.config import ModelConfig
from forvalue_index.data.field_guess import guess
from forvalue_index.data.sources import open_rows
from forvalue_index.data.token_rows import given_tokens, parted
from forvalue_index.errors import InputError, RowError

SMALL = VectorConfig(dim=32, sketch_dim=256, bits=16)
TOKENS = FormatConfig(tokens_field="input_ids")


def scored(row: dict[str, Any]) -> list[bool]:
    return given_tokens(row, "row 1", "input_ids").scored.tolist()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"labels": [-100, -100, 7, 8]}, [0, 0, 1, 1]),
        ({"completion_mask": [0, 1, 1, 1]}, [0, 1, 1, 1]),
        ({"completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 0, 1, 0]}, [0, 0, 1, 0]),
        ({"labels": "[-100, 6, 7, -100]"}, [0, 1, 1, 0]),
        ({"labels": None, "attention_mask": [1, 1, 1, 1]}, [1, 1, 1, 1]),
    ],
)
def test_labels_and_masks_say_what_is_scored(fields: dict[str, Any], expected: list[int]) -> None:
    assert scored({"input_ids": [5, 6, 7, 8]} | fields) == [bool(value) for value in expected]


def test_padding_is_no_part_of_a_sample() -> None:
    row = {
        "input_ids": [0, 0, 5, 6, 7, 0],
        "labels": [-100, -100, -100, 6, 7, -100],
        "attention_mask": [0, 0, 1, 1, 1, 0],
    }
    tokens = given_tokens(row, "row 1", "input_ids")
    assert tokens.ids.tolist() == [5, 6, 7]
    assert tokens.scored.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"labels": [6, 7, 8, 9]}, "label 6 at token 0, which is 5"),
        ({"labels": [5, 6]}, "has 2 numbers, but there are 4 tokens"),
        ({"completion_mask": [0, 1, 2, 1]}, "not a mask of 0 and 1"),
        ({"attention_mask": [1, 0, 1, 1]}, "leaves out tokens between others"),
        ({"input_ids": [5, -1]}, "-1, which is no token id"),
        ({"input_ids": []}, "is empty"),
        ({"input_ids": "a b"}, "is text, not a list of numbers"),
        ({"input_ids": [1.5]}, "not a list of whole numbers"),
        ({"input_ids": [10**30]}, "no token id"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words):
        scored({"input_ids": [5, 6, 7, 8]} | fields)


PACKED = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, 9], "kind": "a"}
PARTS = [
    ("row 1:1", {"input_ids": [5, 6], "labels": [-100, 6], "kind": "a"}),
    ("row 1:2", {"input_ids": [7, 8, 9], "labels": [-100, 8, 9], "kind": "a"}),
]


@pytest.mark.parametrize(
    "packing",
    [{"seq_lengths": [2, 3]}, {"position_ids": [0, 1, 0, 1, 2]}],
    ids=["seq_lengths", "position_ids"],
)
def test_a_packed_row_is_split_into_its_samples(packing: dict[str, Any]) -> None:
    found = list(parted(open_rows([PACKED | packing]), TOKENS))
    assert found == PARTS


def test_a_mask_that_numbers_the_samples_splits_them() -> None:
    """As axolotl packs: 1 for the first sample, 2 for the second, 0 for padding."""
    ids, labels = [*PACKED["input_ids"], 0], [*PACKED["labels"], -100]
    row = {"input_ids": ids, "labels": labels, "attention_mask": [1, 1, 2, 2, 2, 0]}
    found = [value for _, value in parted(open_rows([row]), TOKENS)]
    assert [value["input_ids"] for value in found] == [[5, 6], [7, 8, 9]]


def test_a_sample_of_a_packed_row_without_labels_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    row = PACKED | {"labels": [5, -100, -100, 8, 9], "seq_lengths": [2, 3]}
    rows = parted(open_rows([row]), TOKENS)
    assert [place for place, _ in rows] == [place for place, _ in rows] == ["row 1:2"]
    assert len(caplog.records) == 1
    assert "1 samples of packed rows are left out" in caplog.text


@pytest.mark.parametrize(
    ("packing", "words"),
    [
        ({"seq_lengths": [2, 2]}, "it is packed, but its seq_lengths sum to 4"),
        ({"position_ids": [3, 4, 0, 1, 2]}, "packed in a way that is not known"),
        ({"position_ids": [0, 2, 0, 1, 2]}, "packed in a way that is not known"),
    ],
)
def test_a_packing_that_is_not_understood_is_refused(packing: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words):
        list(parted(open_rows([PACKED | packing]), TOKENS))


def test_a_packed_row_has_no_key_for_its_samples() -> None:
    row = PACKED | {"seq_lengths": [2, 3], "id": "one"}
    with pytest.raises(RowError, match="leave out --key-field"):
        list(parted(open_rows([row]), FormatConfig(tokens_field="input_ids", key_field="id")))


def test_tokens_are_guessed_beside_their_text() -> None:
    settings, words = guess({"text": "ab", "input_ids": [1, 2], "completion_mask": [0, 1]})
    assert settings == {"text_field": "text", "tokens_field": "input_ids"}
    assert words == "tokens from 'input_ids', scored by 'completion_mask'"
    assert guess({"input_ids": [1, 2]}) == (
        {"tokens_field": "input_ids"},
        "tokens from 'input_ids', all of them scored",
    )


def tokenised(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tokens that the rows have as prompt and response, and their labels."""
    tokenizer, result = tiny_tokenizer(), []
    for row in rows:
        prompt, response = (tokenizer(row[name])["input_ids"] for name in ("prompt", "response"))
        labels = [-100] * len(prompt) + response
        result.append(row | {"input_ids": prompt + response, "labels": labels})
    return result


def test_an_index_of_tokens_is_that_of_their_texts(
    tmp_path: Path, model_dir: Path, rows: list[dict[str, Any]]
) -> None:
    """Same vectors; and queries are texts, which are tokenised as ever."""
    named = FormatConfig(key_field="id", eos=False)
    plain, _ = InfluenceIndex.build(
        tmp_path / "plain", rows, str(model_dir), format=named, vector=SMALL
    )
    data = datasets.Dataset.from_list(tokenised(rows))
    given, report = InfluenceIndex.build(
        tmp_path / "given",
        data,
        str(model_dir),
        format=FormatConfig(key_field="id", tokens_field="input_ids", eos=False),
        vector=SMALL,
    )
    with plain, given:
        assert report.added == len(rows)
        ids = range(len(rows))
        for a, b in zip(plain.training_samples(ids), given.training_samples(ids), strict=True):
            np.testing.assert_array_equal(a.input_ids, b.input_ids)
            np.testing.assert_array_equal(a.scored, b.scored)
        query = {"prompt": "who", "response": " me"}
        expected = [(hit.key, hit.score) for hit in plain.query(query, 5, exact=True)]
        found = [(hit.key, hit.score) for hit in given.query(query, 5, exact=True)]
        assert [key for key, _ in found] == [key for key, _ in expected]
        np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], rtol=1e-3)
        own = {"input_ids": tokenised([query])[0]["input_ids"], "labels": [-100] * 3 + [95, 80, 72]}
        assert own["labels"][3:] == own["input_ids"][3:]  # or the query below asks something else
        assert given.query(own, 5, exact=True)[0].score == pytest.approx(found[0][1], rel=1e-3)
        assert given.respond("who").scored.any()


def test_files_of_tokens_and_packed_ones_give_the_same_samples(
    tmp_path: Path, model_dir: Path, rows: list[dict[str, Any]]
) -> None:
    each = [{name: row[name] for name in ("input_ids", "labels")} for row in tokenised(rows)]
    packed = [
        {
            "input_ids": [id for row in part for id in row["input_ids"]],
            "labels": [id for row in part for id in row["labels"]],
            "seq_lengths": [len(row["input_ids"]) for row in part],
        }
        for part in (each[:10], each[10:25], each[25:])
    ]
    lines = tmp_path / "packed.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in packed))
    table = tmp_path / "each.parquet"
    datasets.Dataset.from_list(each).to_parquet(str(table))
    found = []
    for data in (lines, table):
        index, report = InfluenceIndex.build(
            tmp_path / data.stem, data, str(model_dir), vector=SMALL
        )
        with index:
            assert report.added == len(rows)
            found.append({row.key: row.n_scored for row in index.rows()})
    assert found[0] == found[1]


def test_the_command_line_shows_what_is_scored(tmp_path: Path, model_dir: Path) -> None:
    file = tmp_path / "rows.jsonl"
    ids = tiny_tokenizer()("abcde")["input_ids"]
    labels = [-100, -100, -100, *ids[3:]]
    file.write_text(json.dumps({"input_ids": ids, "labels": labels, "seq_lengths": [2, 3]}) + "\n")
    result = CliRunner().invoke(main, ["preview", str(file), "--model", str(model_dir), "--json"])
    assert result.exit_code == 0, result.output
    [line] = [json.loads(line) for line in result.stdout.splitlines()]
    assert (line["tokens"], line["scored"]) == (["c", "d", "e"], [False, True, True])
    assert line["source"] == f"{file}:1:2"
    assert "tokens from 'input_ids', scored by 'labels'" in result.stderr


def test_a_token_that_the_model_does_not_have(tmp_path: Path, model_dir: Path) -> None:
    rows = [{"input_ids": [5, 99]}]
    [error] = preview(rows, ModelConfig(str(model_dir)))
    assert "token id 99 is not one of the 96" in str(error)
    with pytest.raises(InputError, match="no field 'input_ids'"):
        InfluenceIndex.build(tmp_path / "i", [{"text": "a"}], str(model_dir), format=TOKENS)

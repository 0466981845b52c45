"""Rows to samples: what is scored, what is cut, and what is refused by file and line."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import tiny_tokenizer

from forvalue_index.config import FormatConfig
from forvalue_index.data.formatting import Formatter, content_hash, key_of
from forvalue_index.errors import InputError, RowError
from forvalue_index.records import Row, Sample

TOKENIZER = tiny_tokenizer()


def sample_of(row: Row, max_length: int = 64, **settings: Any) -> Sample:
    return Formatter(TOKENIZER, FormatConfig(**settings), max_length).samples([("f:1", row)])[0]


def text_of(sample: Sample) -> str:
    return str(TOKENIZER.decode(sample.input_ids.tolist()))


def scored_text(sample: Sample) -> str:
    return str(TOKENIZER.decode(sample.input_ids[sample.scored].tolist()))


def test_prompt_then_response_and_nothing_added() -> None:
    sample = sample_of({"prompt": "ab", "response": " cd"})
    assert text_of(sample) == "ab cd"
    assert scored_text(sample) == " cd"
    assert not sample.truncated


def test_plain_text_is_scored_after_its_first_token() -> None:
    assert scored_text(sample_of({"text": "abcd"}, text_field="text")) == "bcd"


def test_a_response_without_a_prompt_is_scored_after_its_first_token() -> None:
    assert scored_text(sample_of({"prompt": "", "response": "abcd"})) == "bcd"


def test_end_token_is_added_and_scored_when_asked() -> None:
    sample = sample_of({"prompt": "ab", "response": "cd"}, add_eos=True)
    assert scored_text(sample) == "cd</s>"


def test_numbers_are_text() -> None:
    assert scored_text(sample_of({"prompt": "ab", "response": -93})) == "-93"


@pytest.mark.parametrize(
    ("max_length", "text", "scored"),
    [(6, "defXYZ", "XYZ"), (4, "fXYZ", "XYZ"), (3, "fXY", "XY"), (2, "fX", "X")],
)
def test_the_prompt_is_cut_first_and_something_is_always_scored(
    max_length: int, text: str, scored: str
) -> None:
    sample = sample_of({"prompt": "abcdef", "response": "XYZ"}, max_length)
    assert (text_of(sample), scored_text(sample)) == (text, scored)
    assert sample.truncated


def test_long_text_is_cut_at_its_end() -> None:
    sample = sample_of({"text": "abcdef"}, 4, text_field="text")
    assert text_of(sample) == "abcd"
    assert sample.truncated


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "f:1: no field 'response'; the row's fields are: prompt"),
        ({"prompt": "a", "response": ""}, "f:1: field 'response' is empty"),
        ({"prompt": "a", "response": None}, "f:1: field 'response' is NoneType, not text"),
        ({"prompt": "a", "response": ["b"]}, "f:1: field 'response' is list, not text"),
        ({"prompt": "", "response": "b"}, "f:1: one token without a prompt"),
        ({"prompt": "a", "response": "\ud800"}, "f:1: field 'response' holds half a surrogate"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: Row, message: str) -> None:
    with pytest.raises(RowError) as error:
        sample_of(row)
    assert message in str(error.value)


def test_max_length_must_leave_room() -> None:
    with pytest.raises(InputError, match="max length is 1"):
        sample_of({"prompt": "a", "response": "b"}, 1)


def test_content_hash_ignores_the_order_of_fields_only() -> None:
    row = {"a": "x", "b": 1}
    assert content_hash(row) == content_hash({"b": 1, "a": "x"})
    assert len({content_hash(r) for r in (row, {"a": "x", "b": 2}, {"a": "x", "c": 1})}) == 3


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_a_row_that_json_cannot_keep_is_refused(value: Any) -> None:
    with pytest.raises(RowError, match="f:3: cannot be kept as JSON"):
        content_hash({"x": value}, "f:3")


def test_key_is_the_users_own_or_the_content() -> None:
    row = {"id": 7, "prompt": "a"}
    assert key_of(row, "f:1", FormatConfig(key_field="id")) == "7"
    assert key_of(row, "f:1", FormatConfig()) == content_hash(row)
    with pytest.raises(RowError, match="no field 'name'"):
        key_of(row, "f:1", FormatConfig(key_field="name"))

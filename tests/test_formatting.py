"""Rows to samples: what is scored, what is cut, and what is refused by file and line."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers.models import tiny_tokenizer

from forvalue_index.config import FormatConfig
from forvalue_index.data.formatter import Formatter, content_hash, key_of
from forvalue_index.data.tokens import Tokens, cut
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
    sample = sample_of({"prompt": "ab", "response": "cd"}, eos=True)
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
        ({"prompt": "a", "response": {"bytes": "YQ=="}}, "field 'response' is bytes, not text"),
        ({"prompt": "", "response": "b"}, "f:1: one token without a prompt"),
        ({"prompt": "a", "response": "\ud800"}, "f:1: field 'response' holds half a surrogate"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: Row, message: str) -> None:
    with pytest.raises(RowError) as error:
        sample_of(row)
    assert message in str(error.value)


def test_all_tokens_are_scored_when_asked() -> None:
    assert scored_text(sample_of({"prompt": "ab", "response": "cd"}, score="all")) == "bcd"


@pytest.mark.parametrize(
    ("side", "text", "scored"),
    [("unscored", "efXY", "XY"), ("start", "efXY", "XY"), ("end", "abcd", None)],
)
def test_the_side_that_goes_can_be_chosen(side: str, text: str, scored: str | None) -> None:
    row = {"prompt": "abcdef", "response": "XY"}
    if scored is None:
        with pytest.raises(RowError, match=r"f:1: all its scored tokens are among those lost"):
            sample_of(row, 4, truncate=side)
        return
    sample = sample_of(row, 4, truncate=side)
    assert (text_of(sample), scored_text(sample), sample.truncated) == (text, scored, True)


def test_the_start_that_goes_takes_scored_tokens_too() -> None:
    sample = sample_of({"prompt": "ab", "response": "UVWXYZ"}, 4, truncate="start")
    assert (text_of(sample), scored_text(sample)) == ("WXYZ", "XYZ")  # W has lost its context
    sample = sample_of({"prompt": "ab", "response": "UVWXYZ"}, 4, truncate="end")
    assert (text_of(sample), scored_text(sample)) == ("abUV", "UV")


@pytest.mark.parametrize(
    ("scored", "max_length", "side", "kept", "counted"),
    [
        # b: beginning-of-sequence; the ids are the positions, so that it shows what stays.
        ("b..xx..xxx..", 6, "unscored", [0, 5, 6, 7, 8, 9], [7, 8, 9]),
        ("b..xx..xxx..", 12, "unscored", list(range(12)), [3, 4, 7, 8, 9]),
        ("b..xx..xxx..", 6, "start", [0, 7, 8, 9, 10, 11], [8, 9]),
        ("b..xx..xxx..", 6, "end", [0, 1, 2, 3, 4, 5], [3, 4]),
        ("bxxxx.......", 4, "unscored", [0, 1, 2, 3], [1, 2, 3]),
        ("...xx..xxx..", 6, "unscored", [2, 3, 4, 5, 6, 7], [3, 4, 7]),
        ("b..xxxx", 2, "unscored", [2, 3], [3]),
    ],
)
def test_the_window_with_the_most_scored_tokens_stays(
    scored: str, max_length: int, side: str, kept: list[int], counted: list[int]
) -> None:
    tokens = Tokens(
        np.arange(len(scored), dtype=np.int32), np.array([mark == "x" for mark in scored])
    )
    left = cut(tokens, max_length, side, 0 if scored[0] == "b" else None)
    assert left.ids.tolist() == kept
    assert left.ids[left.scored].tolist() == counted


ALPACA = """\
{{ instruction }}
{% if input %}
In: {{ input }}
{% endif %}
Out:
"""


def test_a_template_makes_the_prompt_of_a_rows_fields() -> None:
    row = {"instruction": "Add", "input": "1 2", "response": " 3"}
    sample = sample_of(row, template=ALPACA)
    assert text_of(sample) == "Add<unk>In: 1 2<unk>Out: 3"  # the tokenizer knows no line breaks
    assert scored_text(sample) == " 3"
    for empty in ({"input": ""}, {"input": None}, {}):
        short: Row = {"instruction": "Add", "response": " 3"} | empty
        assert text_of(sample_of(short, template=ALPACA)) == "Add<unk>Out: 3"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ no }}", "f:1: the template: 'no' is undefined; the row's fields are: p, response"),
        ("{{ p.x.y }}", "f:1: the template: 'str object' has no attribute 'x'"),
        ("{{ 1 / 0 }}", "f:1: the template fails on this row (division by zero)"),
        ("{{ p.__class__.__mro__ }}", "f:1: the template fails on this row (access to attribute"),
    ],
)
def test_a_template_that_fails_on_a_row_names_it(template: str, message: str) -> None:
    with pytest.raises(RowError) as error:
        sample_of({"p": "a", "response": "b"}, template=template)
    assert message in str(error.value)


def test_a_template_that_cannot_be_read() -> None:
    with pytest.raises(InputError, match=r"the template cannot be read: .* \(line 2\)"):
        sample_of({"p": "a", "response": "b"}, template="x\n{{ p }")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "some"}, "score 'some' is not one of response, all"),
        ({"truncate": "left"}, "truncate 'left' is not one of unscored, start, end"),
        ({"text_field": "t", "messages_field": "m"}, "a row is plain text or messages"),
        ({"text_field": "t", "template": "x"}, "a template makes prompts"),
        ({"text_field": "t", "chat": True}, "plain text is not a chat"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FormatConfig(**settings)


def test_an_end_token_that_the_tokenizer_lacks() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token to add"):
        Formatter(tokenizer, FormatConfig(eos=True), 8)


def test_a_token_beyond_the_heads_vocabulary_is_refused() -> None:
    rows = [("f:1", {"prompt": "a", "response": "b"}), ("f:2", {"prompt": "a", "response": "z"})]
    assert len(Formatter(TOKENIZER, FormatConfig(), 8, 96).samples(rows)) == 2
    with pytest.raises(RowError, match=r"f:2: token id \d+ is not one of the 80 .* larger than"):
        Formatter(TOKENIZER, FormatConfig(), 8, 80).samples(rows)


def test_a_pad_token_is_never_needed() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    rows = [("f:1", {"prompt": "a", "response": "b"}), ("f:2", {"prompt": "abc", "response": "d"})]
    samples = Formatter(tokenizer, FormatConfig(), 8).samples(rows)
    assert [len(sample.input_ids) for sample in samples] == [2, 4]


def test_rows_of_another_kind_keep_what_they_can() -> None:
    chat = FormatConfig(messages_field="m", last_turn=True, chat_template="x")
    asked = chat.of_kind("prompt_field")
    assert (asked.messages_field, asked.chat, asked.chat_template) == (None, True, "x")
    assert asked.of_kind("messages_field").is_chat is False  # which field, is not known
    pair = FormatConfig(template="{{ x }}")
    assert pair.of_kind("prompt_field") == FormatConfig()
    assert not chat.of_kind("text_field").is_chat


def test_max_length_must_leave_room() -> None:
    with pytest.raises(InputError, match="max length is 1"):
        sample_of({"prompt": "a", "response": "b"}, 1)


def test_content_hash_ignores_the_order_of_fields_only() -> None:
    row = {"a": "x", "b": 1}
    assert content_hash(row) == content_hash({"b": 1, "a": "x"})
    assert len({content_hash(r) for r in (row, {"a": "x", "b": 2}, {"a": "x", "c": 1})}) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"note": "\ud800"}, "f:3: field 'note' holds half a surrogate pair, not text"),
        ({"a": "😀", "meta": {"x": ["\ud83d"]}}, "f:3: field 'meta' holds half a surrogate pair"),
        ({"meta": {"\ude00": 1}}, "f:3: field 'meta' holds half a surrogate pair"),
        ({"\ud800": 1}, r"f:3: the name of field '\ud800' holds half a surrogate pair"),
        ({"note": "a\udcff"}, "f:3: field 'note' is not UTF-8 text"),
    ],
)
def test_half_a_surrogate_pair_is_refused_anywhere(row: Row, message: str) -> None:
    with pytest.raises(RowError) as error:
        content_hash(row, "f:3")
    assert str(error.value).startswith(message)
    with pytest.raises(RowError) as error:  # with a key of its own, too
        sample_of({"prompt": "a", "response": "b", "id": "k"} | row, key_field="id")
    assert str(error.value).startswith(message.replace("f:3", "f:1"))


def test_whole_surrogate_pairs_and_backslashes_are_text() -> None:
    row = {"😀": "😀", "meta": {"x": "\\ud800 😀"}}
    assert content_hash(json.loads(json.dumps(row))) == content_hash(row)


@pytest.mark.parametrize("name", [1, None, ("a", "b")])
def test_a_name_that_is_no_text_is_refused(name: Any) -> None:
    row: dict[Any, Any] = {name: 2, "prompt": "a"}
    for more in ({}, {"response": "b"}):
        with pytest.raises(RowError, match=r"f:1: the name of a field must be text, but .* is "):
            sample_of(row | more)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_a_row_that_json_cannot_keep_is_refused(value: Any) -> None:
    with pytest.raises(RowError, match="f:3: cannot be stored as JSON"):
        content_hash({"x": value}, "f:3")


def test_key_is_the_users_own_or_the_content() -> None:
    row = {"id": 7, "prompt": "a"}
    assert key_of(row, "f:1", FormatConfig(key_field="id")) == "7"
    assert key_of(row, "f:1", FormatConfig()) == content_hash(row)
    with pytest.raises(RowError, match="no field 'name'"):
        key_of(row, "f:1", FormatConfig(key_field="name"))

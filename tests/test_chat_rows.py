"""Rows of conversations: too long, of several forms, or none at all; and whose template is used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.chat_templates import GEMMA, QWEN25, TWO, chat, marked, sample, tokenizer

from forvalue_index.cli.render import sample_text
from forvalue_index.config import FormatConfig
from forvalue_index.data.formatter import Formatter, settled
from forvalue_index.data.messages import messages_of
from forvalue_index.data.row_text import texts_of
from forvalue_index.errors import InputError, RowError

# -- too long ----------------------------------------------------------------------------------


def test_a_long_conversation_keeps_what_is_scored() -> None:
    long = chat("u: " + "x" * 30, "a: Yes", "u: " + "y" * 30, "a: Nope")
    shown = marked(sample(GEMMA, long, 24))
    assert shown.startswith("<s>y") and shown.endswith("<start_of_turn>model\n⟦Nope<end_of_turn>⟧")
    assert sample(GEMMA, long, 24).truncated
    assert len(sample(GEMMA, long, 24).input_ids) == 24


def test_the_side_that_goes_can_be_chosen() -> None:
    long = chat("u: " + "x" * 9, "a: Yes", "u: " + "y" * 30, "a: Nope")
    first = sample(GEMMA, long, 40, truncate="end")
    assert "⟦Yes<end_of_turn>⟧" in marked(first) and "Nope" not in marked(first)
    last = sample(GEMMA, long, 40, truncate="start")
    assert marked(last).startswith("<s>y") and marked(last).endswith("⟦Nope<end_of_turn>⟧\n")


def test_a_row_of_which_nothing_scored_is_left_is_refused() -> None:
    long = chat("u: " + "x" * 30, "a: Yes")
    with pytest.raises(RowError, match=r"f:1: all its scored tokens .* cut to 16: use --truncate"):
        sample(GEMMA, long, 16, truncate="end")


# -- rows that are no conversation -------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hello", "field 'messages' is text, not a list of messages"),
        ({"role": "user"}, "field 'messages' is dict, not a list of messages"),
        ([], "field 'messages' is empty"),
        (["Hi"], "messages[0] is str, not a message"),
        ([{"content": "Hi"}], "messages[0] has no role"),
        ([{"role": "user", "content": 3}], "the content of messages[0] is int, not text"),
        ([{"role": "user", "content": "\ud800"}], "messages[0] holds half a surrogate pair"),
        (chat("u: Hi"), "no message of the assistant has text that counts, so there"),
        (chat("u: Hi", "a: "), "no message of the assistant has text that counts, so there"),
        (chat("s: Be.", "u: Hi", "a: Yo"), "the chat template refuses the messages (no system"),
    ],
)
def test_what_is_no_conversation_is_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(RowError) as error:
        sample(GEMMA, value)
    assert f"f:1: {message}" in str(error.value)


def test_a_row_without_the_field_says_which_it_has() -> None:
    with pytest.raises(RowError, match="f:1: no field 'messages'; the row's fields are: chat"):
        messages_of({"chat": []}, "f:1", "messages")


@pytest.mark.parametrize(
    "same",
    [
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}],
        [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": None},
            {"role": "assistant", "content": "Yo", "tool_calls": None},
        ],
        json.dumps(chat("u: Hi", "a: Yo")),
    ],
)
def test_conversations_come_in_several_forms(same: Any) -> None:
    assert messages_of({"m": same}, "f:1", "m") == chat("u: Hi", "a: Yo")


def test_bad_rows_are_left_out_when_somebody_takes_them() -> None:
    formatter = Formatter(tokenizer(GEMMA), FormatConfig(messages_field="messages"), 512)
    rows = [chat("u: Hi", "a: Yo"), chat("u: Hi"), chat("u: Hi", "a: No.")]
    refused: list[RowError] = []
    numbered = [(f"f:{i}", {"messages": value}) for i, value in enumerate(rows)]
    made = formatter.samples(numbered, lambda error, _: refused.append(error))
    assert [item.source for item in made] == ["f:0", "f:2"]
    assert [error.source for error in refused] == ["f:1"]
    assert "⟦No.<end_of_turn>⟧" in marked(made[1])


# -- the template ------------------------------------------------------------------------------


def test_a_tokenizer_without_a_template_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"no chat template: pass --chat-template FILE, or use"):
        sample(tokenizer(None), TWO)
    assert marked(sample(tokenizer(None), TWO, chat_template=GEMMA)) == marked(sample(GEMMA, TWO))


def test_a_template_that_cannot_be_read() -> None:
    with pytest.raises(InputError, match=r"the chat template cannot be read: .* \(line 1\)"):
        sample("{% for %}", TWO)


def test_the_template_is_settled_with_the_index() -> None:
    own = settled(FormatConfig(messages_field="m"), tokenizer(GEMMA), 64)
    assert (own.chat_template, own.max_length) == (GEMMA, 64)
    given = FormatConfig(messages_field="m", chat_template=QWEN25)
    assert settled(given, tokenizer(GEMMA), 64).chat_template == QWEN25
    assert settled(FormatConfig(), tokenizer(GEMMA), 64).chat_template is None


def test_a_prompt_and_a_response_as_two_messages() -> None:
    formatter = Formatter(tokenizer(GEMMA), FormatConfig(chat=True), 512)
    made = formatter.samples([("f:1", {"prompt": "Hi", "response": "Yo"})])[0]
    assert (made.input_ids == sample(GEMMA, chat("u: Hi", "a: Yo")).input_ids).all()
    assert (made.scored == sample(GEMMA, chat("u: Hi", "a: Yo")).scored).all()


def test_the_texts_of_a_conversation() -> None:
    config = FormatConfig(messages_field="m")
    assert texts_of({"m": TWO}, "f:1", config) == ("Hi\nYo\nAnd?", "No.")


def test_a_shown_conversation_names_who_speaks() -> None:
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
    shown = sample_text(row, FormatConfig(messages_field="messages")).plain
    assert shown == "[user] hi [assistant] yes"
    assert sample_text({"prompt": "a", "response": " b"}, FormatConfig()).plain == "a b"

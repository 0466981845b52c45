"""Whose words the tokens of a conversation are, and how a terminal shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.chat_templates import GEMMA, LLAMA31, MISTRAL, QWEN3, QWEN25, chat, sample, tokenizer

from forvalue_index.cli import highlight
from forvalue_index.config import FormatConfig
from forvalue_index.data.token_text import pieces_of
from forvalue_index.data.turns import turns_of
from forvalue_index.records import Passage, Turn

MESSAGES = FormatConfig(messages_field="messages")


def said(template: str, messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Who says what, as the tokens of a conversation are shared out."""
    made = sample(template, messages)
    texts = pieces_of(tokenizer(template), made)
    turns = turns_of({"messages": messages}, texts, None, MESSAGES)
    return [(turn.role, "".join(texts[turn.start : turn.stop])) for turn in turns]


@pytest.mark.parametrize("template", [GEMMA, LLAMA31, MISTRAL, QWEN25, QWEN3])
def test_each_message_has_its_own_words(template: str) -> None:
    messages = chat("u: Hi user", "a: user", "u: s", "a: Yes. Hi é")
    assert said(template, messages) == [(m["role"], m["content"]) for m in messages]


def test_the_templates_own_system_prompt_is_nobodys() -> None:
    messages = chat("u: Be kind?", "a: Be kind.")
    assert "Be kind." in "".join(pieces_of(tokenizer(QWEN25), sample(QWEN25, messages)))[:40]
    assert said(QWEN25, messages)[1] == ("assistant", "Be kind.")


def test_words_that_the_template_leaves_out_are_not_found() -> None:
    messages = chat("u: Why?", "a: <think>\nhm\n</think>\n\nSo.", "u: And?", "a: No.")
    found = said(QWEN3, messages)
    assert found[1] == ("assistant", "So.") and [role for role, _ in found][2:] == [
        "user",
        "assistant",
    ]


def test_a_message_that_was_cut_off_goes_to_the_end() -> None:
    texts = ["<u>", "What is it?", "</u>", "<a>", "It is a pipe ", "org"]
    row = {"messages": chat("u: What is it?", "a: It is a pipe organ.")}
    turns = turns_of(row, texts, None, MESSAGES)
    assert turns == (Turn(1, 2, "user"), Turn(4, 6, "assistant"))


def test_a_prompt_and_a_response_are_turns_only_through_a_template() -> None:
    row = {"prompt": "Hi", "response": "Yo"}
    assert turns_of(row, ["Hi", "Yo"], None, FormatConfig()) == ()
    for config in (FormatConfig(chat=True), MESSAGES):
        found = turns_of(row, ["<", "Hi", ">", "Yo"], None, config)
        assert found == (Turn(1, 2, "user"), Turn(3, 4, "assistant"))


def test_a_preference_has_the_turns_of_both_texts() -> None:
    row = {"prompt": "Hi", "chosen": "Yo", "rejected": "No"}
    config = FormatConfig(chat=True, response_field="chosen", rejected_field="rejected")
    texts = ["<", "Hi", ">", "Yo", "<", "Hi", ">", "No"]
    turns = turns_of(row, texts, 4, config)
    assert [(turn.role, texts[turn.start]) for turn in turns] == [
        ("user", "Hi"),
        ("assistant", "Yo"),
        ("user", "Hi"),
        ("assistant", "No"),
    ]
    passage = Passage(texts, np.isin(texts, ["Yo", "No"]), np.zeros(8), 4, turns)
    assert (
        highlight.snippet(passage).plain
        == "[user] Hi [assistant] Yo [rejected] [user] Hi [assistant] No"
    )


def test_a_hit_shows_roles_and_no_template_but_what_is_scored() -> None:
    texts = ["<sys>Be kind.</sys>", "<u>", "Hi", "</u>", "<a>", "Yo", "</a>"]
    scored = np.arange(7) >= 5
    turns = (Turn(2, 3, "user"), Turn(5, 6, "assistant"))
    passage = Passage(texts, scored, np.where(scored, 1.0, 0.0), turns=turns)
    assert highlight.snippet(passage).plain == "[user] Hi [assistant] Yo</a>"
    assert highlight.whole(passage).plain == "[user] Hi\n[assistant] Yo</a>"
    assert [place for _, place, _ in passage.shown()] == [-2, -1, -2, 0, 1]

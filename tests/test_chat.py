"""Conversations: exactly what the assistant says is scored, on the templates that models have."""

from __future__ import annotations

import re
from typing import Any

import pytest
from helpers.chat_templates import (
    GEMMA,
    LLAMA3,
    LLAMA31,
    MISTRAL,
    QWEN3,
    QWEN25,
    QWEN25_MARKED,
    R1,
    SPECIAL,
    TWO,
    SlowTokenizer,
    chat,
    marked,
    sample,
    tokenizer,
)

from forvalue_index.config import FormatConfig
from forvalue_index.data.formatter import Formatter
from forvalue_index.data.row_text import texts_of
from forvalue_index.errors import RowError
from forvalue_index.records import Row, Sample

ZEPHYR = """\
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}
{%- if loop.last and add_generation_prompt %}
{{- '<|assistant|>\\n' }}
{%- endif %}
{%- endfor %}"""

PLAIN = """\
{%- for message in messages %}
{{- '### ' + message.role + ':\\n' + (message.content or '') }}
{{- message.tool_calls | tojson if message.tool_calls else '' }}
{{- '\\n' }}
{%- endfor %}"""

THINKING = """\
{%- for message in messages %}
{{- '### ' + message.role + ':\\n' }}
{%- if message.role == 'assistant' and '<think>' not in message.content %}
{{- '<think>' + (message.reasoning or '') + '</think>' }}
{%- endif %}
{{- message.content + eos_token }}
{%- endfor %}"""

HARMONY = """\
{%- for message in messages %}
{{- '<|' + message.role + '|>' + ('final:' if message.role == 'assistant' else '') }}
{{- message.content + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"""

HEAD, END = "<|start_header_id|>", "<|end_header_id|>\n\n"


@pytest.mark.parametrize(
    ("template", "messages", "expected", "n_scored"),
    [
        (
            LLAMA3,
            chat("s: Be.", "u: Hi", "a: Yo"),
            f"<s>{HEAD}system{END}Be.<|eot_id|>{HEAD}user{END}Hi<|eot_id|>"
            f"{HEAD}assistant{END}⟦Yo<|eot_id|>⟧",
            3,
        ),
        (
            LLAMA3,
            TWO,
            f"<s>{HEAD}user{END}Hi<|eot_id|>{HEAD}assistant{END}⟦Yo<|eot_id|>⟧"
            f"{HEAD}user{END}And?<|eot_id|>{HEAD}assistant{END}⟦No.<|eot_id|>⟧",
            7,
        ),
        (
            QWEN25,
            TWO,
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n<|im_start|>user\nAnd?<|im_end|>\n"
            "<|im_start|>assistant\n⟦No.<|im_end|>⟧\n",
            7,
        ),
        (
            QWEN25_MARKED,
            TWO,
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"
            "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n⟦No.<|im_end|>⟧\n",
            7,
        ),
        (
            MISTRAL,
            chat("u: Hi", "a:  Yo ", "u: And?", "a: No."),
            "<s>[INST] Hi [/INST]⟦ Yo</s>⟧[INST] And? [/INST]⟦ No.</s>⟧",
            9,
        ),
        (
            MISTRAL,
            chat("s: Be.", "u: Hi", "a: Yo"),
            "<s>[INST] Be.\n\nHi [/INST]⟦ Yo</s>⟧",
            4,
        ),
        (
            GEMMA,
            chat("u: Hi", "a:  Yo\n", "u: And?", "a: No."),
            "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n⟦Yo<end_of_turn>⟧\n"
            "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n⟦No.<end_of_turn>⟧\n",
            7,
        ),
    ],
)
@pytest.mark.parametrize("trim", [False, True])
def test_exactly_the_assistants_tokens_are_scored(
    template: str, messages: Any, expected: str, n_scored: int, trim: bool
) -> None:
    made = sample(tokenizer(template, trim=trim), messages)
    assert marked(made) == expected
    assert made.n_scored == n_scored
    # One token a character, and one a special token, counted without a tokenizer.
    text = re.sub("[⟦⟧]", "", expected)
    pieces = re.findall("|".join(map(re.escape, SPECIAL)) + "|.", text, re.DOTALL)
    tokens = tokenizer(None)
    assert made.input_ids.tolist() == [
        tokens.encode(piece, add_special_tokens=False)[0] for piece in pieces
    ]
    assert made.input_ids.tolist().count(tokens.bos_token_id) == text.count("<s>") <= 1


@pytest.mark.parametrize("template", [LLAMA3, QWEN25, QWEN25_MARKED, MISTRAL, GEMMA])
def test_only_the_last_turn_when_asked(template: str) -> None:
    every, last = sample(template, TWO), sample(template, TWO, last_turn=True)
    assert (every.input_ids == last.input_ids).all()
    shown = marked(last)
    assert shown.count("⟦") == 1 and shown.index("⟦") > shown.index("And?")
    assert "No." in shown[shown.index("⟦") : shown.index("⟧")]


@pytest.mark.parametrize("template", [LLAMA3, QWEN25, QWEN25_MARKED, MISTRAL, GEMMA])
def test_the_end_of_a_turn_is_scored_unless_told_otherwise(template: str) -> None:
    with_end, without = sample(template, TWO), sample(template, TWO, eos=False)
    assert with_end.n_scored == without.n_scored + 2
    assert re.findall("⟦ ?(.*?)⟧", marked(without)) == ["Yo", "No."]
    assert marked(sample(template, TWO, eos=True)) == marked(with_end)


def test_an_end_outside_the_marks_is_scored_when_asked() -> None:
    template = QWEN25_MARKED.replace(
        "{{ message.content + '<|im_end|>' }}{% endgeneration %}",
        "{{ message.content }}{% endgeneration %}{{ '<|im_end|>' }}",
    )
    assert marked(sample(template, TWO)).count("⟦") == 2
    assert "⟦Yo⟧<|im_end|>" in marked(sample(template, TWO))
    assert "⟦Yo<|im_end|>⟧" in marked(sample(template, TWO, eos=True))


def test_all_tokens_but_the_first_when_asked() -> None:
    made = sample(LLAMA3, TWO, score="all")
    assert not made.scored[0] and made.scored[1:].all()
    assert sample(LLAMA3, chat("u: Hi"), score="all").n_scored > 5


def test_marks_and_differences_agree() -> None:
    plain = sample(QWEN25, chat("s: Be.", "u: Hi", "a: Yo", "u: And?", "a: No."))
    marks = sample(QWEN25_MARKED, chat("s: Be.", "u: Hi", "a: Yo", "u: And?", "a: No."))
    assert (plain.input_ids == marks.input_ids).all()
    assert (plain.scored == marks.scored).all()


def answers_of(made: Sample) -> list[str]:
    return re.findall("⟦(.*?)⟧", marked(made), re.DOTALL)


@pytest.mark.parametrize("template", [QWEN25, QWEN25_MARKED], ids=["differences", "marks"])
def test_a_turn_of_weight_0_is_read_and_not_scored(template: str) -> None:
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "first", "weight": 0},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "second", "weight": 1},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "third", "weight": 0},
    ]
    for last in (False, True):
        assert "".join(answers_of(sample(template, turns, last_turn=last))) == "second<|im_end|>"
    plain = [{name: turn[name] for name in ("role", "content")} for turn in turns]
    assert list(sample(template, plain).input_ids) == list(sample(template, turns).input_ids)
    with pytest.raises(RowError, match="the weight of message 1 is neither 0 nor 1"):
        sample(template, [turns[0], turns[1] | {"weight": 0.5}])
    with pytest.raises(RowError, match="nothing to score"):
        sample(template, turns[:2])
    config = FormatConfig(messages_field="messages")
    prompt, response = texts_of({"messages": turns}, "row 1", config)
    assert response == "second" and "first" in prompt
    with pytest.raises(RowError, match="nothing to score"):
        texts_of({"messages": turns[:2]}, "row 1", config)


@pytest.mark.parametrize("template", [LLAMA3, QWEN25, QWEN25_MARKED, GEMMA])
def test_the_end_of_a_turn_that_says_nothing_is_scored(template: str) -> None:
    """As a trainer does; but a conversation in which nothing is said is refused."""
    turns: Any = chat("u: Hi", "a: ", "u: And?", "a: No.")
    empty, last = answers_of(sample(template, turns))
    assert empty in SPECIAL and last == f"No.{empty}"
    assert answers_of(sample(template, turns, last_turn=True)) == [last]
    assert answers_of(sample(template, turns, eos=False)) == ["No."]
    turns[1] |= {"weight": 0}
    assert answers_of(sample(template, turns)) == [last]
    silent = chat("u: Hi", "a: Yo", "u: And?", "a: ")
    assert answers_of(sample(template, silent)) == [f"Yo{empty}", empty]
    assert answers_of(sample(template, silent, last_turn=True)) == [f"Yo{empty}"]
    with pytest.raises(RowError, match="no message of the assistant has text that counts"):
        sample(template, chat("u: Hi", "a: "))


def test_an_empty_turn_that_a_template_leaves_out_is_left_out() -> None:
    skipping = QWEN25.replace("messages %}", "messages if message.content %}")
    made = sample(skipping, chat("u: Hi", "a: ", "u: And?", "a: No."))
    assert answers_of(made) == ["No.<|im_end|>"]


def test_a_conversation_without_the_assistant_names_who_speaks() -> None:
    turns = [{"role": "customer", "content": "Hi"}, {"role": "agent", "content": "Yo"}]
    with pytest.raises(RowError, match="the roles are 'customer', 'agent': call the one that"):
        sample(QWEN25, turns)
    assert answers_of(sample(QWEN25, [*turns, *chat("a: No.")])) == ["No.<|im_end|>"]
    spoken = [{"role": "prompter", "content": "Hi"}, *chat("a: Yo")]
    assert marked(sample(QWEN25, spoken)) == marked(sample(QWEN25, chat("u: Hi", "a: Yo")))


def test_a_weight_changes_no_span() -> None:
    turns: Any = chat("u: Hi", "a: <think>so</think>first", "u: And?", "a: No.")
    weighed = [turn | {"weight": 1} if turn["role"] == "assistant" else turn for turn in turns]
    assert marked(sample(QWEN3, weighed)) == marked(sample(QWEN3, turns))


def test_an_answer_that_repeats_its_header_is_scored_alone() -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    made = sample(template, chat("u: Hi", "a: assistant: assistant"))
    assert answers_of(made) == ["assistant: assistant\n"]


# -- templates that ask for an answer without a header -----------------------------------------


def test_an_opening_turn_whose_header_was_never_asked_for() -> None:
    opened = chat("a: Welcome!", "u: Hi", "a: Yo")
    assert marked(sample(ZEPHYR, opened)) == (
        "<|assistant|>\n⟦Welcome!</s>⟧\n<|user|>\nHi</s>\n<|assistant|>\n⟦Yo</s>⟧\n"
    )
    assert answers_of(sample(ZEPHYR, opened, eos=False)) == ["Welcome!", "Yo"]
    assert answers_of(sample(ZEPHYR, chat("u: Hi", "a: Yo", "a: Yo"))) == ["Yo</s>", "Yo</s>"]


@pytest.mark.parametrize(
    "said", ["yes", " yes\n", "assistant", "### assistant:\nyes", "#", "a", " ", "<think>", "Qx7Z"]
)
@pytest.mark.parametrize("settings", [{}, {"last_turn": True}])
def test_a_template_that_does_not_listen_when_it_is_asked(
    said: str, settings: dict[str, Any]
) -> None:
    told = chat("u: Hi", "a: No.", "u: And?", "a: " + said)
    expected = [said + "\n"] if settings else ["No.\n", said + "\n"]
    assert answers_of(sample(PLAIN, told, **settings)) == expected
    trimming = PLAIN.replace("message.content", "message.content | trim")
    assert answers_of(sample(trimming, told, **settings))[-1] == said.strip() + "\n"


def test_calls_and_reasoning_behind_a_header_that_is_not_asked_for() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    told = [*chat("u: Hi"), called, *chat("t: 42", "a: It is 42.")]
    assert answers_of(sample(PLAIN, told)) == ['[{"name": "f"}]\n', "It is 42.\n"]
    # What the template writes by itself before any answer is no answer.
    assert answers_of(sample(THINKING, TWO)) == ["Yo</s>", "No.</s>"]


def test_what_cannot_be_told_from_the_header_is_refused() -> None:
    reasoned = {"role": "assistant", "content": "Yo", "reasoning": "hm"}
    twice = "{% for m in messages %}{{ m.role + m.content + '|' + m.content }}{% endfor %}"
    shouting = PLAIN.replace("message.content", "message.content | upper")
    fickle = PLAIN.replace("':\\n'", "message.content | length | string + ':\\n'")
    for template, messages in (
        (THINKING, [*chat("u: Hi"), reasoned]),
        (THINKING, chat("u: Hi", "a: <think>hm</think>Yo")),
        (twice, chat("u: Hi", "a: Yo")),
        (shouting, chat("u: Hi", "a: Yo")),
        (fickle, chat("u: Hi", "a: Yo")),
    ):
        with pytest.raises(RowError, match="f:1: the chat template writes no header when it asks"):
            sample(template, messages)


def test_what_follows_a_header_that_is_asked_for_is_the_answer() -> None:
    """Reasoning, channels and calls are what a model says behind the header."""
    assert answers_of(sample(HARMONY, TWO)) == ["final:Yo</s>", "final:No.</s>"]
    called = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    calling = MISTRAL.replace(
        "eos_token", "(message.tool_calls | default([]) | tojson) + eos_token"
    )
    assert answers_of(sample(calling, [*chat("u: Hi"), called])) == [' [{"name": "f"}]</s>']


# -- templates that write a turn in more than one way ------------------------------------------


def test_reasoning_that_a_template_drops_from_earlier_turns() -> None:
    """The prefix is not the beginning of the whole, and the answer is found all the same."""
    said = chat("u: Hi", "a: <think>\nhm\n</think>\n\nYo", "u: And?", "a: <think>x</think>No.")
    assert marked(sample(QWEN3, said)) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"
        "<|im_start|>user\nAnd?<|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\nx\n</think>\n\nNo.<|im_end|>⟧\n"
    )


def test_a_header_that_asks_for_reasoning_which_the_template_drops() -> None:
    said = chat("u: Hi", "a: <think>hm</think>Yo", "u: And?", "a: No.")
    assert marked(sample(R1, said)) == (
        "<s><|user|>Hi<|assistant|>⟦Yo</s>⟧<|user|>And?<|assistant|>⟦No.</s>⟧"
    )


def test_a_system_prompt_that_moves() -> None:
    """Mistral's goes to the last question, so the first turn was never written like that."""
    moving = chat("s: Be.", "u: Hi", "a: Yo", "u: And?", "a: No.")
    shown = "<s>[INST] Hi [/INST]{}Yo</s>{}[INST] Be.\n\nAnd? [/INST]⟦ No.</s>⟧"
    assert marked(sample(MISTRAL, moving)) == shown.format(" ⟦", "⟧")
    assert marked(sample(MISTRAL, moving, last_turn=True)) == shown.format(" ", "")


def test_tool_calls_are_the_assistants_and_results_are_not() -> None:
    template = QWEN25.replace(
        "message.content + '<|im_end|>",
        "(message.content or '') + (message.tool_calls | tojson if message.tool_calls else '') "
        "+ '<|im_end|>",
    )
    called = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    told = [*chat("u: Hi"), called, *chat("t: 42", "a: It is 42.")]
    shown = marked(sample(template, told))
    assert re.findall("⟦(.*?)⟧", shown) == ['[{"name": "f"}]<|im_end|>', "It is 42.<|im_end|>"]


def test_tools_of_a_row_reach_the_template() -> None:
    tokens = tokenizer("{{ tools | tojson if tools else 'none' }}" + LLAMA3)
    formatter = Formatter(tokens, FormatConfig(messages_field="messages"), 512)
    row: Row = {"messages": chat("u: Hi", "a: Yo"), "tools": [{"name": "f"}]}
    other = row | {"tools": []}
    with_tools, without = formatter.samples([("f:1", row), ("f:2", other)])
    assert marked(with_tools).startswith('[{"name": "f"}]')
    assert marked(without).startswith("none")


def test_a_template_that_asks_for_the_day_is_told_the_same_one_always() -> None:
    assert "Today is 26 Jul 2024<|eot_id|>" in marked(sample(LLAMA31, TWO))


# -- tokens and spans --------------------------------------------------------------------------


def test_tokens_are_those_of_the_whole_text_and_one_over_the_edge_is_scored() -> None:
    tokens = tokenizer(QWEN25, merges=[("Ċ", "Ċ"), ("Ċ", "U")])
    made = sample(tokens, chat("s: Be.", "u: Hi", "a: \nYo"))
    whole = "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    whole += "<|im_start|>assistant\n\nYo<|im_end|>\n"
    assert made.input_ids.tolist() == tokens.encode(whole, add_special_tokens=False)
    # The line break of the header and that of the answer are one token.
    assert tokens.convert_ids_to_tokens(made.input_ids[made.scored].tolist()) == (
        ["ĊĊ", "Y", "o", "<|im_end|>"]
    )


def test_white_space_that_is_an_added_token_is_text_like_any_other() -> None:
    tokens = tokenizer(QWEN25)
    tokens.add_tokens(["\n\n"])
    made = sample(tokens, chat("s: Be.", "u: Hi", "a: \nYo"))
    assert tokens.convert_ids_to_tokens(made.input_ids[made.scored].tolist()) == (
        ["\n\n", "Y", "o", "<|im_end|>"]
    )


def test_characters_of_several_bytes_and_lone_spaces_are_scored_whole() -> None:
    for trim in (False, True):
        made = sample(tokenizer(GEMMA, trim=trim), chat("u: Hi", "a: é 日  x"))
        assert "model\n⟦é 日  x<end_of_turn>⟧\n" in marked(made)
        assert made.n_scored == 2 + 1 + 3 + 2 + 1 + 1


def test_a_special_token_that_swallows_space_is_not_scored_for_it() -> None:
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    made = sample(tokenizer(template, swallowing="<|assistant|>"), chat("u: Hi", "a:  Yo"))
    tokens = tokenizer(None)
    assert tokens.convert_ids_to_tokens(made.input_ids[made.scored].tolist()) == ["Y", "o", "</s>"]


def test_a_slow_tokenizer_gives_what_a_fast_one_gives() -> None:
    slow = SlowTokenizer(bos_token="<s>", eos_token="</s>")
    slow.chat_template = LLAMA3
    assert not slow.is_fast
    made = sample(slow, TWO)
    assert made.scored.tolist() == sample(LLAMA3, TWO).scored.tolist()
    texts = slow.convert_ids_to_tokens(made.input_ids[made.scored].tolist())
    assert texts == ["Y", "o", "<|eot_id|>", "N", "o", ".", "<|eot_id|>"]


def test_a_slow_tokenizer_whose_token_is_over_the_edge_is_refused() -> None:
    slow = SlowTokenizer(bos_token="<s>", eos_token="</s>")
    slow.chat_template = "{% for m in messages %}{{ m.role[0] + m.content }}{% endfor %}"
    slow.chat_template += "{% if add_generation_prompt %}a{% endif %}"
    assert sample(slow, chat("u: Hi", "a: Yo")).n_scored == 2
    with pytest.raises(RowError, match="f:1: the tokenizer gives no offsets"):
        sample(slow, chat("u: Hi", "a: aYo"))

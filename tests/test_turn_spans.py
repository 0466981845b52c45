"""Turns of templates that write them in more than one way, as those of many known models do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_templates import LLAMA3, QWEN3, R1, SPECIAL, TWO, chat, marked, sample, tokenizer
from tokenizers import AddedToken
from transformers.utils.chat_template_utils import render_jinja_template

from forvalue_index.config import FormatConfig
from forvalue_index.data.chat import ChatTemplate
from forvalue_index.data.row_text import conversation_of
from forvalue_index.errors import RowError

PHI = """\
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

GPT_OSS = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role }}
{%- if message.role == 'assistant' %}{{ '=final' }}{% endif %}
{{- '<|user|>' + message.content }}
{{- '</s>' if loop.last and message.role == 'assistant' else '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"""

QWEN_CALLS = (
    QWEN3.replace("message.content", "(message.content or '')")
    .replace(
        "{{- content + '<|im_end|>\\n' }}",
        "{{- content + (message.tool_calls | tojson if message.tool_calls else '') }}"
        "{{- '<|im_end|>\\n' }}",
    )
    .replace("and loop.index0 > last.query", "and loop.index0 > last.query and loop.last")
)


def answers_of(template: str, messages: list[dict[str, Any]], **settings: Any) -> list[str]:
    return re.findall("⟦(.*?)⟧", marked(sample(template, messages, **settings)), re.DOTALL)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PHI, ["Yo<|im_end|>", "No.<|im_end|>\n</s>"]),
        (GPT_OSS, ["=final<|user|>Yo<|im_end|>", "=final<|user|>No.</s>"]),
        (LLAMA3.replace("bos_token }}", "bos_token }}{{ messages | length }}"), None),
        (QWEN3.replace("{{- content + '<|im_end|>\\n' }}", "{{- content + '\\n' }}"), None),
    ],
    ids=["phi", "gpt-oss", "counting", "endless"],
)
def test_an_end_that_changes_once_others_follow(template: str, expected: list[str] | None) -> None:
    found = answers_of(template, TWO)
    if expected is None:
        assert [re.sub("<.*?>|\\s", "", text) for text in found] == ["Yo", "No."]
    else:
        assert found == expected
    assert len(answers_of(template, TWO, eos=False)) == 2


def test_a_turn_whose_words_are_changed_is_refused() -> None:
    template = QWEN3.replace("content + '<|im_end|>", "content | upper + '<|im_end|>")
    with pytest.raises(RowError, match=r"f:1: the chat template writes message 1 differently"):
        sample(template, TWO)


def test_a_conversation_that_the_assistant_opens() -> None:
    """Templates look at the first message, which the beginning of such a one does not have."""
    looking = "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}" + LLAMA3
    for template in (looking, LLAMA3):
        found = answers_of(template, chat("a: Welcome!", "u: Hi", "a: Yo"))
        assert found == ["Welcome!<|eot_id|>", "Yo<|eot_id|>"]


def test_an_answer_that_begins_like_the_header_that_is_dropped() -> None:
    assert answers_of(R1, chat("u: Hi", "a: <b>Yo</b>")) == ["<b>Yo</b></s>"]
    assert answers_of(R1, chat("u: Hi", "a: <think>hm</think>\n\n<b>")) == ["\n\n<b></s>"]


def test_a_call_that_is_written_otherwise_once_its_result_follows() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    told = [*chat("u: Hi"), called, *chat("t: 42", "a: It is 42.")]
    assert answers_of(QWEN_CALLS, told) == [
        '[{"name": "f"}]<|im_end|>',
        "<think>\n\n</think>\n\nIt is 42.<|im_end|>",
    ]


def test_results_that_are_written_with_the_call_are_not_scored() -> None:
    """The turn cannot be told from what follows it, so the row is refused."""
    within = """\
{%- for message in messages %}
{%- if message.role == 'tool' %}{% continue %}{% endif %}
{{- '<|' + message.role + '|>' + (message.content or '') }}
{%- if message.tool_calls %}
{{- message.tool_calls | tojson }}
{%- if not loop.last %}{{ messages[loop.index].content }}{% endif %}
{%- endif %}
{{- '</s>' if loop.last else '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
    called = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    with pytest.raises(RowError, match="message 1 differently"):
        sample(within, [*chat("u: Hi"), called, *chat("t: 42", "a: It is 42.")])


# -- the templates of known models, held to the marks that TRL puts into them ----------------------

TEXTS = [
    *("cohere", "cohere2", "deepseekv3", "gemma", "gptoss", "llama3", "nemotron_3_nano", "phi3"),
    *("phi3_5", "qwen2_5", "qwen3", "qwen3_instruct_2507", "glm4moe", "lfm2"),
]
CONVERSATIONS = [
    chat("u: Hi there", "a: Hello you"),
    chat("u: Hi there", "a: Hello you", "u: More", "a: Fine by me"),
    chat("u: yes", "a: yes", "u: yes", "a: yes", "u: no"),
    chat("s: Be kind.", "u: Hi there", "a: Hello you", "u: More", "a: <b>Fine</b>"),
]


@pytest.mark.parametrize("name", TEXTS)
def test_turns_are_those_that_trl_marks(name: str) -> None:
    trl = pytest.importorskip("trl")
    folder = Path(trl.__file__).parent / "chat_templates"
    plain, marks = folder / f"{name}.jinja", folder / f"{name}_training.jinja"
    if not plain.exists() or not marks.exists():
        pytest.skip(f"this version of trl has no template {name}")
    template = plain.read_text()
    tokens = tokenizer(template)
    special = sorted(set(re.findall(r"<[|｜][^|｜>\s']+[|｜]>", template)) - set(SPECIAL))
    tokens.add_special_tokens({"extra_special_tokens": [AddedToken(text) for text in special]})
    names = dict(tokens.special_tokens_map)
    config = FormatConfig(messages_field="messages")
    for messages in CONVERSATIONS:
        if messages[0]["role"] == "system" and name == "gemma":  # which has no such role
            continue
        talk = conversation_of({"messages": messages}, "f:1", config)
        found = ChatTemplate(template, tokens, config).render(talk, "f:1")
        (whole,), (spans,) = render_jinja_template(
            conversations=[messages],
            chat_template=marks.read_text(),
            return_assistant_tokens_mask=True,
            **names,
        )
        ours = [bare(found.text[start:end]) for start, end in found.spans]
        theirs = [bare(whole[start:end]) for start, end in spans]
        assert ours == [text for text in theirs if text]  # some mark the last token by itself


def bare(text: str) -> str:
    """Returns a turn without the header and the tags around it, which TRL counts in some models."""
    text = re.sub(r"<[|｜].*?[|｜]>|</?think>|</?s>|<(start|end)_of_turn>", " ", text)
    return re.sub(r"^\s*((assistant )?\s*final\b|assistant\b)", "", text).strip()


@pytest.mark.parametrize(
    "asked", ['strftime_now("%d %b %Y")', 'strftime_now("%d " ~ "%b %Y")', "strftime_now(day)"]
)
def test_a_template_is_told_the_same_day_on_every_day(asked: str) -> None:
    template = "{% set day = '%d %b %Y' %}{% if strftime_now is defined %}{{ " + asked + " }}"
    made = sample(template + "{% endif %}" + LLAMA3, TWO)
    assert marked(made).startswith("26 Jul 2024<s>")

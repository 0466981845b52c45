"""Conversations: exactly what the assistant says is scored, on the templates that models have."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from forvalue_index.config import FormatConfig
from forvalue_index.data.chat import messages_of
from forvalue_index.data.formatting import Formatter, settled, texts_of
from forvalue_index.errors import InputError, RowError
from forvalue_index.records import Row, Sample

LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

LLAMA31 = (
    "{{- bos_token }}{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
    "{{- 'Today is ' + strftime_now(\"%d %b %Y\") + '<|eot_id|>' }}"
    + LLAMA3.removeprefix("{{- bos_token }}")
)

QWEN25 = """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

QWEN25_MARKED = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

QWEN3 = """\
{%- set last = namespace(query=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set last.query = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set thought = '' %}
    {%- if '</think>' in content %}
        {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.index0 > last.query %}
        {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

R1 = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ '<|user|>' + message.content }}{% endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|assistant|>' + message.content.split('</think>')[-1] + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"""

MISTRAL = """\
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {%- if message.role == 'user' and loop.last and system is defined %}
        {{- '[INST] ' + system + '\\n\\n' + message.content + ' [/INST]' }}
    {%- elif message.role == 'user' and turns[-1].role == 'assistant' and loop.revindex == 2
        and system is defined %}
        {{- '[INST] ' + system + '\\n\\n' + message.content + ' [/INST]' }}
    {%- elif message.role == 'user' %}
        {{- '[INST] ' + message.content + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}"""

GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for message in messages %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

SPECIAL = [
    *("<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>"),
    *("<|im_end|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|user|>"),
    "<|assistant|>",
]


def tokenizer(
    template: str | None,
    merges: list[tuple[str, str]] | None = None,
    trim: bool = False,
    swallowing: str | None = None,
) -> PreTrainedTokenizerFast:
    """Bytes as tokens, the special tokens, and what `merges` makes of neighbours."""
    merges = merges or []
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*alphabet, *(a + b for a, b in merges)]
    fast = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    if trim:
        fast.post_processor = processors.ByteLevel(trim_offsets=True)
    fast.add_special_tokens([AddedToken(t, rstrip=t == swallowing) for t in SPECIAL])
    made = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>")
    made.chat_template = template
    return made


class SlowTokenizer(PreTrainedTokenizer):
    """Characters as tokens, and "aa" as one; no offsets."""

    def __init__(self, **settings: Any) -> None:
        self._ids = {chr(i): i for i in range(128)} | {"aa": 128}
        super().__init__(**settings)
        self.add_tokens([AddedToken(token, special=True) for token in SPECIAL], special_tokens=True)

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return self._ids | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return re.findall("aa|.", text, re.DOTALL)

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        return {id: token for token, id in self._ids.items()}[index]


def chat(*turns: str) -> list[dict[str, str]]:
    """ "u: Hi" -> a message of the user."""
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[3:]} for turn in turns]


def sample(template: Any, messages: Any, max_length: int = 512, **settings: Any) -> Sample:
    tokens = tokenizer(template) if isinstance(template, str) else template
    config = FormatConfig(messages_field="messages", **settings)
    return Formatter(tokens, config, max_length).samples([("f:1", {"messages": messages})])[0]


def marked(sample: Sample, tokens: Any = None) -> str:
    """The text that the model sees, with brackets around each run of scored tokens."""
    tokens = tokens or tokenizer(None)
    parts, inside = [], False
    edges = np.flatnonzero(np.diff([False, *sample.scored.tolist(), False])).tolist()
    for start, end in zip([0, *edges], [*edges, len(sample.input_ids)], strict=True):
        text = tokens.decode(sample.input_ids[start:end].tolist())
        parts.append(f"⟦{text}⟧" if inside else text)
        inside = not inside
    return "".join(parts)


TWO = chat("u: Hi", "a: Yo", "u: And?", "a: No.")
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


@pytest.mark.parametrize(
    "template",
    [
        QWEN3.replace("content + '<|im_end|>", "content | upper + '<|im_end|>"),  # says otherwise
        LLAMA3.replace("bos_token }}", "bos_token }}{{ messages | length }}"),  # no prefix at all
        QWEN3.replace("{{- content + '<|im_end|>\\n' }}", "{{- content + '\\n' }}"),  # no end
    ],
)
def test_a_turn_that_cannot_be_told_with_certainty_is_refused(template: str) -> None:
    with pytest.raises(RowError, match=r"f:1: the chat template does not write message 1 as"):
        sample(template, TWO)


def test_a_system_prompt_that_moves_is_noticed() -> None:
    """Mistral's goes to the last question, so the first turn was never written like that."""
    moving = chat("s: Be.", "u: Hi", "a: Yo", "u: And?", "a: No.")
    with pytest.raises(RowError, match="message 2"):
        sample(MISTRAL, moving)
    assert marked(sample(MISTRAL, moving, last_turn=True)) == (
        "<s>[INST] Hi [/INST] Yo</s>[INST] Be.\n\nAnd? [/INST]⟦ No.</s>⟧"
    )


def test_tool_calls_are_the_assistants_and_results_are_not() -> None:
    template = QWEN25.replace(
        "message.content + '<|im_end|>",
        "message.content + (message.tool_calls | tojson if message.tool_calls else '') "
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
    with_tools, without = formatter.samples([("f:1", row), ("f:2", row | {"tools": "hammer"})])
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
    with pytest.raises(RowError, match=r"f:1: its scored tokens .* cut to 16: use --truncate"):
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
        (chat("u: Hi"), "no message of the assistant, so there is nothing to score"),
        (chat("u: Hi", "a: "), "no message of the assistant, so there is nothing to score"),
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
    made = formatter.samples(numbered, refused.append)
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

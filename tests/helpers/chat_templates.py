"""Chat templates like those that models have, tokenizers for them, and what is scored, as text."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from forvalue_index.config import FormatConfig
from forvalue_index.data.formatter import Formatter
from forvalue_index.records import Sample

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

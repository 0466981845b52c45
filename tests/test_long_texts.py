"""Texts far longer than the maximum length: the same tokens, without tokenising all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from forvalue_index.config import TRUNCATIONS, FormatConfig
from forvalue_index.data import formatter as formatter_module
from forvalue_index.data.formatter import Formatter
from forvalue_index.data.tokens import Rendered, cut, shortened, splits_at_spaces, tokenise
from forvalue_index.records import Row, Sample

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def text_of(seed: int, words: int) -> str:
    """Words of few letters, so that tokens are long, between all that may stand there."""
    drawn = random.Random(seed)
    between = [" "] * 12 + [
        "",
        "  ",
        "\n",
        ", ",
        ". ",
        " 'tis ",
        " 12345 ",
        "é ",
        "中",
        "</s> ",
        "\t",
    ]
    return "".join(
        "".join(drawn.choices("abAB1", k=drawn.randint(1, 4))) + drawn.choice(between)
        for _ in range(words)
    )


@cache
def tokenizer_of(kind: str) -> Any:
    """A small tokenizer that was trained on such words."""
    texts = [text_of(seed, 50) for seed in range(100)]
    settings: Any = {"vocab_size": 400, "special_tokens": SPECIAL, "show_progress": False}
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(initial_alphabet=alphabet, **settings)
    elif kind == "words":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**settings)
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **settings)
    else:  # tokens reach over spaces
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(**settings)
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("kind", ["bytes", "words", "unigram"])
def test_what_is_kept_of_a_shortened_text_is_what_is_kept_of_the_whole(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_index.data.tokens._LONG", 1)
    tokenizer = tokenizer_of(kind)
    assert splits_at_spaces(tokenizer)
    shorter = 0
    for seed in range(60):
        drawn = random.Random(seed)
        parts = [text_of(100 + 10 * seed + i, drawn.choice([3, 40, 400])) for i in range(5)]
        edges = np.cumsum([0, *map(len, parts)]).tolist()
        spans = [(edges[i], edges[i + 1]) for i in range(5) if drawn.random() < 0.5]
        item = Rendered("<s>" * (seed % 2) + "".join(parts), spans)
        if seed % 2:
            item = Rendered(item.text, [(start + 3, end + 3) for start, end in spans])
        max_length = drawn.choice([3, 7, 30])
        short = shortened(item, max_length)
        shorter += len(short.text) < len(item.text)
        tokens = tokenise(tokenizer, [("whole", item), ("short", short)])
        for side in TRUNCATIONS:
            whole, found = (cut(found, max_length, side, 1) for found in tokens)  # type: ignore[arg-type]
            assert whole.ids.tolist() == found.ids.tolist(), (seed, side)
            assert whole.scored.tolist() == found.scored.tolist(), (seed, side)
    assert shorter > 30


def test_where_tokens_reach_over_spaces_all_is_tokenised() -> None:
    assert not splits_at_spaces(tokenizer_of("anything"))


ROWS: dict[str, Callable[[str], tuple[Row, FormatConfig]]] = {
    "prompt": lambda text: ({"prompt": text, "response": " ab"}, FormatConfig()),
    "response": lambda text: ({"prompt": "ab", "response": text}, FormatConfig()),
    "text": lambda text: ({"text": text}, FormatConfig(text_field="text")),
    "chat": lambda text: (
        {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": "aa bb"},
            ]
        },
        FormatConfig(messages_field="messages", chat_template=CHATML),
    ),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("side", TRUNCATIONS)
def test_a_long_row_is_the_same_sample_and_costs_no_more_tokens(
    kind: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_of(0, 3000)
    counted: list[int] = []

    def sample() -> Sample | str:
        row, config = ROWS[kind](text)
        config = FormatConfig(**{**_settings(config), "truncate": side})
        formatter = Formatter(tokenizer_of("bytes"), config, 40)
        joined = formatter._tokens

        def noted(texts: Any) -> Any:
            for tokens in joined(texts):
                counted.append(len(tokens.ids))  # type: ignore[union-attr]
                yield tokens

        monkeypatch.setattr(formatter, "_tokens", noted)
        try:
            return formatter.samples([("f:1", row)])[0]
        except formatter_module.RowError as error:
            return str(error)

    short = sample()
    monkeypatch.setattr(formatter_module, "splits_at_spaces", lambda tokenizer: False)
    whole = sample()
    if isinstance(whole, str) or isinstance(short, str):
        assert short == whole
    else:
        assert short.input_ids.tolist() == whole.input_ids.tolist()
        assert short.scored.tolist() == whole.scored.tolist()
        assert short.truncated and whole.truncated and short.key == whole.key
    assert counted[0] < 700 < 3000 < counted[1]


def _settings(config: FormatConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__slots__}


def test_the_cost_of_marking_does_not_grow_with_spans_times_tokens() -> None:
    text = "ab " * 30_000
    item = Rendered(text, [(start, start + 2) for start in range(0, len(text), 3)])
    start = time.process_time()
    (tokens,) = tokenise(tokenizer_of("words"), [("f:1", item)])
    assert time.process_time() - start < 5  # each span against each token: a minute
    assert tokens.scored.all()  # type: ignore[union-attr]

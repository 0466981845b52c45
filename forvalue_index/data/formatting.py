"""Rows to samples: which text a row holds, its tokens, and which of them are scored.

Knows the tokenizer only as something that turns text into ids; knows no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from forvalue_index.config import FormatConfig
from forvalue_index.errors import InputError, RowError
from forvalue_index.records import Row, Sample


class Tokenizer(Protocol):
    """The little that is asked of a Hugging Face tokenizer."""

    eos_token_id: int | None

    def __call__(
        self, text: list[str], *, add_special_tokens: bool, return_attention_mask: bool
    ) -> dict[str, list[list[int]]]:
        """Returns the token ids of each text under "input_ids"."""


def content_hash(row: Row, source: str = "row") -> str:
    """Returns the hash of a row's content, 32 hex digits: equal rows, equal hashes.

    Every field counts, their order does not.

    Raises:
        RowError: the row holds something that JSON has no form for.
    """
    try:
        text = json.dumps(row, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(source, f"cannot be kept as JSON ({error})") from None
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def texts_of(row: Row, source: str, config: FormatConfig) -> tuple[str, str]:
    """Returns the prompt and the response of a row; the prompt is "" for plain text.

    Raises:
        RowError: a field is missing, holds no text, or the scored text is empty.
    """
    if config.text_field is not None:
        return "", _text(row, config.text_field, source, may_be_empty=False)
    prompt = _text(row, config.prompt_field, source, may_be_empty=True)
    return prompt, _text(row, config.response_field, source, may_be_empty=False)


def key_of(row: Row, source: str, config: FormatConfig) -> str:
    """Returns the row's own key, or its content hash when the index has no key field."""
    if config.key_field is None:
        return content_hash(row, source)
    return _text(row, config.key_field, source, may_be_empty=False)


def _text(row: Row, field: str, source: str, *, may_be_empty: bool) -> str:
    if field not in row:
        there = ", ".join(row) or "none"
        raise RowError(source, f"no field {field!r}; the row's fields are: {there}")
    value = row[field]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = json.dumps(value)
    if not isinstance(value, str):
        raise RowError(source, f"field {field!r} is {type(value).__name__}, not text")
    if not may_be_empty and not value:
        raise RowError(source, f"field {field!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(source, f"field {field!r} holds half a surrogate pair, not text") from None
    return value


class Formatter:
    """Makes samples of rows with one tokenizer and one configuration."""

    def __init__(self, tokenizer: Tokenizer, config: FormatConfig, max_length: int) -> None:
        if max_length < 2:
            raise InputError(f"max length is {max_length}, but scoring takes at least 2 tokens")
        if config.add_eos and tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end-of-sequence token to add")
        self._tokenizer = tokenizer
        self._config = config
        self._max_length = max_length

    def samples(self, rows: Sequence[tuple[str, Row]]) -> list[Sample]:
        """Returns the samples of `rows`, in order; the texts are tokenised in one call.

        The row is the prompt's tokens followed by the response's, nothing added. What is over the
        maximum length is cut off: first from the start of the prompt, of which one token stays,
        then from the end of the response; so something is always left to score.

        Raises:
            RowError: a row without usable text.
        """
        pairs = [texts_of(row, source, self._config) for source, row in rows]
        ids = self._tokenize([text for pair in pairs for text in pair])
        return [
            self._sample(source, row, ids[2 * i], ids[2 * i + 1])
            for i, (source, row) in enumerate(rows)
        ]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        return encoded["input_ids"]

    def _sample(self, source: str, row: Row, prompt: list[int], response: list[int]) -> Sample:
        if not response:
            raise RowError(source, "the response has no tokens, so there is nothing to score")
        if self._config.add_eos:
            assert self._tokenizer.eos_token_id is not None
            response = [*response, self._tokenizer.eos_token_id]
        if not prompt and len(response) < 2:
            raise RowError(source, "one token without a prompt before it: nothing to score")
        room = self._max_length
        truncated = len(prompt) + len(response) > room
        response = response[: room - min(len(prompt), 1)]
        prompt = prompt[max(len(prompt) + len(response) - room, 0) :]
        scored = np.zeros(len(prompt) + len(response), dtype=np.bool_)
        scored[max(len(prompt), 1) :] = True  # token 0 is predicted by nothing
        return Sample(
            key=key_of(row, source, self._config),
            content_hash=content_hash(row),
            row=row,
            input_ids=np.array([*prompt, *response], dtype=np.int32),
            scored=scored,
            truncated=truncated,
            source=source,
        )


def query_format(config: FormatConfig) -> FormatConfig:
    """Returns the configuration for queries: the same, but a query needs no key of its own."""
    return replace(config, key_field=None)

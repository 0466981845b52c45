"""Rows of a sequence classifier to samples: a text or a pair of texts, and the class they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from forvalue_index.config import FormatConfig
from forvalue_index.data.fields import label_of
from forvalue_index.data.formatter import Formatter, Reject, left_out
from forvalue_index.data.identity import identity
from forvalue_index.data.image_text import Vision
from forvalue_index.data.preference_formatter import PreferenceFormatter
from forvalue_index.data.preferences import chosen_format, rejected_format
from forvalue_index.data.row_text import texts_of
from forvalue_index.data.token_formatter import TokenFormatter
from forvalue_index.data.tokens import one_thread_at_a_time
from forvalue_index.errors import InputError, RowError
from forvalue_index.records import Row, Sample


class ClassFormatter:
    """Makes samples of rows with one tokenizer, one configuration and the model's classes."""

    def __init__(
        self, tokenizer: Any, config: FormatConfig, max_length: int, classes: Mapping[str, int]
    ) -> None:
        """Takes a Hugging Face tokenizer, and the classes by name.

        Raises:
            InputError: the configuration is not that of a classifier's rows.
        """
        if config.label_field is None:
            raise InputError(
                "the model is a sequence classifier: name the field of the class with --label-field"
            )
        if config.is_chat or config.template is not None or config.tokens_field is not None:
            raise InputError(
                "a classifier reads plain texts, and no chats, templates and tokens: leave their "
                "options "
                "out"
            )
        self._tokenizer = tokenizer
        self._config = config
        self._max_length = max_length
        self._field = config.label_field
        self._classes = classes

    @one_thread_at_a_time
    def samples(
        self, rows: Sequence[tuple[str, Row]], reject: Reject | None = None
    ) -> list[Sample]:
        """Returns the samples of `rows`, in order.

        A text, or a pair of texts, is tokenised as the tokenizer does it for classifiers, with its
        special tokens, and cut to the maximum length at the end, of a pair the longer one first.

        Args:
            rows: rows, each after its place.
            reject: called with the error of a row that is left out, and the row; None: errors are
                raised.

        Raises:
            RowError: a row without usable text, or with a class that the model does not have.
        """
        samples = []
        for source, row in rows:
            with left_out(row, reject):
                samples.append(self._sample(source, row))
        return samples

    def _sample(self, source: str, row: Row) -> Sample:
        first, second = texts_of(row, source, self._config)
        texts = (second,) if self._config.text_field is not None else (first, second)
        label = self._label(row, source)
        encoded = self._tokenizer(*texts, return_attention_mask=False, verbose=False)
        truncated = len(encoded["input_ids"]) > self._max_length
        if truncated:
            encoded = self._tokenizer(
                *texts,
                truncation=True,
                max_length=self._max_length,
                return_attention_mask=False,
            )
        ids = np.array(encoded["input_ids"], dtype=np.int32)
        if not len(ids):
            raise RowError(source, "the text has no tokens: leave the row out")
        types = encoded.get("token_type_ids")
        key, content = identity(row, source, self._config)
        return Sample(
            key=key,
            content_hash=content,
            row=row,
            input_ids=ids,
            scored=np.zeros(len(ids), dtype=np.bool_),
            truncated=truncated,
            source=source,
            label=label,
            token_types=None if types is None else np.array(types, dtype=np.int32),
        )

    def _label(self, row: Row, source: str) -> int:
        """Returns the class of a row: by name, or, if it is no name, by number.

        Where classes are called by numbers that are not their own, every number is a name.

        Raises:
            RowError: the model has no such class.
        """
        value = label_of(row, source, self._field)
        if str(value) in self._classes:
            return self._classes[str(value)]
        names = sorted(self._classes, key=self._classes.__getitem__)
        misleading = any(_is_number(name) and int(name) != self._classes[name] for name in names)
        if isinstance(value, str) and _is_number(value):  # a CSV file has nothing but text
            value = int(value)
        if isinstance(value, int) and value in self._classes.values() and not misleading:
            return value
        known = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        how = " (names, since they are numbers: give no places)" if misleading else ""
        raise RowError(
            source, f"{value!r} is not one of the model's {len(names)} classes: {known}{how}"
        )


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 20


RowFormatter: TypeAlias = Formatter | ClassFormatter | PreferenceFormatter
"""What makes samples of the rows of a model, whatever it predicts."""


def row_formatter(
    tokenizer: Any,
    config: FormatConfig,
    max_length: int,
    vocabulary: int | None,
    classes: Mapping[str, int] | None,
    vision: Vision | None = None,
) -> RowFormatter:
    """Returns what makes samples of rows: of a classifier's, where the model has classes.

    Raises:
        InputError: the configuration is not that of the model's rows, or its tokenizer lacks what
            is asked for.
    """
    if classes is not None:
        return ClassFormatter(tokenizer, config, max_length, classes)
    if config.label_field is not None:
        raise InputError(
            "a label field is for sequence classifiers, and the model is not one: leave it out, "
            "or give --task classification to read the model as one"
        )
    if config.tokens_field is not None:
        return TokenFormatter(tokenizer, config, max_length, vocabulary)
    if config.rejected_field is not None or config.desirable_field is not None:
        settings = max_length, vocabulary, vision
        chosen, other = chosen_format(config), rejected_format(config)
        return PreferenceFormatter(
            Formatter(tokenizer, chosen, *settings),
            None if other is None else Formatter(tokenizer, other, *settings),
            config,
        )
    return Formatter(tokenizer, config, max_length, vocabulary, vision)

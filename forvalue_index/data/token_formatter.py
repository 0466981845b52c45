"""Rows of tokens to samples: nothing is rendered and nothing is tokenised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from forvalue_index.config import FormatConfig
from forvalue_index.data.formatter import Formatter, Reject, left_out
from forvalue_index.data.images import pictures_of
from forvalue_index.data.token_rows import given_tokens
from forvalue_index.errors import RowError
from forvalue_index.records import Row, Sample


class TokenFormatter(Formatter):
    """Makes samples of rows that hold their tokens."""

    def __init__(
        self, tokenizer: Any, config: FormatConfig, max_length: int, vocabulary: int | None = None
    ) -> None:
        """Takes what `Formatter` does.

        Raises:
            InputError: the maximum length leaves nothing to score.
        """
        plain = replace(config, messages_field=None, chat=False, eos=None)
        super().__init__(tokenizer, plain, max_length, vocabulary)
        self._config = config  # the whole of it decides a row's key
        assert config.tokens_field is not None
        self._field = config.tokens_field

    def samples(
        self, rows: Sequence[tuple[str, Row]], reject: Reject | None = None
    ) -> list[Sample]:
        """Returns the samples of `rows`, in order.

        Raises:
            RowError: a row without tokens, or with nothing to score.
        """
        samples = []
        for source, row in rows:
            with left_out(row, reject):
                if pictures_of(row, source, self._config):
                    raise RowError(source, "it has tokens and images: only one of them can be read")
                samples.append(self._sample(source, row, given_tokens(row, source, self._field)))
        return samples

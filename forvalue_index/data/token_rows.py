"""Rows that hold token ids, as trainers keep them: which of them count, and packed rows.

    packed row -> a row for each of its samples -> ids, some scored -> sample

What counts is said by the fields beside the ids, as trainers name them: "labels" (-100: not
scored), "completion_mask", "assistant_masks". "attention_mask" tells padding. Knows no tokenizer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.config import FormatConfig
from forvalue_index.data.fields import require_field
from forvalue_index.data.rows import Outcome, Rows
from forvalue_index.data.tokens import Tokens
from forvalue_index.errors import RowError
from forvalue_index.records import Row

IGNORED = -100  # the label of a token that is not scored
MASKS = ("completion_mask", "assistant_masks")
PER_TOKEN = ("labels", *MASKS, "attention_mask")
PACKING = ("position_ids", "seq_lengths")
"""Fields that tell where the samples of a packed row begin."""
LARGEST_ID = 2**31 - 1

log = logging.getLogger(__name__)


def given_tokens(row: Row, source: str, field: str) -> Tokens:
    """Returns the tokens of a row that has them, without padding.

    All are scored that no label and no mask leaves out.

    Raises:
        RowError: there are none, a mask or labels do not fit to them, or none is scored.
    """
    ids = _numbers(row, field, source)
    if not len(ids):
        raise RowError(source, f"field {field!r} is empty")
    if ids.min() < 0 or ids.max() > LARGEST_ID:
        wrong = next(int(id) for id in ids if not 0 <= id <= LARGEST_ID)
        raise RowError(source, f"field {field!r} holds {wrong}, which is no token id")
    scored = np.ones(len(ids), dtype=np.bool_)
    if row.get("labels") is not None:
        scored &= _labelled(_beside(row, "labels", ids, source), ids, source)
    for name in MASKS:
        if row.get(name) is not None:
            scored &= _mask(_beside(row, name, ids, source), name, source)
    if row.get("attention_mask") is not None:
        real = _mask(_beside(row, "attention_mask", ids, source), "attention_mask", source)
        places = np.flatnonzero(real)
        if not len(places) or not real[places[0] : places[-1] + 1].all():
            raise RowError(source, "field 'attention_mask' leaves out tokens between others")
        kept = slice(places[0], places[-1] + 1)
        ids, scored = ids[kept], scored[kept]
    return Tokens(ids.astype(np.int32), scored)


def tokens_in_words(row: Row, field: str) -> str:
    """Returns what is shown of a row that has nothing but tokens."""
    return f"{field} {json.dumps(row.get(field))}"


def parted(rows: Rows, config: FormatConfig) -> Rows:
    """Returns rows in which each sample of a packed row is a row, if rows hold tokens."""
    return rows if config.tokens_field is None else UnpackedRows(rows, config)


def without_tokens(config: FormatConfig) -> FormatConfig:
    """Returns how the texts are read that a row has beside its tokens."""
    if config.tokens_field is None:
        return config
    ignored = *config.ignored_fields, config.tokens_field, *PER_TOKEN, *PACKING
    return replace(config, tokens_field=None, ignored_fields=ignored)


def query_format(row: Row, config: FormatConfig) -> FormatConfig:
    """Returns the format of queries like this one: from its text, if it has no tokens."""
    if config.tokens_field is None or config.tokens_field in row:
        return config
    return replace(config, tokens_field=None)


class UnpackedRows(Rows):
    """Rows of tokens, those that hold several samples split at the samples' starts.

    A sample of a packed row is placed as "place:1", "place:2" ...; one of which nothing is scored
    taught the model nothing, and is left out.
    """

    def __init__(self, rows: Rows, config: FormatConfig) -> None:
        self.allow_remote = rows.allow_remote
        self._rows = rows
        self._config = config
        self._told = False

    def outcomes(self) -> Iterator[Outcome]:
        """Yields what stands at each place."""
        empty = 0
        for place, row in self._rows.outcomes():
            try:
                samples = [] if isinstance(row, RowError) else self._samples(row, place)
                if len(samples) < 2:
                    yield place, samples[0] if samples else row
                    continue
                scored = [self._scores(sample, place) for sample in samples]
            except RowError as error:
                yield place, error
                continue
            empty += scored.count(False)
            for number, (sample, counts) in enumerate(zip(samples, scored, strict=True), start=1):
                if counts:
                    yield f"{place}:{number}", sample
        if empty and not self._told:
            self._told = True
            log.warning("%d samples of packed rows are left out: none of their tokens count", empty)

    def _scores(self, row: Row, source: str) -> bool:
        assert self._config.tokens_field is not None
        return bool(given_tokens(row, source, self._config.tokens_field).scored[1:].any())

    def _samples(self, row: Row, source: str) -> Sequence[Row]:
        """Returns a row for each sample of a row."""
        field = self._config.tokens_field
        assert field is not None
        starts = _starts(row, source, field)
        if starts is None:
            return [row]
        rest = {name: value for name, value in row.items() if name not in PACKING}
        if len(starts) == 1:
            return [rest]
        if self._config.key_field is not None:
            raise RowError(
                source,
                f"it is packed: {len(starts)} samples in one row, which cannot all have its key; "
                "leave out --key-field",
            )
        ids = _numbers(row, field, source)
        ends = [*starts[1:], len(ids)]
        values = {
            name: _beside(row, name, ids, source)
            for name in (field, *PER_TOKEN)
            if row.get(name) is not None
        }
        if "attention_mask" in values:  # some number the samples in it
            values["attention_mask"] = (values["attention_mask"] > 0).astype(np.int64)
        return [
            rest | {name: value[start:end].tolist() for name, value in values.items()}
            for start, end in zip(starts, ends, strict=True)
            if "attention_mask" not in values or values["attention_mask"][start:end].any()
        ]


def _starts(row: Row, source: str, field: str) -> list[int] | None:
    """Returns where the samples of a packed row begin; None: it does not say.

    Raises:
        RowError: what it says cannot be.
    """
    if row.get("seq_lengths") is not None:
        ids, lengths = _numbers(row, field, source), _numbers(row, "seq_lengths", source)
        if not len(lengths) or lengths.min() < 1 or int(lengths.sum()) != len(ids):
            raise RowError(
                source,
                f"it is packed, but its seq_lengths sum to {int(lengths.sum())}, and it has "
                f"{len(ids)} tokens",
            )
        return [0, *np.cumsum(lengths)[:-1].tolist()]
    if row.get("position_ids") is not None:
        ids = _numbers(row, field, source)
        places = _beside(row, "position_ids", ids, source)
        starts = np.flatnonzero(places == 0)
        counted = np.arange(len(places)) - np.maximum.accumulate(
            np.where(places == 0, np.arange(len(places)), 0)
        )
        if not len(starts) or starts[0] != 0 or (places != counted).any():
            raise RowError(
                source,
                "it is packed in a way that is not known: its position_ids do not count from 0 "
                "in each sample",
            )
        listed: list[int] = starts.tolist()
        return listed
    mask = row.get("attention_mask")
    if isinstance(mask, list) and any(value not in (0, 1) for value in mask):
        numbers = _numbers(row, "attention_mask", source)
        return [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist()]
    return None


def _labelled(labels: NDArray[np.int64], ids: NDArray[np.int64], source: str) -> NDArray[np.bool_]:
    """Returns which tokens have a label.

    Raises:
        RowError: a label is not the token itself.
    """
    scored: NDArray[np.bool_] = labels != IGNORED
    other = np.flatnonzero(scored & (labels != ids))
    if len(other):
        place = int(other[0])
        raise RowError(
            source,
            f"label {int(labels[place])} at token {place}, which is {int(ids[place])}: a label is "
            f"the token itself (not the next one), or {IGNORED}",
        )
    return scored


def _mask(values: NDArray[np.int64], name: str, source: str) -> NDArray[np.bool_]:
    if ((values != 0) & (values != 1)).any():
        raise RowError(source, f"field {name!r} is not a mask of 0 and 1")
    mask: NDArray[np.bool_] = values == 1
    return mask


def _beside(row: Row, name: str, ids: NDArray[np.int64], source: str) -> NDArray[np.int64]:
    """Returns a field that has a number for each token."""
    values = _numbers(row, name, source)
    if len(values) != len(ids):
        raise RowError(
            source, f"field {name!r} has {len(values)} numbers, but there are {len(ids)} tokens"
        )
    return values


def _numbers(row: Row, name: str, source: str) -> NDArray[np.int64]:
    """Returns a field's whole numbers; as JSON text, where the file knows no lists."""
    require_field(row, name, source)
    value: Any = row[name]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError(source, f"field {name!r} is text, not a list of numbers") from None
    whole = isinstance(value, list) and all(isinstance(item, int) for item in value)
    if not whole:
        raise RowError(source, f"field {name!r} is not a list of whole numbers")
    try:
        return np.array(value, dtype=np.int64)
    except OverflowError:
        largest = max(value, key=abs)
        raise RowError(source, f"field {name!r} holds {largest}, which is no token id") from None

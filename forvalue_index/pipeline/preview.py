"""The first rows as a model will see them, before anything is run: only its tokenizer is loaded."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from forvalue_index.config import FormatConfig, ModelConfig
from forvalue_index.data.field_guess import format_of_rows
from forvalue_index.data.field_use import read_as, unread
from forvalue_index.data.images import with_images
from forvalue_index.data.labels import RowFormatter, row_formatter
from forvalue_index.data.notes import joined_note, reading_notes
from forvalue_index.data.roles import roles_note, roles_of
from forvalue_index.data.sources import Data, open_rows
from forvalue_index.data.token_rows import parted
from forvalue_index.data.token_text import pieces_of
from forvalue_index.errors import RowError
from forvalue_index.model.tokenizer import TextSide, load_text_side, max_length


@dataclass(frozen=True, slots=True)
class Preview:
    """A row's tokens, as they will be."""

    source: str  # where the row is
    tokens: list[str]  # joined, they are the text
    ids: list[int]
    scored: list[bool]
    cut: int  # tokens beyond the maximum length, which are left out
    read: dict[str, str]  # the fields that are read, and what each is read as
    unused: list[str]  # fields that hold something and are not read
    notes: list[str]  # what is added to the text, and what else to know, a sentence each
    rejected: int | None = None  # where a text begins whose influence is subtracted


def preview(
    data: Data,
    model: str | ModelConfig,
    *,
    n: int = 3,
    format: FormatConfig | None = None,
) -> Iterator[Preview | RowError]:
    """Yields the first n rows as the model will see them, or why a row cannot be used.

    Args:
        data: as in `InfluenceIndex.build`.
        model: a path, a hub id, or how to read one; its weights are not read.
        n: how many rows.
        format: how a row becomes tokens; default: guessed from the names of the first row's fields.

    Raises:
        InputError: a file does not exist, or names do not tell which fields to read.
        ModelError: the tokenizer cannot be loaded, or the model has fewer positions than wanted.
    """
    rows = open_rows(data)
    format = format_of_rows(rows, format)
    rows = parted(with_images(rows, format), format)
    side = load_text_side(ModelConfig(model) if isinstance(model, str) else model)
    cut, whole = _formatter(side, format), _formatter(side, format, sys.maxsize)
    notes = reading_notes(side.tokenizer, format)
    joined = list[str]()  # of the first row that has one
    for source, row in itertools.islice(rows.outcomes(), n):
        try:
            if isinstance(row, RowError):
                raise row
            [sample], [uncut] = cut.samples([(source, row)]), whole.samples([(source, row)])
        except RowError as error:
            yield error
            continue
        if (note := joined_note((source, row), format)) is not None and not joined:
            joined.append(note)
        roles = roles_note(dict.fromkeys(roles_of(row, format)))
        ids = sample.input_ids.tolist()
        yield Preview(
            source=source,
            tokens=pieces_of(side.tokenizer, sample),
            ids=ids,
            scored=sample.scored.tolist(),
            cut=len(uncut.input_ids) - len(ids),
            read=read_as(row, format),
            unused=unread(row, format),
            notes=[*notes, *joined, *filter(None, [roles])],
            rejected=sample.rejected,
        )


def _formatter(side: TextSide, format: FormatConfig, length: int | None = None) -> RowFormatter:
    format = replace(format, key_field=None)  # a key is not looked at
    length = length or max_length(side.max_positions, format.max_length)
    return row_formatter(side.tokenizer, format, length, side.vocabulary, side.classes, side.vision)

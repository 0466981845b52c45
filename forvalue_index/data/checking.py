"""A pass over all rows before the first is encoded, and the rows that are left to encode.

What cannot be used is found before a model is loaded; knows no tokenizer and no catalogue.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from forvalue_index.config import FormatConfig
from forvalue_index.data.formatting import content_hash, key_of, texts_of
from forvalue_index.data.readers import Rows
from forvalue_index.errors import InputError, KeyConflictError
from forvalue_index.records import Row


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """What a pass over the rows found."""

    contents: dict[str, str]  # key -> content hash, in the order of the rows
    repeated: int  # rows that are the same as another in every field


def check_rows(
    rows: Rows, format: FormatConfig, progress: Callable[[str, int, int, int], None] | None
) -> CheckedRows:
    """Returns keys and contents of all rows, once each of them can be used.

    Rows that are the same in every field are one sample when the content is the key; a key of the
    user's own may stand only once.

    Raises:
        InputError: there are no rows.
        RowError: a row is not JSON, lacks a field, or its scored text is empty.
        KeyConflictError: a key of the user's own stands twice.
    """
    contents: dict[str, str] = {}
    places: dict[str, str] = {}
    number = 0
    for number, (source, row) in enumerate(rows, start=1):
        texts_of(row, source, format)
        content = content_hash(row, source)
        key = key_of(row, source, format)
        if format.key_field is not None:
            if key in contents:
                raise KeyConflictError(f"{source}: key {key!r} stands at {places[key]} already")
            places[key] = source
        contents[key] = content
        if progress is not None and number % 1000 == 0:
            progress("reading", number, 0, 0)
    if not number:
        raise InputError("there are no rows in the data")
    return CheckedRows(contents, number - len(contents))


def chunks_of(
    rows: Rows, missing: set[str], format: FormatConfig, size: int
) -> Iterator[list[tuple[str, Row]]]:
    """Yields the rows whose keys are in `missing`, each once, `size` at a time; empties it."""

    def needed() -> Iterator[tuple[str, Row]]:
        for source, row in rows:
            if not missing:
                return
            key = key_of(row, source, format)
            if key in missing:
                missing.remove(key)
                yield source, row

    rest = needed()
    while chunk := list(itertools.islice(rest, size)):
        yield chunk

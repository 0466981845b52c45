"""The text in the fields of a row.

Knows no tokenizer and no conversation.
"""

from __future__ import annotations

import json

from forvalue_index.errors import RowError
from forvalue_index.records import Row


def check_names(row: Row, source: str) -> None:
    """Checks that the names of a row's fields are text, as they are in every file.

    Raises:
        RowError: one is not.
    """
    for name in row:
        if not isinstance(name, str):
            kind = type(name).__name__
            raise RowError(source, f"the name of a field must be text, but {name!r} is {kind}")


def label_of(row: Row, source: str, field: str) -> str | int:
    """Returns the class of a classifier's row, as its name or number stands there.

    Raises:
        RowError: there is none.
    """
    value = row.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return text_in(row, field, source, may_be_empty=False)


def text_in(row: Row, field: str, source: str, *, may_be_empty: bool) -> str:
    """Returns the text in a field of a row; a number is its text.

    Raises:
        RowError: there is no such field, it holds no text, or the text is empty and may not be.
    """
    if field not in row:
        there = ", ".join(row) or "none"
        raise RowError(source, f"no field {field!r}; the row's fields are: {there}")
    value = row[field]
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            value = json.dumps(value)
        except ValueError as error:  # too many digits
            raise RowError(source, f"field {field!r} cannot be read as text ({error})") from None
    if not isinstance(value, str):
        kind = type(value).__name__
        if isinstance(value, dict) and value.keys() == {"bytes"}:
            kind = "bytes"  # as the reader of a table writes them
        raise RowError(source, f"field {field!r} is {kind}, not text")
    if not may_be_empty and not value:
        raise RowError(source, f"field {field!r} is empty")
    check_text(value, f"field {field!r}", source)
    return value


def check_text(text: str, what: str, source: str) -> None:
    """Checks that a text can be written as UTF-8; `what` it is, for the message.

    Raises:
        RowError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Python makes these of bytes that are not UTF-8, such as in a command's arguments.
        byte = "\udc80" <= text[error.start] <= "\udcff"
        wrong = "is not UTF-8 text" if byte else "holds half a surrogate pair, not text"
        raise RowError(source, f"{what} {wrong}") from None

"""What is in a field of a row: text, or a list.

Knows no tokenizer and no conversation.
"""

from __future__ import annotations

import json
from typing import Any

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


def require_field(row: Row, field: str, source: str) -> None:
    """Checks that a row has a field.

    Raises:
        RowError: it has not.
    """
    if field not in row:
        there = ", ".join(row) or "none"
        raise RowError(source, f"no field {field!r}; the row's fields are: {there}")


def text_in(row: Row, field: str, source: str, *, may_be_empty: bool) -> str:
    """Returns the text in a field of a row; a number is its text.

    Raises:
        RowError: there is no such field, it holds no text, or the text is empty and may not be.
    """
    require_field(row, field, source)
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


def listed(row: Row, field: str, source: str, what: str) -> list[Any]:
    """Returns the list in a field of a row, which may be written as JSON; it is not empty.

    Raises:
        RowError: there is no such field, or it holds no list of `what`, or an empty one.
    """
    require_field(row, field, source)
    value = row[field]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError(source, f"field {field!r} is text, not a list of {what}") from None
    if not isinstance(value, list) or not value:
        found = "is empty" if value == [] else f"is {type(value).__name__}, not a list of {what}"
        raise RowError(source, f"field {field!r} {found}")
    return value


def is_empty(value: Any) -> bool:
    """Returns whether a value says nothing: null, or a text, list or object without anything."""
    return value is None or value == "" or value == [] or value == {}


def without_nulls(value: Any) -> Any:
    """Returns a value without the fields of objects that are null, at every depth.

    Arrow, and so Parquet and `datasets`, gives every object of a column the fields of all.
    """
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value

"""Which rows are the same: the hash of a row's content, and its key.

Knows no tokenizer and no conversation.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from forvalue_index.config import FormatConfig
from forvalue_index.data.fields import check_text, text_in, without_nulls
from forvalue_index.data.images import bare
from forvalue_index.errors import RowError
from forvalue_index.records import Row

LARGEST_ROW = 1 << 28  # characters of JSON, without images: databases keep less than 1 GB
DEEPEST = 100
"""Levels of lists and objects: what is stored can be read again, however deep the reader's calls
are, and databases can look into it."""
LONGEST_KEY = 2000  # bytes: PostgreSQL's indexes take no longer ones


def content_hash(row: Row, source: str = "row", config: FormatConfig | None = None) -> str:
    """Returns the hash of a row's content, 32 hex digits: equal rows, equal hashes.

    Every field counts, their order does not. Of an image its bytes count, not where they are. A
    null counts as no field, for some kinds of files have it where others have none.

    Args:
        row: with its images settled.
        source: where it stands.
        config: where it may have images, and the form of reading rows; None: no images, and every
            null counts.

    Raises:
        RowError: the row holds something that JSON has no form for, half a surrogate pair, or
            more than can be stored.
    """
    try:
        row = bare(row, config) if config is not None else row
        if config is not None and config.form > 1:
            row = without_nulls(row)
        text = json.dumps(row, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(source, f"cannot be stored as JSON ({error})") from None
    if len(text) > LARGEST_ROW:
        raise RowError(
            source,
            f"has {len(text):,} characters as JSON, but at most {LARGEST_ROW:,} are "
            "stored: shorten it",
        )
    if text.count("[") + text.count("{") > DEEPEST and _depth(row) > DEEPEST:
        raise RowError(
            source, f"is nested {_depth(row)} deep, but at most {DEEPEST} levels are stored"
        )
    if "\\ud" in text:  # so JSON writes a surrogate, also one of a whole pair
        for name, value in row.items():
            check_text(name, f"the name of field {name!r}", source)
            whole = json.dumps(value, ensure_ascii=False)
            check_text(whole, f"field {name!r}", source)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _depth(value: Any) -> int:
    """Returns how many lists and objects stand in each other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list | tuple)]:
        depth += 1
        level = [
            inner for item in level for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def key_of(row: Row, source: str, config: FormatConfig) -> str:
    """Returns the row's own key, or its content hash when the index has no key field."""
    if config.key_field is None:
        return content_hash(row, source, config)
    key = text_in(row, config.key_field, source, may_be_empty=False)
    if "\0" in key:
        raise RowError(source, f"key {key!r} holds a NUL, which a database cannot keep: rename it")
    if len(key.encode()) > LONGEST_KEY:
        raise RowError(
            source,
            f"key {key[:40]!r}… has {len(key.encode()):,} bytes, but at most "
            f"{LONGEST_KEY:,} can be found again: use a shorter key",
        )
    return key


def identity(row: Row, source: str, config: FormatConfig) -> tuple[str, str]:
    """Returns the row's key and its content hash."""
    content = content_hash(row, source, config)
    return (content if config.key_field is None else key_of(row, source, config)), content

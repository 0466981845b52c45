"""StoredSample <-> a row of the table `samples`, sealed by a checksum.

The checksum names the row that was changed behind the catalogue's back. A tombstone seals the
seal, so that removing need not read the row's text again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import RowMapping

from forvalue_index.catalog.schema import SampleTable
from forvalue_index.errors import CorruptIndexError, InputError
from forvalue_index.records import StoredSample

SEAL_BYTES = 16

COLUMNS = (
    SampleTable.id,
    SampleTable.key,
    SampleTable.content_hash,
    SampleTable.n_tokens,
    SampleTable.n_scored,
    SampleTable.truncated,
    SampleTable.loss,
    SampleTable.norm,
    SampleTable.removed_at,
    SampleTable.checksum,
    SampleTable.row,
)


def to_row(sample: StoredSample) -> dict[str, Any]:
    """Returns the column values of `sample` as a live row, without its segment.

    Raises:
        InputError: the key or the row holds what no database can keep.
        ValueError: the loss or the norm is not finite.
    """
    if not (math.isfinite(sample.loss) and math.isfinite(sample.norm)):
        raise ValueError(
            f"sample {sample.key!r} has loss {sample.loss} and norm {sample.norm}: not finite"
        )
    check_key(sample.key)
    values: dict[str, Any] = {
        "id": int(sample.id),
        "key": sample.key,
        "content_hash": sample.content_hash,
        "n_tokens": int(sample.n_tokens),
        "n_scored": int(sample.n_scored),
        "truncated": bool(sample.truncated),
        "loss": float(sample.loss) + 0.0,  # SQLite keeps no sign of a zero
        "norm": float(sample.norm) + 0.0,
        "row": to_json(sample.row, f"sample {sample.key!r}"),
    }
    return values | {"checksum": _checksum(values), "removed_at": None}


def from_row(row: RowMapping) -> StoredSample:
    """Returns the sample of a row that was read with COLUMNS.

    Raises:
        CorruptIndexError: the row is not what was committed.
    """
    values: dict[str, Any] = {str(name): value for name, value in row.items()}
    removed_at, checksum = values.pop("removed_at"), values.pop("checksum")
    expected = _checksum(values)
    if removed_at is not None:
        expected = seal(expected, removed_at)
    if checksum != expected:
        raise CorruptIndexError(
            f"the catalogue's row of sample {values['id']} (key {values['key']!r}) was changed: "
            f"its checksum is {expected}, but {checksum} was committed; restore the catalogue "
            "from a copy, or build again"
        )
    return StoredSample(**(values | {"row": json.loads(values["row"])}))


def check_key(key: str) -> str:
    """Returns the key, after a check that a database can keep it.

    Raises:
        InputError: it holds a character that a database cannot keep.
    """
    if "\0" in key or not _is_text(key):
        raise InputError(f"key {key!r} holds a character that is not valid text: rename it")
    return key


def seal(checksum: str, removed_at: str) -> str:
    """Returns the checksum of a tombstone, from that of the live row."""
    return digest(checksum, removed_at)


def digest(*texts: str | None) -> str:
    """Returns 128 bits of BLAKE2b over texts, in hex; other texts never join to the same input.

    What is no text, as a damaged catalogue may have, has a digest of its own.
    """
    data = json.dumps(texts, default=repr).encode()
    return hashlib.blake2b(data, digest_size=SEAL_BYTES).hexdigest()


def to_json(value: dict[str, Any], what: str) -> str:
    """Returns `value` as JSON text; `what` names it in the error.

    Raises:
        InputError: it holds something that JSON has no word for.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} cannot be stored as JSON: {error}; write it as text") from error
    # Half of a surrogate pair is valid in JSON text but not in UTF-8.
    return text if _is_text(text) else json.dumps(value, separators=(",", ":"))


def now() -> str:
    """Returns the time as the catalogue writes it: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _checksum(values: dict[str, Any]) -> str:
    return digest(*(repr(values[column.key]) for column in COLUMNS if column.key in values))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_keys(keys: Iterable[str]) -> list[str]:
    """Returns the keys, each once; raises InputError if one cannot be a key."""
    return [check_key(key) for key in dict.fromkeys(keys)]


def as_ints(values: Iterable[Any]) -> list[int]:
    """Returns Python's integers: a driver knows no numpy ones."""
    return [int(value) for value in values]

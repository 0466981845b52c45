"""A pass over all rows before the first is encoded, and the rows that are left to encode.

What cannot be used is found before a model is loaded; knows no tokenizer and no catalogue.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from forvalue_index.config import ON_ERROR, FormatConfig
from forvalue_index.data.field_use import unread
from forvalue_index.data.identity import identity, key_of
from forvalue_index.data.roles import roles_note, roles_of
from forvalue_index.data.row_keys import RowKeys
from forvalue_index.data.row_text import texts_of
from forvalue_index.data.rows import Rows
from forvalue_index.errors import InputError, KeyConflictError, RowError
from forvalue_index.records import Row
from forvalue_index.system.files import atomic_write
from forvalue_index.system.temporary import keeping

log = logging.getLogger(__name__)

_REJECTED = "the list of unusable rows"
_PLACE = re.compile(r"(?:(?P<file>.*):)?(?:row )?(?P<number>\d+)", re.DOTALL)


class Rejects:
    """The rows that cannot be used: the first stops the work, or each is noted and passed over.

    Use it in a `with` block: what is noted is in a temporary file until it is saved.
    """

    def __init__(self, on_error: str) -> None:
        if on_error not in ON_ERROR:
            raise InputError(f"on_error {on_error!r} is not one of {', '.join(ON_ERROR)}")
        self.skip = on_error == "skip"
        self.first: RowError | None = None
        self._places: set[str] = set()
        with keeping(_REJECTED):
            self._file = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (closed with the block)

    def __enter__(self) -> Rejects:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # what is left to write finds no room
            self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, place: str) -> bool:
        return place in self._places

    def add(self, error: RowError, row: Row | None) -> None:
        """Notes why a row cannot be used, once for each place.

        Raises:
            RowError: `error`, if rows are not to be skipped.
            StorageError: there is no room for the note.
        """
        if not self.skip:
            raise error
        if error.source in self._places:
            return
        self.first = self.first or error
        self._places.add(error.source)
        found = _PLACE.fullmatch(error.source)
        assert found is not None
        note = {"file": found["file"], "line": int(found["number"]), "reason": error.reason}
        with keeping(_REJECTED):
            self._file.write(_json(note | {"row": row}) or json.dumps(note).encode())
            self._file.write(b"\n")

    def save(self, path: Path) -> None:
        """Writes the notes to a file, JSON Lines; removes an older one when there are none.

        Raises:
            OSError: the file cannot be written.
            StorageError: there is no room for the notes.
        """
        if not len(self):
            path.unlink(missing_ok=True)
            return
        with keeping(_REJECTED):
            self._file.seek(0)
        with atomic_write(path) as file:
            shutil.copyfileobj(self._file, file)


def _json(value: object) -> bytes | None:
    """Returns a value as JSON, or None: that it has no such form may be why it was rejected."""
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """What a pass over the rows found."""

    contents: RowKeys  # keys and content hashes
    repeated: int  # rows that are the same as another in every field
    unused: tuple[str, ...]  # fields that hold something and are not read, in order
    first: tuple[str, Row] | None = None  # that can be used, after its place


def check_rows(
    rows: Rows,
    format: FormatConfig,
    rejects: Rejects,
    progress: Callable[[str, int, int, int], None] | None,
) -> CheckedRows:
    """Returns keys and contents of all rows that can be used.

    Rows that are the same in every field are one sample when the content is the key; a key of the
    user's own may stand only once.

    Raises:
        InputError: there are no rows, or none can be used.
        RowError: a row is not JSON, lacks a field, or its scored text is empty, and such rows
            are not to be skipped.
        KeyConflictError: a key of the user's own stands twice, likewise.
    """
    contents = RowKeys()
    unused: dict[str, None] = {}
    roles: dict[str, None] = {}
    first: tuple[str, Row] | None = None
    number = 0
    for number, (source, row) in enumerate(rows.outcomes(), start=1):
        if progress is not None and number % 1000 == 0:
            progress("reading", number, 0, 0)
        if isinstance(row, RowError):
            rejects.add(row, None)
            continue
        try:
            texts_of(row, source, format)
            key, content = identity(row, source, format)
        except RowError as error:
            rejects.add(error, row)
            continue
        place = contents.add(key, content, source)
        if place is not None and format.key_field is not None:
            reason = f"key {key!r} already occurs at {place}"
            if not rejects.skip:
                raise KeyConflictError(f"{source}: {reason}")
            rejects.add(RowError(source, reason), row)
            continue
        unused |= dict.fromkeys(unread(row, format))
        roles |= dict.fromkeys(roles_of(row, format))
        first = first or (source, row)
    if not number:
        raise InputError("there are no rows in the data: give files that have some")
    if first is None:
        raise InputError(f"none of the {number} rows can be used; the first: {rejects.first}")
    repeated = number - len(contents) - len(rejects)
    if (note := roles_note(roles)) is not None:
        log.warning("%s", note)
    return CheckedRows(contents, repeated, tuple(unused), first)


def chunks_of(
    rows: Rows,
    take: Callable[[str], bool],
    count: int,
    format: FormatConfig,
    rejects: Rejects,
    size: int,
) -> Iterator[list[tuple[str, Row]]]:
    """Yields the rows that are wanted, `size` at a time.

    Args:
        rows: of an input that was checked.
        take: returns whether the row with a key is wanted, which it is only once.
        count: rows that are wanted: nothing is read after the last.
        format: how rows are read.
        rejects: rows that cannot be used.
        size: of a chunk.
    """

    def needed() -> Iterator[tuple[str, Row]]:
        left = count
        for source, row in rows.outcomes():
            if not left:
                return
            if isinstance(row, RowError) or source in rejects:
                continue
            if take(key_of(row, source, format)):
                left -= 1
                yield source, row

    rest = needed()
    while chunk := list(itertools.islice(rest, size)):
        yield chunk

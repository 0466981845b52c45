"""Files of rows. A source can be read any number of times; nothing is held in memory.

JSON Lines, one object per line. `-` is standard input, spooled to a temporary file first.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from forvalue_index.errors import InputError, RowError
from forvalue_index.records import Row

Data: TypeAlias = "Rows | str | Path | Row | Iterable[str | Path] | Iterable[Row]"
"""What a caller may give as data: a path, paths, a row, rows, or opened rows."""


class Rows(ABC):
    """Rows with the place each came from ("file:line"), the same in every iteration."""

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, Row]]:
        """Yields each row after its place."""


def open_rows(data: Data) -> Rows:
    """Returns the rows of paths, of rows in memory, or of what this function returned before.

    Raises:
        InputError: a file does not exist.
    """
    if isinstance(data, Rows):
        return data
    if isinstance(data, str | Path):
        return JsonLines([data])
    if isinstance(data, dict):
        return MemoryRows([data])
    items: list[Any] = list(data)
    if items and all(isinstance(item, str | Path) for item in items):
        return JsonLines(items)
    return MemoryRows(items)


class MemoryRows(Rows):
    """Rows that a program hands over; placed as "row 1", "row 2" …"""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for number, row in enumerate(self._rows, start=1):
            if not isinstance(row, dict):
                raise RowError(f"row {number}", f"a row is a dict, this is {type(row).__name__}")
            yield f"row {number}", row


class JsonLines(Rows):
    """The rows of some JSON Lines files, in the order given. Empty lines are passed over.

    Raises:
        InputError: a file does not exist or cannot be read (at once, before the first row).
        RowError: a line that is not a JSON object (while iterating).
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._files: list[tuple[str, Path]] = []
        self._spool: IO[bytes] | None = None
        for given in paths:
            name = str(given)
            path = Path(name)
            if name == "-":
                path = self._spool_stdin()
                name = "<stdin>"
            if not path.is_file():
                what = "is a directory, not a file" if path.is_dir() else "does not exist"
                raise InputError(f"{name} {what}")
            self._files.append((name, path))
        if not self._files:
            raise InputError("no data file was given")

    def _spool_stdin(self) -> Path:
        if self._spool is not None:
            raise InputError("standard input (-) can be given only once")
        self._spool = tempfile.NamedTemporaryFile(suffix=".jsonl")  # noqa: SIM115 (lives as long as self)
        shutil.copyfileobj(sys.stdin.buffer, self._spool)
        self._spool.flush()
        return Path(self._spool.name)

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for name, path in self._files:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield f"{name}:{number}", parse_row(line, f"{name}:{number}")


def parse_row(line: bytes, source: str) -> Row:
    """Returns the JSON object in `line`.

    Raises:
        RowError: `line` is not UTF-8, not JSON, or not an object.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise RowError(source, f"not UTF-8 text ({error.reason})") from None
    except json.JSONDecodeError as error:
        raise RowError(source, f"not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise RowError(source, f"not JSON that can be read ({error})") from None
    if not isinstance(row, dict):
        raise RowError(source, f"a row is a JSON object, this is {type(row).__name__}")
    return row


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON value")

"""Rows to a file, in the format that its name ends in: JSON Lines, CSV or Parquet.

The file is complete under its name, or not there; rows are not held in memory.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from forvalue_index.data.arrow import require_arrow
from forvalue_index.data.upload import Destination, suffix_of
from forvalue_index.errors import InputError, StorageError
from forvalue_index.records import Row
from forvalue_index.system.files import atomic_write

_PAGE = 1000  # rows in memory at a time
_FORMULA = re.compile(r"'*[=+@\t\r\n＝＋－＠-]")  # what a spreadsheet would run


def check_suffix(path: Destination) -> None:
    """Makes sure, before the work, that rows can be written to a file of this name.

    Raises:
        InputError: its suffix stands for no format.
        DependencyError: the library for Parquet is not installed.
    """
    if suffix_of(path) not in _WRITERS:
        raise InputError(f"{path}: the name of the file must end in {', '.join(_WRITERS)}")
    if suffix_of(path) == ".parquet":
        require_arrow(Path(str(path)).name)


def write_rows(path: Path, rows: Iterable[Row], *, spreadsheet: bool = True) -> int:
    """Returns how many rows were written to `path`.

    Columns of CSV and Parquet are all fields of all rows, in the order in which they first come.
    In CSV, what is not text is JSON; in Parquet a column is JSON where its values have no type in
    common.

    Args:
        path: ends in .jsonl, .csv or .parquet; replaced if it is there.
        rows: JSON values.
        spreadsheet: texts and column names of CSV that a spreadsheet would run as formulas, and
            those with apostrophes before that, get an apostrophe in front: remove one from each
            such cell to have the text back. False: for programs, as the texts are.

    Raises:
        InputError: as in `check_suffix`.
        DependencyError: the library for Parquet is not installed.
        StorageError: the file cannot be written.
    """
    check_suffix(path)
    if path.suffix == ".csv":
        return _csv(path, rows, spreadsheet)
    return _WRITERS[path.suffix](path, rows)


def write_text(path: Path, text: str) -> None:
    """Writes a text; the file is complete under its name, or not there.

    Raises:
        StorageError: the file cannot be written.
    """
    with complete(path, text=True) as out:
        out.write(text)


@contextmanager
def complete(path: Path, *, text: bool = False) -> Iterator[IO[Any]]:
    """Gives a file to write that is complete under its name after the block, or not there.

    Raises:
        StorageError: the file cannot be written; what was there stays.
    """
    try:
        with atomic_write(path, text=text) as out:
            yield out
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error


def _jsonl(path: Path, rows: Iterable[Row]) -> int:
    with complete(path, text=True) as out:
        return _lines(out, rows)


def _lines(out: IO[str], rows: Iterable[Row]) -> int:
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007 (the last one is the number of rows)
        out.write(json.dumps(row) + "\n")
    return count


def _csv(path: Path, rows: Iterable[Row], spreadsheet: bool = False) -> int:
    def cell(value: Any) -> Any:
        if spreadsheet and isinstance(value, str) and _FORMULA.match(value):
            return "'" + value
        return _json_text(value)

    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
        columns: dict[str, None] = {}
        count = _lines(spool, _noting(rows, columns))
        with complete(path, text=True) as out:
            writer = csv.writer(out)
            writer.writerow(map(cell, columns))
            for row in _again(spool):
                writer.writerow([cell(row.get(name)) for name in columns])
    return count


def _parquet(path: Path, rows: Iterable[Row]) -> int:
    pa = require_arrow(path.name)
    from pyarrow.parquet import ParquetWriter

    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
        columns: dict[str, None] = {}
        count = _lines(spool, _noting(rows, columns))
        types = {name: pa.null() for name in columns}
        for page in _pages(_again(spool)):
            for name, known in types.items():
                types[name] = _common_type(known, [row.get(name) for row in page])
        schema = pa.schema([(_utf8(name), kind or pa.string()) for name, kind in types.items()])
        with complete(path) as out, ParquetWriter(out, schema) as writer:
            for page in _pages(_again(spool)):
                values = {
                    _utf8(name): [row.get(name) if kind else _text(row.get(name)) for row in page]
                    for name, kind in types.items()
                }
                writer.write_table(pa.table(values, schema))
    return count


def _common_type(known: Any, values: list[Any]) -> Any:
    """Returns the Arrow type of a column so far; None where its values have none in common."""
    import pyarrow as pa

    if known is None:
        return None
    try:
        found = pa.array(values).type
        schemas = [pa.schema([("", kind)]) for kind in (known, found)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return None


def _noting(rows: Iterable[Row], columns: dict[str, None]) -> Iterator[Row]:
    for row in rows:
        columns.update(dict.fromkeys(row))
        yield row


def _again(spool: IO[str]) -> Iterator[Row]:
    spool.seek(0)
    return map(json.loads, spool)


def _pages(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while page := list(itertools.islice(rows, _PAGE)):
        yield page


def _json_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _text(value: Any) -> str | None:
    text = _json_text(value)
    return text and _utf8(text)


def _utf8(text: str) -> str:
    # As in CSV.
    return text.encode(errors="replace").decode()


_WRITERS: dict[str, Callable[[Path, Iterable[Row]], int]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}

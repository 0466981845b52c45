"""Rows of text files: JSON Lines, a JSON array, CSV and TSV, each also as .gz or .zst.

A file is read line by line, an array element by element; nothing is held in memory.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from forvalue_index.data.arrow import require_arrow, require_distinct
from forvalue_index.data.rows import Outcome
from forvalue_index.errors import InputError, RowError
from forvalue_index.records import Row

CHUNK = 1 << 20  # characters of a JSON array that are read at a time
LONGEST_VALUE = 2**31 - 1  # characters of a value of a CSV file
_SPACE = re.compile(r"[ \t\r\n]*")


def open_bytes(path: Path) -> IO[bytes]:
    """Returns what is in a file, unpacked if its name ends in .gz or .zst."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if suffix == ".zst":
        stream = require_arrow(path.name).input_stream(str(path), compression="zstd")
        return cast(IO[bytes], io.BufferedReader(stream))
    return path.open("rb")


def json_lines(
    path: Path, name: str, within: tuple[int, int] | None = None, before: int = 0
) -> Iterator[Outcome]:
    """Yields the rows of a JSON Lines file; empty lines are passed over.

    Args:
        path: the file.
        name: of the file, in the places of rows.
        within: only lines that start in these bytes, from the first to before the last.
        before: lines that end before the byte that precedes them.
    """
    with open_bytes(path) as file:
        start = 0
        if within is not None and within[0]:
            file.seek(within[0] - 1)
            start = within[0] - 1 + len(file.readline())  # of a line that started earlier
            before += 1
        for number, line in enumerate(file, start=before + 1):
            if within is not None and start >= within[1]:
                break
            start += len(line)
            if line.strip():
                place = f"{name}:{number}"
                try:
                    row: Row | RowError = parse_row(line, place)
                except RowError as error:
                    row = error
                yield place, row


MANY_LINES = (
    ": JSON Lines have an object on each line; an array of rows is read from a .json file, and one "
    "within an object is not: take it out"
)
"""What to do about a file that is one JSON value over many lines."""


def parse_row(line: bytes, source: str) -> Row:
    """Returns the JSON object in `line`.

    Raises:
        RowError: `line` is not UTF-8, not JSON, or not an object.
    """
    try:
        text = line.decode("utf-8-sig")
        row = json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise RowError(source, f"not UTF-8 text ({error.reason})") from None
    except json.JSONDecodeError as error:
        hint = MANY_LINES if line.strip() in (b"[", b"{") else ""
        raise RowError(source, f"not JSON ({error.msg}, column {error.colno}){hint}") from None
    except (ValueError, RecursionError) as error:
        raise RowError(source, f"not readable JSON ({error})") from None
    if not isinstance(row, dict):
        hint = MANY_LINES if isinstance(row, list) else ""
        raise RowError(source, f"a row must be a JSON object, not {type(row).__name__}{hint}")
    return row


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object of names and values; of a name that stands twice, neither is surer."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {name!r} stands twice in an object")
    return found


def json_file(path: Path, name: str) -> Iterator[Outcome]:
    """Yields the rows of a .json file: the elements of one array, or JSON Lines.

    Raises:
        InputError: it begins as an array, and is none to its end.
    """
    with open_bytes(path) as file:
        is_array = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    return _json_array(path, name) if is_array else json_lines(path, name)


def _json_array(path: Path, name: str) -> Iterator[Outcome]:
    number = 0
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig") as text:
        try:
            for number, value in enumerate(_elements(text.read), start=1):
                place = f"{name}:row {number}"
                if isinstance(value, dict):
                    yield place, value
                else:
                    reason = f"a row must be a JSON object, not {type(value).__name__}"
                    yield place, RowError(place, reason)
        except json.JSONDecodeError as error:
            raise InputError(f"{name}:row {number + 1}: not JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:  # not UTF-8 among them
            raise InputError(f"{name}:row {number + 1}: not readable JSON ({error})") from None


def _elements(read: Callable[[int], str]) -> Iterator[Any]:
    """Yields the elements of the JSON array that `read` gives, as soon as each is there."""
    decode = json.JSONDecoder(object_pairs_hook=_object).raw_decode
    buffer = ""
    while "[" not in buffer:
        buffer += read(CHUNK)
    end = buffer.index("[") + 1
    first = True
    while True:
        start = _after_space(buffer, end)
        try:
            if start == len(buffer):
                raise json.JSONDecodeError("the array does not end", buffer, start)
            if first and buffer[start] == "]":
                break
            value, end = decode(buffer, start)
            end = _after_space(buffer, end)
            if end == len(buffer):
                raise json.JSONDecodeError("the array does not end", buffer, end)
        except json.JSONDecodeError:
            more = read(max(CHUNK, len(buffer) - start))
            if not more:
                raise
            buffer, end = buffer[start:] + more, 0
            continue
        first = False
        yield value
        if buffer[end] == "]":
            start = end
            break
        if buffer[end] != ",":
            raise json.JSONDecodeError("no comma after it", buffer, end)
        end += 1
    if buffer[start + 1 :].strip() or read(CHUNK).strip():
        raise json.JSONDecodeError("text after the end of the array", buffer, start)


def _after_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    assert found is not None  # it may be empty
    return found.end()


def csv_rows(path: Path, name: str, delimiter: str = ",") -> Iterator[Outcome]:
    """Yields the rows of a CSV file whose first line names the columns; every value is text.

    Raises:
        InputError: there are no columns, two of one name, or a quote is never closed.
    """
    csv.field_size_limit(LONGEST_VALUE)
    packed = open_bytes(path)
    with io.TextIOWrapper(packed, "utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        columns: list[str] | None = None
        while True:
            place = f"{name}:{reader.line_num + 1}"
            try:
                values = next(reader, None)
            except csv.Error as error:
                if columns is None or str(error) == "unexpected end of data":
                    what = f"{error}: is there an unclosed quote?"
                    raise InputError(f"{place}: not readable CSV ({what})") from None
                yield place, RowError(place, f"not CSV ({error})")
                continue
            if values is None:
                break
            if columns is None:
                columns = _columns(values, name)
            elif values:  # not an empty line
                yield place, _record(columns, values, place)
        if columns is None:
            raise InputError(f"{name} is empty: its first line must name the columns")


def tsv_rows(path: Path, name: str) -> Iterator[Outcome]:
    """Yields the rows of a TSV file: CSV with tabs."""
    return csv_rows(path, name, "\t")


def _columns(names: list[str], name: str) -> list[str]:
    if not all(map(_is_text, names)):
        raise InputError(f"{name}:1: the names of the columns are not UTF-8 text")
    require_distinct(names, name)
    return names


def _record(columns: list[str], values: list[str], place: str) -> Row | RowError:
    if len(values) != len(columns):
        return RowError(place, f"{len(values)} values for {len(columns)} columns")
    if not all(map(_is_text, values)):
        return RowError(place, "not UTF-8 text")
    return dict(zip(columns, values, strict=True))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a byte that could not be decoded
        return False
    return True

"""Rows of tables: Parquet, Arrow, and data sets of the `datasets` library, batch by batch.

A row is kept as JSON, so what JSON has no form for gets one here (`json_value`).
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from forvalue_index.data.rows import Outcome
from forvalue_index.errors import DependencyError, InputError, RowError
from forvalue_index.records import Row

BATCH = 256  # rows that are in memory at a time, where the file allows it
UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError)
"""What Arrow raises where it cannot make sense of values."""
INSTALL = 'pip install "forvalue-index[datasets]"'


def require_arrow(name: str) -> Any:
    """Returns the module `pyarrow`, with which `name` is read or written.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DependencyError(f"{name} needs pyarrow: {INSTALL}") from None
    return pyarrow


def parquet_rows(
    path: Path, name: str, groups: Iterable[int] | None = None, before: int = 0
) -> Iterator[Outcome]:
    """Yields the rows of a Parquet file, or of some row groups, before which there are `before`.

    Raises:
        InputError: it cannot be read, or has two columns of one name.
    """
    arrow = require_arrow(name)
    with _reading(name), arrow.parquet.ParquetFile(path) as file:
        require_distinct(file.schema_arrow.names, name)
        wanted = None if groups is None else [*groups]
        yield from table_rows(file.iter_batches(BATCH, row_groups=wanted), name, before)


def parquet_groups(path: Path, name: str) -> list[tuple[int, int]]:
    """Returns the rows, and the bytes in memory, of each row group of a Parquet file.

    Raises:
        InputError: it cannot be read.
    """
    arrow = require_arrow(name)
    with _reading(name), arrow.parquet.ParquetFile(path) as file:
        every = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        return [(group.num_rows, group.total_byte_size) for group in every]


def arrow_rows(path: Path, name: str) -> Iterator[Outcome]:
    """Yields the rows of an Arrow file, of the stream or the file format (Feather is the latter).

    Raises:
        InputError: it cannot be read, or has two columns of one name.
    """
    arrow = require_arrow(name)
    # Not mapped: the process would be killed where the file is shortened meanwhile.
    with _reading(name), arrow.OSFile(str(path)) as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        with arrow.ipc.open_file(file) if is_file else arrow.ipc.open_stream(file) as batches:
            require_distinct(batches.schema.names, name)
            if is_file:
                numbers = range(batches.num_record_batches)
                yield from table_rows(map(batches.get_batch, numbers), name)
            else:
                yield from table_rows(batches, name)


def dataset_rows(dataset: Any, name: str) -> Iterator[Outcome]:
    """Yields the rows of a `datasets.Dataset` or `IterableDataset`; images stay undecoded.

    Rows are as they are stored, or as the function makes them that `with_transform` was given.
    """
    with _reading(name):
        if (getattr(dataset, "format", None) or {}).get("type") == "custom":
            for number, row in enumerate(dataset, start=1):
                place = f"{name}:row {number}"
                yield place, json_row(row, place)
            return
        yield from table_rows(dataset.with_format("arrow").iter(batch_size=BATCH), name)


def table_rows(batches: Iterable[Any], name: str, before: int = 0) -> Iterator[Outcome]:
    """Yields the rows of Arrow record batches or tables, counted from 1, or on from `before`.

    What a damaged file says of lengths and offsets is not believed before it is checked. Values of
    Arrow's type for JSON (`Json` of `datasets`) are what they say.
    """
    number = before
    for batch in batches:
        batch.validate()
        readers = {field.name: _json_reader(field.type) for field in batch.schema}
        whole = _is_valid(batch)
        for start in range(0, batch.num_rows, BATCH):
            part = batch.slice(start, BATCH)
            rows = (_listed(part) if whole else None) or _one_by_one(part)
            for row in rows:
                number += 1
                place = f"{name}:row {number}"
                yield place, _row(row, readers, place)


def _row(
    row: dict[str, Any] | str, readers: dict[str, Callable[[Any], Any] | None], place: str
) -> Row | RowError:
    """Returns a row of a batch; text is why it cannot be read."""
    if isinstance(row, str):
        return RowError(place, row)
    for name, read in readers.items():
        if read is not None:
            try:
                row[name] = read(row[name])
            except (ValueError, RecursionError) as error:
                return RowError(place, f"field {name!r} is not readable JSON ({one_line(error)})")
    return json_row(row, place)


def _json_reader(kind: Any) -> Callable[[Any], Any] | None:
    """Returns what reads the JSON in values of an Arrow type; None: there is none in them."""
    if getattr(kind, "extension_name", None) == "arrow.json":
        return lambda value: None if value is None else json.loads(value)
    types = require_arrow("a table").types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        read = _json_reader(kind.value_type)
        if read is not None:
            return lambda value: None if value is None else [read(item) for item in value]
    elif types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        found = {field.name: _json_reader(field.type) for field in fields}
        readers = {name: read for name, read in found.items() if read is not None}
        if readers:
            return lambda value: (
                None
                if value is None
                else value | {name: read(value[name]) for name, read in readers.items()}
            )
    return None


def _is_valid(batch: Any) -> bool:
    """Returns whether all values of a batch are within its buffers, and its texts UTF-8."""
    try:
        batch.validate(full=True)
    except UNREADABLE:
        return False
    return True


def _listed(batch: Any) -> list[dict[str, Any]] | None:
    """Returns the rows of a batch as Python has them, or None if it has no form for one."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UNREADABLE:
        return None
    return rows


def _one_by_one(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Yields each row of a batch, or why it cannot be read."""
    for number in range(batch.num_rows):
        row = batch.slice(number, 1)
        try:
            row.validate(full=True)
            yield row.to_pylist()[0]
        except UNREADABLE as error:
            yield f"cannot be read ({one_line(error)})"


def json_row(row: dict[str, Any], place: str) -> Row | RowError:
    """Returns a row with JSON's form of every value that has one."""
    try:
        return {name: json_value(value) for name, value in row.items()}
    except RecursionError:
        return RowError(place, "cannot be stored as JSON (its values hold each other)")


def json_value(value: Any) -> Any:
    """Returns a value as JSON has it; one that has no form there is returned as it is.

    Dates and times become ISO 8601 text, a length of time its seconds, a decimal and a UUID
    their text, bytes {"bytes": base64}, and NaN, a number that is missing, null. In an object
    with a field "bytes" (an image of the `datasets` library) that field is the base64 itself.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, dict):
        return {
            name: _base64(item) if name == "bytes" and _is_bytes(item) else json_value(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return json_value(value.tolist())
    if _is_bytes(value):
        return {"bytes": _base64(value)}
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal | UUID):
        return str(value)
    return value


def require_distinct(columns: list[str], name: str) -> None:
    """Nothing, if no two columns have one name.

    Raises:
        InputError: two have.
    """
    for column, count in Counter(columns).items():
        if count > 1:
            raise InputError(f"{name} has two columns named {column!r}: rename one of them")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turns what Arrow says of a damaged file into this package's words."""
    try:
        yield
    except (OSError, MemoryError, *UNREADABLE) as error:
        raise InputError(f"{name} cannot be read ({one_line(error)}): is it complete?") from None


def one_line(error: BaseException) -> str:
    """Returns an error's text up to the first end of a line, or its kind when it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes | bytearray | memoryview)


def _base64(value: Any) -> str:
    return base64.b64encode(value).decode()

"""Rows of tables: Parquet, Arrow, and data sets of the `datasets` library, batch by batch.

A row is kept as JSON, so what JSON has no form for gets one here (`json_value`).
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from forvalue_index.data.rows import Outcome
from forvalue_index.errors import DependencyError, InputError
from forvalue_index.records import Row

BATCH = 256  # rows that are in memory at a time, where the file allows it
INSTALL = 'pip install "forvalue-index[datasets]"'


def require_arrow(name: str) -> Any:
    """Returns the module `pyarrow`, with which `name` can be read.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DependencyError(f"reading {name} needs pyarrow: {INSTALL}") from None
    return pyarrow


def parquet_rows(path: Path, name: str) -> Iterator[Outcome]:
    """Yields the rows of a Parquet file.

    Raises:
        InputError: it cannot be read, or has two columns of one name.
    """
    arrow = require_arrow(name)
    with _reading(name), arrow.parquet.ParquetFile(path) as file:
        require_distinct(file.schema_arrow.names, name)
        yield from table_rows(file.iter_batches(batch_size=BATCH), name)


def arrow_rows(path: Path, name: str) -> Iterator[Outcome]:
    """Yields the rows of an Arrow file, of the stream or the file format (Feather is the latter).

    Raises:
        InputError: it cannot be read, or has two columns of one name.
    """
    arrow = require_arrow(name)
    with _reading(name), arrow.memory_map(str(path)) as file:
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
    """Yields the rows of a `datasets.Dataset` or `IterableDataset`; images stay undecoded."""
    with _reading(name):
        yield from table_rows(dataset.with_format("arrow").iter(batch_size=BATCH), name)


def table_rows(batches: Iterable[Any], name: str) -> Iterator[Outcome]:
    """Yields the rows of Arrow record batches or tables, counted from 1."""
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            for row in batch.slice(start, BATCH).to_pylist():
                number += 1
                yield f"{name}:row {number}", json_row(row)


def json_row(row: dict[str, Any]) -> Row:
    """Returns a row with JSON's form of every value that has one."""
    return {name: json_value(value) for name, value in row.items()}


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
    except (OSError, ValueError, NotImplementedError, OverflowError) as error:
        raise InputError(f"{name} cannot be read ({one_line(error)}): is it complete?") from None


def one_line(error: BaseException) -> str:
    """Returns an error's text up to the first end of a line, or its kind when it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes | bytearray | memoryview)


def _base64(value: Any) -> str:
    return base64.b64encode(value).decode()

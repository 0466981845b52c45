"""What a caller may give as data, and the rows of it. Nothing is held in memory.

Files are told apart by the ends of their names. `-` is standard input, spooled to a temporary
file first, as is a pipe; both hold JSON Lines.
"""

from __future__ import annotations

import glob
import re
import sys
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias

from forvalue_index.data.arrow import (
    arrow_rows,
    dataset_rows,
    json_row,
    one_line,
    parquet_rows,
    require_arrow,
    require_distinct,
    table_rows,
)
from forvalue_index.data.fetch import expand, fetched, is_url
from forvalue_index.data.hub import choose_split, is_dataset, load_folder, load_hub
from forvalue_index.data.rows import Outcome, Rows
from forvalue_index.data.text import csv_rows, json_file, json_lines, tsv_rows
from forvalue_index.errors import InputError, RowError
from forvalue_index.records import Row
from forvalue_index.system.files import open_input
from forvalue_index.system.temporary import keeping

Data: TypeAlias = "Rows | str | Path | Row | Iterable[str | Path] | Iterable[Row]"
"""What a caller may give as data: a path, paths, a row, rows, or opened rows.

A path may be a pattern ("train-*.parquet"), a URL that fsspec opens (s3://bucket/*.jsonl), a folder
that `save_to_disk` wrote, or the id of a data set on the hub; a `datasets.Dataset`, a frame of
pandas or polars, a table of pyarrow and what a generator yields are rows.
"""

TEXT = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_file,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
}
TABLES = {".parquet": parquet_rows, ".arrow": arrow_rows, ".feather": arrow_rows}
PACKED = (".gz", ".zst")
PIECE = 1 << 20  # bytes of a pipe that are copied at a time

_Read = Callable[[], Iterator[Outcome]]
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def open_rows(
    data: Data,
    *,
    split: str | None = None,
    subset: str | None = None,
    allow_remote: bool = False,
) -> Rows:
    """Returns the rows of paths, of rows in memory, or of what this function returned before.

    Args:
        data: what to read.
        split: of a data set that has several, such as "train".
        subset: of a data set on the hub: its configuration, as `datasets` calls it.
        allow_remote: fetch files and images whose URLs are of other machines.

    Raises:
        InputError: a file does not exist or is of no known kind, or a split is to be chosen.
        StorageError: there is no room for what comes through a pipe.
        DependencyError: a package that reads such files is not installed.
    """
    if isinstance(data, Rows):
        return data
    rows = _opened(data, split, subset, allow_remote)
    rows.allow_remote = allow_remote
    return rows


def _opened(data: Data, split: str | None, subset: str | None, allow_remote: bool) -> Rows:
    if isinstance(data, str | Path):
        return Sources([data], split, subset, allow_remote)
    if is_dataset(data):
        return DatasetRows(choose_split(data, "the data set", split))
    if isinstance(data, dict):
        return MemoryRows([data])
    if hasattr(data, "iloc") and hasattr(
        data, "columns"
    ):  # a DataFrame of pandas, whose own kinds of nothing become None
        frame: Any = data
        named = [name for name in frame.index.names if name is not None]
        require_distinct([*named, *frame.columns], "the data frame")
        frame = frame.reset_index() if named else frame  # an index with a name is a column
        return MemoryRows(frame.astype(object).where(frame.notna(), None).to_dict("records"))
    if (table := _table(data)) is not None:
        require_distinct(list(table.schema.names), "the table")
        return TableRows(table)
    try:
        items: list[Any] = list(data)
    except TypeError:
        kind = type(data).__name__
        raise InputError(
            f"data is {kind}, but must be paths, rows, a data set or a frame"
        ) from None
    if items and all(isinstance(item, str | Path) for item in items):
        return Sources(items, split, subset, allow_remote)
    return MemoryRows(items)


def _table(data: Any) -> Any:
    """Returns a table of pyarrow or a frame of polars as a table of pyarrow; None: it is none."""
    if hasattr(data, "collect_schema"):  # a frame of polars, which may be lazy
        data = data.collect() if hasattr(data, "collect") else data
        require_arrow("a frame of polars")
        return data.to_arrow()
    if hasattr(data, "schema") and hasattr(data, "read_all"):  # a reader of record batches
        return data.read_all()
    if hasattr(data, "schema") and hasattr(data, "to_pylist"):
        return data
    return None


class MemoryRows(Rows):
    """Rows that a program hands over; placed as "row 1", "row 2" …"""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def outcomes(self) -> Iterator[Outcome]:
        """Yields the rows, in JSON's form of their values."""
        for number, row in enumerate(self._rows, start=1):
            place = f"row {number}"
            if isinstance(row, dict):
                yield place, json_row(row, place)
            else:
                yield place, RowError(place, f"a row must be a dict, not {type(row).__name__}")


class DatasetRows(Rows):
    """The rows of a data set that a program hands over."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def outcomes(self) -> Iterator[Outcome]:
        """Yields the rows, placed as "data set:row 1" …"""
        return dataset_rows(self._dataset, "data set")


class TableRows(Rows):
    """The rows of a table of pyarrow that a program hands over."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def outcomes(self) -> Iterator[Outcome]:
        """Yields the rows, placed as "table:row 1" …"""
        batches = self._table.to_batches() if hasattr(self._table, "to_batches") else [self._table]
        return table_rows(batches, "table")


class Sources(Rows):
    """The rows of files, folders and data sets, in the order given, a pattern's files sorted.

    Raises:
        InputError: one does not exist, is given twice, or is of no known kind (at once), or
            cannot be read any further (while iterating).
        StorageError: there is no room for what comes through a pipe.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        split: str | None,
        subset: str | None,
        allow_remote: bool = False,
    ) -> None:
        self._split, self._subset, self._remote = split, subset, allow_remote
        self._readers: dict[str, _Read] = {}
        for name in [name for path in paths for name in _expand(str(path), allow_remote)]:
            if name in self._readers:
                raise InputError(f"{name} is given twice: name it once")
            self._readers[name] = self._reader(name)

    @property
    def files(self) -> list[Path] | None:
        """Whole paths of the files that it reads; None: some of it is not a file."""
        paths = [Path(name) for name in self._readers]
        return [p.resolve() for p in paths] if all(p.is_file() for p in paths) else None

    def _reader(self, name: str) -> _Read:
        if is_url(name):
            _require_kind(Path(name.partition("?")[0]), name)
            return _file_reader(fetched(name, self._remote, self), name)
        path = Path(name)
        if name == "-":
            return partial(json_lines, self._spool(sys.stdin.buffer), "<stdin>")
        if path.is_dir():
            return partial(dataset_rows, load_folder(path, name, self._split), name)
        if path.is_fifo():
            try:
                with open_input(path) as pipe:
                    return partial(json_lines, self._spool(pipe), name)
            except OSError as error:
                raise InputError(f"{name} cannot be read: {one_line(error)}") from None
        if path.is_file():
            if self._split or self._subset:
                raise InputError(f"{name} is a file: --split and --subset are for data sets")
            return _file_reader(path, name)
        # A folder that is there makes a misspelt path likelier than an id.
        if _HUB_ID.fullmatch(name) and _kind(path) is None and not path.parent.exists():
            return partial(dataset_rows, load_hub(name, self._subset, self._split), name)
        what = "is not a regular file" if path.exists() else "does not exist"
        raise InputError(f"{name} {what}: name a file of rows, or correct the path")

    def _spool(self, stream: IO[bytes]) -> Path:
        what = "data that comes through a pipe"
        with keeping(what):
            spool = tempfile.NamedTemporaryFile(suffix=".jsonl")  # noqa: SIM115 (as long as self)
        weakref.finalize(self, _close, spool)
        while piece := stream.read(PIECE):
            with keeping(what):
                spool.write(piece)
        with keeping(what):
            spool.flush()
        return Path(spool.name)

    def outcomes(self) -> Iterator[Outcome]:
        """Yields what stands at each place of each source."""
        for name, read in self._readers.items():
            try:
                yield from read()
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(
                    f"{name} cannot be read ({one_line(error)}): is it complete?"
                ) from None


def _close(file: Any) -> None:
    """Lets go of a temporary file, also where what is left to write finds no room."""
    with suppress(OSError):
        file.close()


def _expand(name: str, allow_remote: bool) -> list[str]:
    """Returns the files that a pattern stands for, sorted, or the name if it is none."""
    if is_url(name):
        return expand(name, allow_remote)
    if glob.escape(name) == name or Path(name).exists():
        return [name]
    found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (takes any path)
    if not found:
        raise InputError(f"no file matches {name}: correct the pattern")
    return found


def _kind(path: Path) -> Callable[[Path, str], Iterator[Outcome]] | None:
    """Returns what reads files with such a name, if anything does."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        return TEXT.get(suffixes[0]) if len(suffixes) == 2 else None
    return (TEXT | TABLES).get(suffixes[-1]) if suffixes else None


def _require_kind(path: Path, name: str) -> Callable[[Path, str], Iterator[Outcome]]:
    """Returns what reads files with such a name; raises InputError: nothing does."""
    read = _kind(path)
    if read is None:
        raise InputError(
            f"{name}: unknown kind of file; its name must end in {', '.join(TEXT)} "
            f"(also with {' or '.join(PACKED)}), {', '.join(TABLES)}"
        )
    return read


def _file_reader(path: Path, name: str) -> _Read:
    read = _require_kind(path, name)
    if path.suffix.lower() in TABLES or path.suffix.lower() == ".zst":
        require_arrow(name)
    return partial(read, path, name)

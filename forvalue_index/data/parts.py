"""Parts of large data files, each read by itself; a row has the place that it has in the file.

JSON Lines are split by bytes: a line belongs to the part in which it starts. Parquet is split by
row groups. Files of other kinds, and compressed ones, are one part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

from forvalue_index.data.arrow import parquet_groups, parquet_rows
from forvalue_index.data.rows import Outcome, Rows
from forvalue_index.data.sources import open_rows
from forvalue_index.data.text import json_lines
from forvalue_index.errors import InputError

LEAST = 2**26  # bytes of a part
MOST = 1024  # parts of all files, about
_LINES = (".jsonl", ".ndjson")
_READ = 2**20  # bytes that are read at a time to count lines


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a data file."""

    file: Path
    start: int = 0  # first byte, or row group
    end: int | None = None  # the one after the last; None: the part is the file
    before: int | None = 0  # lines that begin before its first one, or rows; None: not counted yet

    @property
    def whole(self) -> bool:
        """Whether it is all of the file."""
        return self.end is None


def parts_of(files: Sequence[Path]) -> list[Part]:
    """Returns the parts of files, in order. They depend on the files alone.

    Lines before a part are not counted yet: see `numbered`.
    """
    size = LEAST
    while sum(file.stat().st_size for file in files) > MOST * size:
        size *= 2
    return [part for file in files for part in _parts(file, size)]


def _parts(file: Path, size: int) -> Iterator[Part]:
    total, kind = file.stat().st_size, file.suffix.lower()
    if total < 2 * size or kind not in (*_LINES, ".parquet"):
        yield Part(file)
        return
    if kind in _LINES:
        starts = [n * total // (total // size) for n in range(total // size + 1)]
        for start, end in pairwise(starts):
            yield Part(file, start, end, None if start else 0)
        return
    try:
        groups = parquet_groups(file, str(file))
    except InputError:  # which whoever reads it says
        yield Part(file)
        return
    start = before = rows = held = 0
    for number, (own_rows, own_bytes) in enumerate(groups):
        rows, held = rows + own_rows, held + own_bytes
        if held >= size or number + 1 == len(groups):
            yield Part(file, start, number + 1, before)
            start, before, rows, held = number + 1, before + rows, 0, 0


def lines_in(part: Part) -> int:
    """Returns how many lines of a file of JSON Lines end in a part, up to its last byte but one.

    That byte ends a line of this part, or is within one: the next line belongs to the next part.

    Raises:
        InputError: the file cannot be read.
    """
    assert part.end is not None
    count, left = 0, part.end - max(part.start, 1)
    try:
        with part.file.open("rb") as file:
            file.seek(max(part.start - 1, 0))
            while left > 0 and (piece := file.read(min(left, _READ))):
                count += piece.count(b"\n")
                left -= len(piece)
    except OSError as error:
        raise _unread(part.file, error) from None
    return count


def _unread(file: Path, error: OSError) -> InputError:
    return InputError(
        f"{file} cannot be read ({error.strerror}): every machine that works on a part must have "
        "it under this path"
    )


def numbered(parts: Sequence[Part], lines: Sequence[int]) -> list[Part]:
    """Returns the parts of a file with the lines before each, from `lines_in` of each."""
    return [
        replace(part, before=before)
        for part, before in zip(parts, accumulate(lines, initial=0), strict=False)
    ]


def open_part(part: Part, allow_remote: bool = False) -> Rows:
    """Returns the rows of a part.

    Raises:
        InputError: the file is of no known kind, or not there.
    """
    if part.whole:
        return open_rows(part.file, allow_remote=allow_remote)
    rows = PartRows(part)
    rows.allow_remote = allow_remote
    return rows


class PartRows(Rows):
    """The rows of a part that is not a whole file."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def outcomes(self) -> Iterator[Outcome]:
        """Yields the rows under the places that they have in the file."""
        part, name = self._part, str(self._part.file)
        assert part.end is not None
        assert part.before is not None
        if part.file.suffix.lower() == ".parquet":
            groups = range(part.start, part.end)
            yield from parquet_rows(part.file, name, groups, part.before)
            return
        try:
            yield from json_lines(part.file, name, (part.start, part.end), part.before)
        except OSError as error:
            raise _unread(part.file, error) from None

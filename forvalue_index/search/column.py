"""The values of one field in the rows of a segment: each distinct value once, and which row has it.

It is what a filter looks at in the place of the rows. Derived: made from the rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.records import Segment
from forvalue_index.search.common import Ids
from forvalue_index.search.parts import parts_file, read_parts, write_parts

SUFFIX = ".column"

_KINDS = "<i8", "<i4", "<i8", "u1"


def suffix_of(field: str) -> str:
    """Returns how the name of the file of a field ends."""
    name = hashlib.blake2b(field.encode(errors="replace"), digest_size=8).hexdigest()
    return f".{name}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class Column:
    """The values of a field in n rows, those that were removed among them."""

    field: str
    ids: Ids  # [n], ascending
    codes: NDArray[np.int32]  # [n] which value a row has; -1: it lacks the field
    ends: NDArray[np.int64]  # [m] where each value ends in `text`
    text: NDArray[np.uint8]  # the distinct values, as JSON in UTF-8, one after another

    @classmethod
    def of(cls, field: str, ids: Sequence[int], values: Sequence[str | None]) -> Column:
        """Returns the column of rows, ids ascending, from the JSON of the field in each."""
        found: dict[str | None, int] = {None: -1}
        codes = [found.setdefault(value, len(found) - 1) for value in values]
        data = [str(value).encode(errors="surrogatepass") for value in list(found)[1:]]
        return cls(
            field,
            np.array(ids, np.int64),
            np.array(codes, np.int32),
            np.cumsum([len(value) for value in data], dtype=np.int64),
            np.frombuffer(b"".join(data), np.uint8),
        )

    def moved(self, ids: Ids) -> Column:
        """Returns the column with other ids, in the same order."""
        return replace(self, ids=ids)

    @property
    def values(self) -> list[str]:
        """The distinct values, as JSON."""
        data, starts = self.text.tobytes(), [0, *self.ends[:-1].tolist()]
        bounds = zip(starts, self.ends.tolist(), strict=False)
        return [data[start:end].decode(errors="surrogatepass") for start, end in bounds]

    def met(self, decide: Callable[[Sequence[str | None]], list[bool]]) -> NDArray[np.bool_]:
        """Returns which rows meet a condition, [n]; `decide` tells it of distinct values."""
        decisions = np.array(decide([*self.values, None]), np.bool_)
        return np.asarray(decisions[self.codes])  # -1 is the last

    def write(self, folder: Path, segment: Segment) -> os.stat_result:
        """Keeps it beside the derived indexes.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        arrays = self.ids, self.codes, self.ends, self.text
        path = parts_file(folder, segment, suffix_of(self.field))
        return write_parts(path, segment, arrays, _KINDS, field=self.field)

    @classmethod
    def read(
        cls, folder: Path, segment: Segment, field: str, *, known: bool = False
    ) -> Column | None:
        """Returns what is kept of a segment; None: nothing, or nothing that can be believed."""
        path = parts_file(folder, segment, suffix_of(field))
        read = read_parts(path, segment, _KINDS, known=known)
        if read is None or read[1].get("field") != field:
            return None
        ids, codes, ends, text = read[0]
        column = cls(field, ids, codes, ends, text)
        return column if known or column._fits(segment.ntotal) else None

    def _fits(self, n: int) -> bool:
        """Returns whether the parts belong together, whoever wrote them."""
        if not len(self.ids) == len(self.codes) == n:
            return False
        ends: NDArray[Any] = np.concatenate([[0], self.ends])
        inside = bool(((self.codes >= -1) & (self.codes < len(self.ends))).all())
        return inside and bool((np.diff(ends) > 0).all()) and int(ends[-1]) == len(self.text)

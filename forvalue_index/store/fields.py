"""Which rows meet conditions, by columns of the fields that are kept for each segment.

The first filter on a field reads all rows; later ones only those that are new.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from threading import RLock

import numpy as np
from numpy.typing import NDArray

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.where import Condition, Decisions, parse_condition
from forvalue_index.errors import ForvalueError, InputError
from forvalue_index.records import Segment, require_rows
from forvalue_index.search.checked import CheckedFiles, State, state_of
from forvalue_index.search.column import Column, suffix_of
from forvalue_index.search.moment import Writing
from forvalue_index.search.parts import parts_file
from forvalue_index.store.kept import require_current

_LARGEST = 64
"""Bytes of distinct values for each row, up to which a column is kept: a text is not, a number is.
"""


class KeptFields:
    """The fields of an index's rows, over time."""

    def __init__(self, checked: CheckedFiles, catalog: Catalog) -> None:
        """Takes INDEX/derived, which need not exist, with what was found intact in it."""
        self._checked, self._folder, self._catalog = checked, checked.folder, catalog
        self._lock = RLock()

    def where(
        self, segments: Sequence[Segment], conditions: Iterable[str], writing: Writing
    ) -> NDArray[np.int64]:
        """Returns the ids of the rows that meet all conditions, removed ones among them.

        `writing` gives the right to write files; where entering it fails, nothing is written.

        Raises:
            InputError: a condition cannot be read, or no row has its field; the message names
                the fields that there are.
            CorruptIndexError: a row is not what was committed.
        """
        wanted = [parse_condition(condition) for condition in conditions]
        found, seen = self.met(segments, wanted, writing)
        for condition in wanted:
            if segments and condition.field not in seen:
                require_rows(islice(self._catalog.iterate(), 1))
                raise InputError(
                    f"no sample has a field {condition.field!r}: the fields are "
                    f"{', '.join(self._catalog.fields()) or 'none'}"
                )
        return found

    def met(
        self, segments: Sequence[Segment], conditions: Sequence[Condition], writing: Writing
    ) -> tuple[NDArray[np.int64], set[str]]:
        """Returns what `where` does, and the fields that any row has."""
        self._catalog.require_intact()
        seen: set[str] = set()
        met: list[NDArray[np.bool_]] = []
        ids: list[NDArray[np.int64]] = []
        for condition in conditions:
            decisions, own, ids = Decisions(condition), [], []
            for column in self.columns(segments, condition.field, writing):
                own.append(column.met(decisions.of))
                ids.append(column.ids)
            seen |= {condition.field} if decisions.seen else set()
            met.append(np.concatenate([np.empty(0, np.bool_), *own]))
        every = np.concatenate([np.empty(0, np.int64), *ids])
        return np.sort(every[np.logical_and.reduce(met)]), seen

    def columns(
        self, segments: Sequence[Segment], field: str, writing: Writing
    ) -> Iterator[Column]:
        """Yields the values of a field in the rows of each segment, removed ones among them.

        Makes the columns that are not kept, and keeps them.
        """
        states = dict[str, State]()
        files = {s.name: parts_file(self._folder, s, suffix_of(field)) for s in segments}
        for segment in segments:
            with suppress(OSError):
                path = files[segment.name]
                states[path.name] = state_of(segment.sha256, path.stat())
        new: dict[Segment, Column] = {}
        with self._lock:
            unknown = set(self._checked.unknown(states))
            hashed = dict[str, State]()
            for segment in segments:
                name, column = files[segment.name].name, None
                if name in states:
                    column = Column.read(self._folder, segment, field, known=name not in unknown)
                    if column is not None and name in unknown:
                        hashed[name] = states[name]
                if column is None:
                    column = Column.of(field, *self._catalog.column(segment.name, field))
                    require_current(self._catalog, segment)
                    if len(column.text) <= _LARGEST * len(column.ids):
                        new[segment] = column
                yield column
            with suppress(OSError, ForvalueError):
                if new:
                    with writing():
                        for segment, column in new.items():
                            state = state_of(segment.sha256, column.write(self._folder, segment))
                            hashed[files[segment.name].name] = state
            if hashed:
                self._checked.add(hashed, hashed=True)

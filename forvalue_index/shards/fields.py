"""The fields of the rows of all shards, whose values each shard keeps by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from forvalue_index.catalog.where import Condition
from forvalue_index.records import Segment
from forvalue_index.search.column import Column
from forvalue_index.search.moment import Writing
from forvalue_index.shards.catalog import JoinedCatalog
from forvalue_index.shards.ids import Ids, joined
from forvalue_index.store.fields import KeptFields
from forvalue_index.store.store import Store


class JoinedFields(KeptFields):
    """The fields of all shards, each at one generation."""

    def __init__(
        self,
        catalog: JoinedCatalog,
        parts: Mapping[int, Store],
        segments: Mapping[int, Sequence[Segment]],
        writing: Mapping[int, Writing],
    ) -> None:
        """Takes number -> shard, its segments, and what gives the right to write there."""
        self._catalog = catalog
        self._parts, self._segments, self._writing = parts, segments, writing
        self._shards = catalog.manifest.shards

    def met(
        self, segments: Sequence[Segment], conditions: Sequence[Condition], writing: Writing
    ) -> tuple[Ids, set[str]]:
        """Returns the ids of the rows of all shards that meet all conditions, and their fields."""
        found, fields = [np.empty(0, np.int64)], set[str]()
        for number, part in self._parts.items():
            ids, own = part.fields.met(self._segments[number], conditions, self._writing[number])
            found.append(joined(ids, number, self._shards))
            fields |= own
        return np.sort(np.concatenate(found)), fields

    def columns(
        self, segments: Sequence[Segment], field: str, writing: Writing
    ) -> Iterator[Column]:
        """Yields the values of a field in the rows of all shards, a column for each segment."""
        for number, part in self._parts.items():
            own = self._segments[number], field, self._writing[number]
            for column in part.fields.columns(*own):
                yield column.moved(joined(column.ids, number, self._shards))

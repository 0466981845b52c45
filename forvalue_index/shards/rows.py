"""The rows of one shard among all rows."""

from __future__ import annotations

from collections.abc import Iterator

from forvalue_index.config import FormatConfig
from forvalue_index.data.identity import key_of
from forvalue_index.data.rows import Outcome, Rows
from forvalue_index.errors import RowError
from forvalue_index.store.manifest import shard_of


def shard_at(place: str, row: object, format: FormatConfig, shards: int) -> int:
    """Returns the shard that deals with what stands at a place.

    It is that of the row's key; a row without one, which only needs to be refused, has the shard of
    its place.
    """
    if isinstance(row, dict):
        try:
            return shard_of(key_of(row, place, format), shards)
        except RowError:
            pass
    return shard_of(place, shards)


class ShardRows(Rows):
    """Those rows whose keys belong to one shard."""

    def __init__(self, rows: Rows, format: FormatConfig, number: int, shards: int) -> None:
        """Takes all rows, with their images settled."""
        self._rows, self._format = rows, format
        self._number, self._shards = number, shards
        self.allow_remote = rows.allow_remote
        self.found = 0  # of its own, as far as they were read

    def outcomes(self) -> Iterator[Outcome]:
        """Yields the shard's own rows, and what must be refused and falls to it."""
        for place, row in self._rows.outcomes():
            if shard_at(place, row, self._format, self._shards) == self._number:
                self.found += 1
                yield place, row

"""Rows and where each stands. A row that cannot be read has an error in its place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeAlias

from forvalue_index.errors import RowError
from forvalue_index.records import Row

Outcome: TypeAlias = tuple[str, Row | RowError]
"""A place ("file:line", "file:row 7") and the row there, or why there is none."""


class Rows(ABC):
    """Rows with the place each came from, the same in every iteration."""

    allow_remote = False
    """Whether images that are URLs are fetched."""
    settled = False
    """Whether the rows were read before, so that their images are JSON."""

    @abstractmethod
    def outcomes(self) -> Iterator[Outcome]:
        """Yields what stands at each place; a row that cannot be read does not end it.

        Raises:
            InputError: a file cannot be read any further.
        """

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        """Yields each row after its place.

        Raises:
            InputError: a file cannot be read any further.
            RowError: a row cannot be read.
        """
        for place, row in self.outcomes():
            if isinstance(row, RowError):
                raise row
            yield place, row

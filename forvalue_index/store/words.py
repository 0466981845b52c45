"""The words of an index's rows, kept for each segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.config import FormatConfig
from forvalue_index.data.row_text import texts_of
from forvalue_index.errors import RowError
from forvalue_index.records import Row, Segment
from forvalue_index.search.checked import CheckedFiles
from forvalue_index.search.words import SUFFIX, Words
from forvalue_index.store.kept import KeptDerived, require_current


class KeptWords(KeptDerived[Words]):
    """The words of an index over time."""

    suffix, kind = SUFFIX, Words

    def __init__(self, checked: CheckedFiles, catalog: Catalog, format: FormatConfig) -> None:
        """Takes INDEX/derived, and how rows are read."""
        super().__init__(checked)
        self._catalog, self._format = catalog, format

    def made(self, segment: Segment) -> Words:
        """Returns the words of a segment, from its live rows."""
        samples = self._catalog.samples(self._catalog.live_ids(segment.name))
        require_current(self._catalog, segment)
        return self.of(
            np.fromiter(samples, np.int64, len(samples)), [s.row for s in samples.values()]
        )

    def of(self, ids: NDArray[np.int64], rows: Sequence[Row]) -> Words:
        """Returns the words of rows."""
        return Words.of(ids, [self._texts(row) for row in rows])

    def joined(self, parts: Sequence[tuple[Segment, Words]]) -> Words:
        """Returns the words of one segment that has the rows of several."""
        return Words.joined([words for _, words in parts])

    def _texts(self, row: Mapping[str, object]) -> tuple[str, str]:
        """Returns the prompt and the scored text; of a row that has none, nothing."""
        try:
            return texts_of(dict(row), "row", self._format)
        except RowError:
            return "", ""

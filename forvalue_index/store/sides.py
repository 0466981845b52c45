"""Figures and highest bits of an index's vectors, kept for each segment (`search/side.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.records import Segment, StoredSample
from forvalue_index.search.checked import CheckedFiles
from forvalue_index.search.first_pass import first_rows
from forvalue_index.search.segment import open_segment
from forvalue_index.search.side import SUFFIX, Side
from forvalue_index.store.kept import KeptDerived, require_current
from forvalue_index.store.vectoriser import dim_of
from forvalue_index.vectors.codes import Bytes, Codes


class KeptSides(KeptDerived[Side]):
    """The sides of an index's segments over time."""

    suffix, kind = SUFFIX, Side

    def __init__(self, checked: CheckedFiles, catalog: Catalog, segments: Path, bits: int) -> None:
        """Takes INDEX/derived and INDEX/segments, and the bits of a stored number."""
        super().__init__(checked)
        self._catalog, self._segments, self._bits = catalog, segments, bits

    def made(self, segment: Segment) -> Side:
        """Returns the side of a segment, from its vectors and the catalogue's figures."""
        dim = dim_of(self._catalog)
        opened = open_segment(self._segments, segment, dim, self._bits)
        found = self._catalog.segment_figures(segment.name)
        require_current(self._catalog, segment)
        return Side(
            found.ids, found.n_scored, found.loss, found.norm, first_rows(opened.codes, opened), {}
        )

    def of(self, samples: Sequence[StoredSample], data: Bytes, codes: Codes) -> Side:
        """Returns the side of samples, from their codes [n, size]."""
        return Side(
            np.array([sample.id for sample in samples], np.int64),
            np.array([sample.n_scored for sample in samples], np.int64),
            np.array([sample.loss for sample in samples], np.float64),
            np.array([sample.norm for sample in samples], np.float64),
            first_rows(codes, data),
            {},
        )

    def joined(self, parts: Sequence[tuple[Segment, Side]]) -> Side:
        """Returns the side of one segment that has the vectors of several."""
        return Side.joined(parts)

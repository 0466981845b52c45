"""Rows that prefer one text to another, or that are not desirable, to samples."""

from __future__ import annotations

from collections.abc import Sequence

from forvalue_index.config import FormatConfig
from forvalue_index.data.formatter import Formatter, Reject, left_out
from forvalue_index.data.preferences import contrast, is_desirable, opposite
from forvalue_index.records import Row, Sample


class PreferenceFormatter:
    """Makes samples of preferences: both texts are read as a text alone is."""

    def __init__(self, chosen: Formatter, rejected: Formatter | None, config: FormatConfig) -> None:
        self._chosen = chosen
        self._rejected = rejected
        self._config = config

    def samples(
        self, rows: Sequence[tuple[str, Row]], reject: Reject | None = None
    ) -> list[Sample]:
        """Returns the samples of `rows`, in order; arguments and errors are those of `Formatter`.

        Raises:
            RowError: one of the texts is not usable, both are the same, or it is not said whether
                a row is desirable.
        """
        if reject is None:
            return self._samples(rows)
        samples = []
        for source, row in rows:
            with left_out(row, reject):
                samples += self._samples([(source, row)])
        return samples

    def _samples(self, rows: Sequence[tuple[str, Row]]) -> list[Sample]:
        made = self._chosen.samples(rows)
        if self._rejected is not None:
            others = self._rejected.samples(rows)
            made = [contrast(*pair) for pair in zip(made, others, strict=True)]
        return [
            sample if is_desirable(row, source, self._config) else opposite(sample)
            for sample, (source, row) in zip(made, rows, strict=True)
        ]

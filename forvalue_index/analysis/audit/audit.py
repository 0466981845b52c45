"""The answer of `InfluenceIndex.audit`: the scores of all rows, and the rows to look at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from forvalue_index.analysis.audit.review import review
from forvalue_index.analysis.audit.scores import NEARLY, Audit, score_rows
from forvalue_index.config import FormatConfig
from forvalue_index.data.sources import Data
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Progress, Sample


def audit(
    index: InfluenceIndex,
    *,
    trusted: Data | list[Sample] | None = None,
    class_field: str | None = None,
    where: str | Iterable[str] = (),
    top: int = 100,
    nearly: float = NEARLY,
    format: FormatConfig | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Returns which training rows are likely wrong, and why; see `InfluenceIndex.audit`."""
    found = score_rows(
        index,
        trusted=trusted,
        class_field=class_field,
        where=where,
        nearly=nearly,
        format=format,
        progress=progress,
    )
    return replace(found, rows=review(index, found, top))

"""How many rows have each value of each field, for filters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from forvalue_index.index import InfluenceIndex
from forvalue_index.server.lane import Stop

LONGEST = 80  # characters of a value that is worth a filter
MOST_DISTINCT = 1000  # values of a field; of more, none is counted
LISTED = 100  # values of a field, the most frequent ones
LOOK = 1000  # rows between two looks at whether the client is still there


def field_counts(index: InfluenceIndex, where: Sequence[str], stop: Stop) -> dict[str, Any]:
    """Returns the values of the fields of rows that meet conditions, as `FieldsAnswer` has them.

    A field whose values are nested, long, or all different has no counts.
    """
    counts: dict[str, Counter[str] | None] = {}
    n = 0
    for n, stored in enumerate(index.rows(where), 1):
        if n % LOOK == 0:
            stop.check()
        for name, value in stored.row.items():
            counter = counts.setdefault(name, Counter())
            if counter is None:
                continue
            text = _text(value)
            if text is None or (len(counter) >= MOST_DISTINCT and text not in counter):
                counts[name] = None
            else:
                counter[text] += 1
    found, others = [], []
    for name, counter in counts.items():
        if counter is None or (n > 1 and len(counter) == counter.total()):
            others.append(name)
            continue
        values = [{"value": value, "count": count} for value, count in counter.most_common(LISTED)]
        missing = n - counter.total()
        found.append({"name": name, "values": values, "distinct": len(counter), "missing": missing})
    return {"rows": n, "fields": found, "others": others}


def _text(value: Any) -> str | None:
    """Returns a value as a condition names it; None: it is not worth a filter."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST and "\n" not in value else None
    return None if isinstance(value, dict | list) else json.dumps(value)

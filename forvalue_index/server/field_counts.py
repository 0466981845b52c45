"""How many rows have each value of each field, for filters.

The first rows tell which fields are worth counting. Few rows are counted as they are read; many by
the columns that filters use, so that all rows are read once for each field.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.index import InfluenceIndex
from forvalue_index.search.stored import among
from forvalue_index.server.lane import Stop
from forvalue_index.store.snapshot import Snapshot

LONGEST = 80  # characters of a value that is worth a filter
MOST_DISTINCT = 1000  # values of a field; of more, none is counted
LISTED = 100  # values of a field, the most frequent ones
MOST_FIELDS = 100  # that are counted
FIRST = MOST_DISTINCT + 1  # rows that are read

_Counts = dict[str, "Counter[str] | None"]
"""Field -> how many rows have each value; None: it is not worth a filter."""


def field_counts(index: InfluenceIndex, where: Sequence[str], stop: Stop) -> dict[str, Any]:
    """Returns the values of the fields of rows that meet conditions, as `FieldsAnswer` has them.

    A field whose values are nested, long, or all different has no counts. Of more than FIRST rows,
    fields count that one of the first rows has.
    """
    rows = [stored.row for stored in index.rows(where, limit=FIRST)]
    n, counts = len(rows), _counted(rows)
    if n == FIRST:
        names = dict.fromkeys([*counts, *index.fields()])
        n, counts = index.answer(lambda view: _all_counted(view, where, names, counts, stop))
    found, others = [], []
    for name, counter in counts.items():
        if counter is None or (n > 1 and len(counter) == counter.total()):
            others.append(name)
            continue
        values = [{"value": value, "count": count} for value, count in counter.most_common(LISTED)]
        missing = n - counter.total()
        found.append({"name": name, "values": values, "distinct": len(counter), "missing": missing})
    return {"rows": n, "fields": found, "others": others}


def _counted(rows: Sequence[dict[str, Any]]) -> _Counts:
    """Returns the values of the fields of rows."""
    counts: _Counts = {}
    for row in rows:
        for name, value in row.items():
            counter = counts.setdefault(name, Counter())
            if counter is not None and not _add(counter, value, 1):
                counts[name] = None
    return counts


def _all_counted(
    view: Snapshot, where: Sequence[str], names: Iterable[str], first: _Counts, stop: Stop
) -> tuple[int, _Counts]:
    """Returns how many rows meet conditions, and the values of their fields `names`.

    `first` are the values in the first rows.
    """
    ids = view.where(where) if where else view.ids
    counts: _Counts = {}
    for name in names:
        stop.check()
        if first.get(name, Counter()) is None or len(counts) >= MOST_FIELDS:
            counts[name] = None
            continue
        counter = _in_columns(view, name, ids, stop)
        if counter is None or counter:  # else none of these rows has the field
            counts[name] = counter
    return len(ids), counts


def _in_columns(
    view: Snapshot, name: str, ids: NDArray[np.int64], stop: Stop
) -> Counter[str] | None:
    """Returns the values of a field in the rows `ids` (ascending), as its columns have them."""
    counter: Counter[str] = Counter()
    for column in view.columns(name):
        stop.check()
        codes = column.codes[among(column.ids, ids)]
        counts = np.bincount(codes[codes >= 0], minlength=len(column.ends))
        used = np.flatnonzero(counts).tolist()
        if len(used) > MOST_DISTINCT:
            return None
        values = column.values if used else []
        for code in used:
            if not _add(counter, json.loads(values[code]), int(counts[code])):
                return None
    return counter


def _add(counter: Counter[str], value: Any, count: int) -> bool:
    """Counts a value; returns whether its field is still worth a filter."""
    text = _text(value)
    if text is None or (len(counter) >= MOST_DISTINCT and text not in counter):
        return False
    counter[text] += count
    return True


def _text(value: Any) -> str | None:
    """Returns a value as a condition names it; None: it is not worth a filter."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST and "\n" not in value else None
    return None if isinstance(value, dict | list) else json.dumps(value)

"""The value of one field of every training row: each distinct value once, and which a row has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import MISSING, Row, value_of

NONE = "(none)"
"""Stands for the value of a row that lacks the field."""


@dataclass(frozen=True, slots=True)
class FieldValues:
    """The values of a field in n rows, as text."""

    names: list[str]  # the distinct ones, sorted
    codes: NDArray[np.int64]  # [n] which of them a row has

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many rows have each value, [names]."""
        return np.bincount(self.codes, minlength=len(self.names))


def label(row: Row, field: str) -> str | None:
    """Returns the value of a field as text, JSON if it is not text; None if it is missing."""
    value = value_of(row, field)
    return None if value is MISSING else _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def field_values(index: InfluenceIndex, ids: NDArray[np.int64], field: str) -> FieldValues:
    """Returns the value of a field of the training rows `ids`, in their order.

    From the columns that filters use: rows are read if the field has none yet.

    Raises:
        InputError: no row has the field; the message names the fields that exist. Or a row was
            removed meanwhile.
    """
    numbers: dict[str, int] = {}
    there, codes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for column in index.answer(lambda view: view.columns(field)):
        own = [numbers.setdefault(_text(json.loads(v)), len(numbers)) for v in column.values]
        there.append(column.ids)
        codes.append(np.array([*own, -1], np.int64)[column.codes])  # -1 is the last
    every = np.concatenate(there)
    order = np.argsort(every, kind="stable")
    places = np.searchsorted(every, ids, sorter=order)
    if len(ids) and (places.max() == len(every) or (every[order[places]] != ids).any()):
        raise InputError("rows were removed while they were looked at: ask again")
    found = np.concatenate(codes)[order[places]]
    if (found < 0).all():
        fields = ", ".join(index.fields())
        raise InputError(f"no training row has a field {field!r}: the fields are {fields}")
    if (found < 0).any():
        found[found < 0] = numbers.setdefault(NONE, len(numbers))
    used, found = np.unique(found, return_inverse=True)
    names = np.array(list(numbers), dtype=object)[used]
    ascending = np.argsort(names, kind="stable")
    return FieldValues(names[ascending].tolist(), np.argsort(ascending)[found])

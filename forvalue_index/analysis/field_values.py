"""The value of one field of every training row, as text."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.catalog.where import MISSING, Condition, value_of
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Row

_PAGE = 1000  # rows in memory at a time
NONE = "(none)"
"""Stands for the value of a row that lacks the field."""


def label(row: Row, field: str) -> str | None:
    """Returns the value of a field as text, JSON where it is none; None if it is not there.

    `meta.lang` is the field of that very name, or else the field `lang` of the object `meta`.
    """
    value = value_of(row, Condition(field, "=", ()))
    if value is MISSING:
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def field_values(
    index: InfluenceIndex, ids: Sequence[int] | NDArray[np.int64], field: str
) -> list[str]:
    """Returns the value of a field of the training rows `ids`, in their order.

    Raises:
        InputError: no row has the field; the message names those that there are.
    """
    found: list[str | None] = []
    places = np.asarray(ids, np.int64)
    for start in range(0, len(places), _PAGE):
        page = index.store.catalog.samples(places[start : start + _PAGE].tolist())
        found += [label(sample.row, field) for sample in page.values()]
    if all(value is None for value in found):
        fields = ", ".join(index.store.catalog.fields())
        raise InputError(f"no training row has a field {field!r}: the fields are {fields}")
    return [NONE if value is None else value for value in found]

"""The value of one field of every training row, as text."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import MISSING, Row, value_of

NONE = "(none)"
"""Stands for the value of a row that lacks the field."""


def label(row: Row, field: str) -> str | None:
    """Returns the value of a field as text, JSON if it is not text; None if it is missing."""
    value = value_of(row, field)
    if value is MISSING:
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def field_values(
    index: InfluenceIndex, ids: Sequence[int] | NDArray[np.int64], field: str
) -> list[str]:
    """Returns the value of a field of the training rows `ids`, in their order.

    Raises:
        InputError: no row has the field; the message names the fields that exist.
    """
    found = [label(sample.row, field) for sample in index.stored(ids)]
    if all(value is None for value in found):
        fields = ", ".join(index.fields())
        raise InputError(f"no training row has a field {field!r}: the fields are {fields}")
    return [NONE if value is None else value for value in found]

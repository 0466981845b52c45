"""All training rows as they were given, with what was found of each in one more field.

Trainers load such a file: "weight" is for a sampler or a weighted loss, "keep" for a filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forvalue_index.analysis.values import SampleValues
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Row, require_rows

WEIGHT, KEEP = "weight", "keep"


def weighted(index: InfluenceIndex, found: SampleValues) -> Iterator[Row]:
    """Yields all rows that were scored, each with a weight: see `weights`.

    Raises:
        InputError: no value is positive, or a row has a field of that name, or is not there.
    """
    return _with(index, found.ids, WEIGHT, weights(found.value))


def kept(index: InfluenceIndex, ids: NDArray[np.int64], chosen: Iterable[int]) -> Iterator[Row]:
    """Yields the rows with these ids, each with whether it is among the chosen ids.

    Raises:
        InputError: a row has a field of that name, or is not there.
    """
    return _with(index, ids, KEEP, np.isin(ids, list(chosen)))


def rows_of(index: InfluenceIndex, ids: NDArray[np.int64]) -> Iterator[Row]:
    """Yields the rows with these ids, in their order, as they were given.

    Raises:
        InputError: a row is not there.
    """
    for sample in index.stored(ids):
        require_rows([sample])
        yield sample.row


def weights(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns values [n] as weights: none below 0, with a mean of 1.

    Raises:
        InputError: no value is positive.
    """
    positive = np.maximum(value, 0)
    if not positive.any():
        raise InputError(
            f"none of the {len(value):,} training samples has a value above 0, so that no row "
            "would have a weight: choose other targets"
        )
    return np.asarray(positive / positive.mean(), np.float64)


def _with(
    index: InfluenceIndex, ids: NDArray[np.int64], name: str, values: ArrayLike
) -> Iterator[Row]:
    rows = rows_of(index, ids)
    for row, value in zip(rows, np.asarray(values).tolist(), strict=True):
        if name in row:
            raise InputError(
                f"the training rows have a field {name!r} already, so that what was "
                "found has no place there: use --output, which names rows by their keys"
            )
        yield row | {name: value}

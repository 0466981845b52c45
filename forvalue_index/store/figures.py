"""The figures of samples, put together from those of segments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.errors import CorruptIndexError
from forvalue_index.records import Figures
from forvalue_index.search.side import Side


def joined(sides: Sequence[Side]) -> Figures:
    """Returns the figures of all segments, in the order of their ids."""
    columns = [(side.ids, side.norm, side.n_scored, side.loss) for side in sides]
    if not columns:
        return Figures(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64), np.empty(0))
    parts = [np.concatenate(column) for column in zip(*columns, strict=True)]
    if (np.diff(parts[0]) < 0).any():
        order = np.argsort(parts[0])
        parts = [column[order] for column in parts]
    return Figures(*parts)


def aligned(figures: Figures, ids: NDArray[np.int64]) -> Figures:
    """Returns the figures of `ids`, ascending, each checked to be there.

    Raises:
        CorruptIndexError: one is not.
    """
    places = np.searchsorted(figures.ids, ids)
    places = places[places < len(figures.ids)]
    if not np.array_equal(figures.ids[places], ids):
        raise CorruptIndexError(
            "samples were removed meanwhile: ask again, or see `forvalue verify`"
        )
    return Figures(
        figures.ids[places], figures.norm[places], figures.n_scored[places], figures.loss[places]
    )

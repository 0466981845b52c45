"""What is computed from stored vectors beside them: in this process, or where a shard is held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from forvalue_index.search.common import Ids, Scores

VectorsOf = Callable[[Ids], Scores]
"""Gives the stored vectors of any ids of the index [m], [m, dim]."""

_NUMBERS = 2**24  # of the vectors of a block: 64 MiB


class Work(Protocol):
    """What is done with the vectors of a block of rows; it can be pickled.

    Its result depends on these rows alone, and is small beside their vectors.
    """

    def __call__(
        self, vectors: VectorsOf, ids: Ids, beside: NDArray[Any] | None, /
    ) -> NDArray[Any]:
        """Returns what comes of the rows `ids` [m] and what the caller gave with each, [m, ...]."""
        ...


def block_rows(dim: int) -> int:
    """Returns how many rows a block has."""
    return max(1, _NUMBERS // dim)


def part_of(beside: NDArray[Any] | None, places: slice | NDArray[np.intp]) -> NDArray[Any] | None:
    """Returns what the caller gave with the rows at some places."""
    return None if beside is None else beside[places]

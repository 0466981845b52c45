"""Ids of a sharded index: sample `id` of shard `n` of N has the id `id * N + n`.

So ids are unique, never used again, and grow about as the rows were added.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def joined(ids: Ids, shard: int, shards: int) -> Ids:
    """Returns the ids in the sharded index of samples of a shard."""
    return ids * shards + shard


def split(ids: Ids, shards: int) -> Iterator[tuple[int, NDArray[np.intp], Ids]]:
    """Yields each shard that has some of `ids`: its number, their places, and their ids in it."""
    of = ids % shards
    for shard in np.unique(of).tolist():
        places: NDArray[np.intp] = np.flatnonzero(of == shard)
        yield shard, places, ids[places] // shards

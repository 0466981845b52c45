"""What is asked of all shards: each answers by itself, and the answers are joined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from forvalue_index.metric import Metric
from forvalue_index.search.common import best_of
from forvalue_index.shards.ids import Ids, joined, split
from forvalue_index.store.snapshot import Snapshot
from forvalue_index.store.work import Work

Scores = NDArray[np.float32]
Best = tuple[Scores, Ids]
"""Scores and ids of the best of one shard, [q, some] each."""


Block = tuple[int, Ids, "NDArray[Any] | None"]
"""A shard, ids of some of its rows (as the sharded index has them), and what `Work` is given."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is searched for in every shard."""

    queries: Scores  # [q, dim], turned already
    k: int
    metric: Metric  # that decorrelates nothing
    opponents: bool
    flat: bool


class Searcher(Protocol):
    """What searches shards, and computes with their vectors, here or elsewhere."""

    def search(self, asked: Asked, allowed: Mapping[int, Ids] | None) -> dict[int, Best]:
        """Returns number -> the best of that shard, by its own ids, for all shards there are.

        `allowed` are the ids of a shard that may be an answer; of one that it lacks, none may.
        """
        ...

    def compute(self, work: Work, blocks: Iterable[Block]) -> Iterator[NDArray[Any]]:
        """Yields what comes of the vectors of each block, in their order."""
        ...


def search_one(snapshot: Snapshot, asked: Asked, allowed: Ids | None) -> Best:
    """Returns the best of one shard."""
    return snapshot.search(
        asked.queries,
        asked.k,
        asked.metric,
        opponents=asked.opponents,
        allowed=allowed,
        flat=asked.flat,
    )


class Here:
    """Searches the shards in this process, one after the other: each uses all cores."""

    def __init__(self, snapshots: Mapping[int, Snapshot], shards: int) -> None:
        self._snapshots, self._shards = snapshots, shards

    def search(self, asked: Asked, allowed: Mapping[int, Ids] | None) -> dict[int, Best]:
        """Returns the best of each shard; see `Searcher`."""
        return {
            number: search_one(snapshot, asked, None if allowed is None else allowed[number])
            for number, snapshot in self._snapshots.items()
            if allowed is None or number in allowed
        }

    def compute(self, work: Work, blocks: Iterable[Block]) -> Iterator[NDArray[Any]]:
        """Yields what comes of the vectors of each block; see `Searcher`."""
        vectors = partial(vectors_in, lambda n, own: self._snapshots[n].vectors(own), self._shards)
        for _, ids, beside in blocks:
            yield work(vectors, ids, beside)


def vectors_in(shard: Callable[[int, Ids], Scores], shards: int, ids: Ids) -> Scores:
    """Returns the vectors of `ids` [m] of a sharded index, [m, dim], in their order.

    `shard` gives those of ids of one shard, by its number and its own ids.
    """
    found = [(places, shard(number, own)) for number, places, own in split(ids, shards)]
    if len(found) == 1:
        return found[0][1]
    out = np.empty((len(ids), found[0][1].shape[1]), np.float32)
    for places, vectors in found:
        out[places] = vectors
    return out


def merged(found: Mapping[int, Best], asked: Asked, shards: int) -> Best:
    """Returns scores and ids of the k best of all shards, [q, some] each.

    Of equal scores the smaller id comes first.
    """
    n = len(asked.queries)
    scores, ids = [np.empty((n, 0), np.float32)], [np.empty((n, 0), np.int64)]
    for number, (own_scores, own_ids) in found.items():
        scores.append(-own_scores if asked.opponents else own_scores)
        ids.append(joined(own_ids, number, shards))
    best, places = best_of(scores, ids, asked.k)
    return (-best if asked.opponents else best), places


def by_shard(allowed: Ids | None, shards: int) -> dict[int, Ids] | None:
    """Returns number -> those of `allowed` (ascending) that are in that shard, by its own ids."""
    if allowed is None:
        return None
    return {number: own for number, _, own in split(allowed, shards)}

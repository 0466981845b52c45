"""Rows of an index, by key or by condition, without its vectors.

A compaction between two steps may take rows away that the first step found: then both are done
again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from forvalue_index.errors import CorruptIndexError, InputError
from forvalue_index.records import StoredSample, listed
from forvalue_index.store.store import Store

PAGE = 1000
"""Rows in memory at a time."""

SHORTEST = 4
"""Characters of a key that are looked for as a beginning."""


def find(store: Store, key: str) -> StoredSample:
    """Returns the sample under a key.

    Raises:
        InputError: there is none.
    """
    catalog, [key] = store.catalog, listed([key])
    while True:
        generation = catalog.generation()
        ids = list(catalog.ids_of([key]).values())
        if not ids:
            meant = _meant(store, key)
            raise InputError(f"no sample in {store.directory} has key {key!r}: {meant}")
        try:
            return catalog.samples(ids)[ids[0]]
        except CorruptIndexError:
            if catalog.generation() == generation:
                raise


def _meant(store: Store, key: str) -> str:
    """Returns what to do about a key that is none; tables show the beginnings of long ones."""
    start = key.removesuffix("…")
    found = store.catalog.keys_from(start, 2) if len(start) >= SHORTEST else []
    if len(found) == 1:
        return f"the one that begins so is {found[0]}"
    return "see `forvalue list`"


def by_id(store: Store, ids: Iterable[int] | NDArray[np.int64]) -> Iterator[StoredSample]:
    """Yields the samples with these ids, each once, in their order.

    Raises:
        InputError: an id is not a whole number of 64 bits.
        CorruptIndexError: an id has no row, or a row is not what was committed.
    """
    try:
        wanted = np.fromiter(ids, np.int64).tolist()
    except (OverflowError, TypeError, ValueError) as error:
        raise InputError(f"ids are whole numbers, such as those of hits: {error}") from None
    for start in range(0, len(wanted), PAGE):
        yield from store.catalog.samples(wanted[start : start + PAGE]).values()


def listing(
    store: Store, where: str | Iterable[str] = (), after: int = -1, limit: int | None = None
) -> Iterator[StoredSample]:
    """Yields the live samples that meet all conditions, in the order of their ids.

    Args:
        store: the index.
        where: conditions such as "source=math".
        after: only ids above this one.
        limit: at most so many.

    Raises:
        InputError: a condition cannot be read, or no row has its field.
    """
    conditions = listed(where)
    if conditions:
        yield from itertools.islice(_meeting(store, conditions, after), limit)
    else:
        page = PAGE if limit is None else max(1, min(limit, PAGE))
        yield from itertools.islice(store.catalog.iterate(after, page), limit)


def _meeting(store: Store, conditions: list[str], after: int) -> Iterator[StoredSample]:
    catalog = store.catalog
    while True:
        generation = catalog.generation()
        ids = store.answer(lambda snapshot: snapshot.where(conditions))
        ids = ids[ids > after]
        try:
            for start in range(0, len(ids), PAGE):
                for sample in catalog.samples(ids[start : start + PAGE].tolist()).values():
                    yield sample
                    after = sample.id
            return
        except CorruptIndexError:
            if catalog.generation() == generation:
                raise

"""One moment of an index, as a reader sees it: vectors, the figures beside them, and rows.

All figures come from here, aligned with the ids of the vectors. Where a writer has changed the
index so that they no longer fit, CorruptIndexError is raised; `Store.answer` then asks again.
Safe to use from many threads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from threading import RLock

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.reader import Figures
from forvalue_index.config import PAIR_RANKS
from forvalue_index.errors import CorruptIndexError, IndexMissingError
from forvalue_index.records import StoredSample
from forvalue_index.search.decorrelate import decorrelation
from forvalue_index.search.derived import (
    DerivedSearch,
    check_current,
    derived_names,
    open_derived,
    read_info,
)
from forvalue_index.search.flat import FlatSearch

log = logging.getLogger(__name__)


class View:
    """The index at one generation. What a rank needs is made when it is first asked for."""

    def __init__(self, generation: int, flat: FlatSearch, catalog: Catalog, derived: Path) -> None:
        """Takes the vectors of `generation`, the catalogue, and the folder of derived indexes."""
        self.generation = generation
        self.flat = flat
        self._catalog = catalog
        self._folder = derived
        self._lock = RLock()
        self._figures: Figures | None = None
        self._weights: dict[str, NDArray[np.float32]] = {}  # rank -> [ntotal]
        self._derived: dict[str, DerivedSearch | None] = {}  # rank -> if there is one
        self._decorrelation: NDArray[np.float64] | None = None  # [dim, dim]

    def figures(self, ids: ArrayLike | None = None) -> Figures:
        """Returns the figures of `ids` (ascending, in `flat.ids`); None: of all of `flat.ids`.

        Raises:
            CorruptIndexError: the catalogue lacks one of the ids.
        """
        with self._lock:
            if self._figures is None:
                self._figures = _aligned(self._catalog.figures(), self.flat.ids)
            return self._figures if ids is None else _aligned(self._figures, np.asarray(ids))

    def samples(self, ids: Iterable[int]) -> dict[int, StoredSample]:
        """Returns id -> sample, in the order of the ids.

        Raises:
            CorruptIndexError: an id has no row, or a row is not what was committed.
        """
        return self._catalog.samples(ids)

    def where(self, conditions: Iterable[str]) -> NDArray[np.int64]:
        """Returns those of `flat.ids` whose rows meet all conditions, ascending.

        Raises:
            InputError: a condition cannot be read, or no row has its field.
        """
        return self.flat.live(self._catalog.where(conditions))

    def weights(self, rank: str) -> NDArray[np.float32] | None:
        """Returns what the inner product with each of `flat.ids` is multiplied by to rank.

        Raises:
            CorruptIndexError: the catalogue lacks a sample of `flat`.
        """
        if rank in ("dot", "decorrelated"):
            return None
        with self._lock:
            if rank not in self._weights:
                figures = self.figures()
                lengths = figures.norm if rank == "cosine" else figures.n_scored
                self._weights[rank] = (1 / np.maximum(lengths, 1e-30)).astype(np.float32)
                self._weights[rank].flags.writeable = False
            return self._weights[rank]

    def turned(self, queries: NDArray[np.float32], rank: str) -> NDArray[np.float32]:
        """Returns queries [q, dim] as they are compared with the stored vectors under a rank.

        All ranks but "decorrelated" leave them as they are; that one reads all vectors once.
        """
        if rank != "decorrelated":
            return queries
        with self._lock:
            if self._decorrelation is None:
                self._decorrelation = decorrelation(self.flat)
        turned: NDArray[np.float32] = (queries @ self._decorrelation).astype(np.float32)
        return turned

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        rank: str,
        *,
        opponents: bool,
        allowed: NDArray[np.int64] | None,
        flat: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns scores and ids of the k best under a rank, [q, k] each.

        By the derived index for the rank when there is one, unless `flat`. One that a writer has
        left out of date is passed over, with a warning in the log.

        Raises:
            CorruptIndexError: the derived index, or a segment, is damaged.
        """
        queries = self.turned(queries, rank)
        derived = None if flat else self._derived_search(rank if rank in PAIR_RANKS else "dot")
        if derived is not None:
            return derived.search(queries, k, opponents=opponents, allowed=allowed)
        return self.flat.search(
            queries, k, opponents=opponents, allowed=allowed, weights=self.weights(rank)
        )

    def _derived_search(self, rank: str) -> DerivedSearch | None:
        with self._lock:
            if rank not in self._derived:
                self._derived[rank] = self._open_derived(rank)
            return self._derived[rank]

    def _open_derived(self, rank: str) -> DerivedSearch | None:
        while rank in derived_names(self._folder):
            try:
                info = read_info(self._folder, rank)
            except IndexMissingError:  # a writer makes it again
                continue
            try:
                check_current(info, self.flat, self._folder / info.file)
            except CorruptIndexError as error:
                log.warning("searching without the derived index: %s", error)
                return None
            try:
                return open_derived(self._folder, self.flat, rank, weights=self.weights(rank))
            except (CorruptIndexError, IndexMissingError):
                # A writer replaces it: its file may have gone between the two steps.
                if rank in derived_names(self._folder) and read_info(self._folder, rank) == info:
                    raise
        return None


def _aligned(figures: Figures, ids: NDArray[np.int64]) -> Figures:
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

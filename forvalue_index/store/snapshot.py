"""One consistent generation of an index, as a reader sees it: vectors, figures beside them, rows.

All figures come from here, aligned with the ids of the vectors. If a writer has changed the index
so that they no longer fit, CorruptIndexError is raised; `Snapshots.answer` then asks again, with
the newest snapshot. Both classes are safe to use from many threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.errors import CorruptIndexError, IndexMissingError
from forvalue_index.metric import METRICS, Metric
from forvalue_index.records import Figures, StoredSample, require_rows
from forvalue_index.search.ann import DerivedSearch, check_current, open_derived
from forvalue_index.search.ann_files import derived_names, read_info
from forvalue_index.search.checked import CheckedFiles, OpenSegments
from forvalue_index.search.column import Column
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.gpu import Resident
from forvalue_index.search.moment import KeptMoment, Writing
from forvalue_index.search.state import StateSearch
from forvalue_index.search.words import Lexicon
from forvalue_index.store.beside import Beside
from forvalue_index.store.fields import KeptFields
from forvalue_index.store.figures import aligned, joined
from forvalue_index.store.vectoriser import dim_of, is_fitted
from forvalue_index.store.work import Work, block_rows, part_of

if TYPE_CHECKING:
    from forvalue_index.search.cosines import Comparable
    from forvalue_index.search.decorrelate import Decorrelation

log = logging.getLogger(__name__)
T = TypeVar("T")


class Snapshot:
    """The index at one generation. What a metric needs is made when it is first asked for."""

    def __init__(
        self,
        generation: int,
        flat: FlatSearch,
        catalog: Catalog,
        derived: CheckedFiles,
        moments: KeptMoment,
        beside: Beside,
        fields: KeptFields,
        writing: Writing,
    ) -> None:
        """Takes what is there at a generation of the catalogue.

        Args:
            derived: the folder of derived indexes, and which of them were found intact.
            moments, beside, fields: where the second moment of the vectors, the words, figures and
                states of the rows, and the values of their fields are kept.
            writing: gives the right to write these, as long as the index is at this generation.
        """
        self.generation = generation
        self.flat = flat
        self._catalog = catalog
        self._files, self._folder = derived, derived.folder
        self._moments, self._beside, self._fields, self._writing = moments, beside, fields, writing
        self._lock = RLock()
        self._figures: Figures | None = None
        self._weights: dict[str, NDArray[np.float32]] = {}  # metric -> [ntotal]
        self._derived: dict[str, DerivedSearch | None] = {}  # metric -> if there is one
        self._decorrelation: Decorrelation | None = None
        self._lexicon: Lexicon | None = None
        self._states: StateSearch | Literal["not read"] | None = "not read"

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids of all samples, ascending [n]."""
        return self.flat.ids

    @property
    def dim(self) -> int:
        """Length of a stored vector."""
        return self.flat.dim

    @property
    def bytes_per_vector(self) -> int:
        """How large a stored vector is."""
        return self.flat.codes.size

    def vectors(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Returns the stored vectors of samples, [m, dim]."""
        return self.flat.vectors(ids)

    def comparable(self, ids: ArrayLike) -> Comparable:
        """Returns the stored vectors of `ids` [m], in their order, to compare with each other."""
        return self.flat.comparable(ids)

    def compute(
        self, work: Work, ids: NDArray[np.int64], beside: NDArray[Any] | None = None
    ) -> Iterator[tuple[slice | NDArray[np.intp], NDArray[Any]]]:
        """Yields what comes of the vectors of `ids` (ascending), a block at a time.

        Of each block: the places of its rows in `ids`, and what `work` returned. Shards that are
        searched elsewhere are read there.

        Args:
            work: what is done with a block.
            ids: of the rows [n].
            beside: what `work` is given with each row, [n, ...].
        """
        step = block_rows(self.dim)
        for start in range(0, len(ids), step):
            places = slice(start, start + step)
            yield places, work(self.vectors, ids[places], part_of(beside, places))

    def figures(self, ids: ArrayLike | None = None) -> Figures:
        """Returns the figures of `ids` (ascending, in `flat.ids`); None: of all of `flat.ids`.

        Raises:
            CorruptIndexError: the catalogue lacks one of the ids.
        """
        with self._lock:
            if self._figures is None:
                self._catalog.require_intact()
                sides = self._beside.sides.all_of(self.flat.segments, self._writing)
                self._figures = aligned(joined(sides), self.flat.ids)
            return self._figures if ids is None else aligned(self._figures, np.asarray(ids))

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
        return self.flat.live(self._fields.where(self.flat.segments, conditions, self._writing))

    def columns(self, field: str) -> list[Column]:
        """Returns the values of a field, a column for each segment, removed rows among them."""
        self._catalog.require_intact()
        return list(self._fields.columns(self.flat.segments, field, self._writing))

    def weights(self, metric: Metric) -> NDArray[np.float32] | None:
        """Returns what the inner product with each of `flat.ids` is multiplied by; None: by 1.

        Raises:
            CorruptIndexError: the catalogue lacks a sample of `flat`.
        """
        if metric.by is None:
            return None
        with self._lock:
            if metric.name not in self._weights:
                figures = self.figures()
                weights = metric.weights(figures.norm, figures.n_scored)
                weights.flags.writeable = False
                self._weights[metric.name] = weights
            return self._weights[metric.name]

    def turned(self, queries: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
        """Returns queries [q, dim] as they are compared with the stored vectors under a metric.

        The first time under one that decorrelates, vectors are read: see `search/decorrelate.py`.
        """
        if not metric.decorrelates:
            return queries
        with self._lock:
            if self._decorrelation is None:
                from forvalue_index.search.decorrelate import Decorrelation  # it needs torch

                self._decorrelation = Decorrelation(self.flat, self._moments, self._writing)
        return self._decorrelation(queries)

    @property
    def lexicon(self) -> Lexicon:
        """The words of the rows of `flat.ids`; raises InputError if the rows are not there."""
        with self._lock:
            if self._lexicon is None:
                require_rows(self._catalog.samples(self.flat.ids[:1].tolist()).values())
                words = self._beside.words.all_of(self.flat.segments, self._writing)
                self._lexicon = Lexicon(words, self.flat.ids)
            return self._lexicon

    @property
    def states(self) -> StateSearch | None:
        """The states of the rows of `flat.ids`; None: there are none, or some are lost."""
        with self._lock:
            if self._states == "not read":
                self._states = self._read_states()
                if self._states is None and self._catalog.generation() != self.generation:
                    raise CorruptIndexError(
                        "a writer replaced the states of this generation: ask again"
                    )
            return self._states

    def _read_states(self) -> StateSearch | None:
        return self._beside.states.search(self.flat.segments, self.flat.ids)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        metric: Metric,
        *,
        opponents: bool,
        allowed: NDArray[np.int64] | None,
        flat: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns scores and ids of the k best under a metric, [q, k] each.

        By the derived index for the metric when there is one and it is current, unless `flat`.

        Raises:
            CorruptIndexError: the derived index, or a segment, is damaged.
        """
        queries = self.turned(queries, metric)
        derived = None if flat else self._derived_search(metric.derived)
        if derived is not None:
            return derived.search(queries, k, opponents=opponents, allowed=allowed)
        return self.flat.search(
            queries, k, opponents=opponents, allowed=allowed, weights=self.weights(metric)
        )

    def _derived_search(self, name: str) -> DerivedSearch | None:
        with self._lock:
            if name not in self._derived:
                self._derived[name] = self._open_derived(name)
            return self._derived[name]

    def _open_derived(self, name: str) -> DerivedSearch | None:
        while name in derived_names(self._folder):
            try:
                info = read_info(self._folder, name)
            except IndexMissingError:  # a writer makes it again
                continue
            try:
                check_current(info, self.flat, self._folder / info.file)
            except CorruptIndexError as error:
                log.warning("searching without the derived index: %s", error)
                return None
            weights = self.weights(METRICS[info.metric])
            try:
                return open_derived(
                    self._folder, self.flat, name, weights=weights, checked=self._files
                )
            except (CorruptIndexError, IndexMissingError):
                # A writer replaces it: its file may have gone between the two steps.
                if name in derived_names(self._folder) and read_info(self._folder, name) == info:
                    raise
        return None


class Snapshots:
    """The snapshots of an index: one is kept as long as no other generation was committed.

    The next one shares the mapped segments of the last whose files are the same.
    """

    def __init__(
        self,
        catalog: Catalog,
        bits: int,
        moments: KeptMoment,
        beside: Beside,
        fields: KeptFields,
        segments: CheckedFiles,
        derived: CheckedFiles,
        lock_at: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        """Takes an index's parts; `lock_at` gives the right to write at a generation."""
        self.derived = derived
        self._folder = segments.folder
        self._segments = OpenSegments(segments)
        self._catalog = catalog
        self._bits = bits
        self._moments, self._beside, self._fields = moments, beside, fields
        self._lock_at = lock_at
        self._opening = RLock()  # of all of the above that changes, and of the two below
        self._current: Snapshot | None = None
        self._resident: Resident | None = None  # outlives snapshots: they share most vectors

    @property
    def current(self) -> Snapshot:
        """The snapshot that was opened last; the newest generation if there is none."""
        with self._opening:
            if self._current is None:
                self._current = self._open()
            return self._current

    def refresh(self) -> None:
        """Drops the current snapshot if another generation was committed since it was opened."""
        with self._opening:
            if self._current and self._current.generation != self._catalog.generation():
                self._current = None

    def drop(self) -> None:
        """Drops the current snapshot, as for a new derived index, which is no new generation."""
        with self._opening:
            self._current = None

    def close(self) -> None:
        """Lets go of the segments, also on GPUs."""
        with self._opening:
            self._current = self._resident = None
            self._segments.close()

    def answer(self, ask: Callable[[Snapshot], T]) -> T:
        """Returns what `ask` finds in the index as it is now: nothing that is removed already.

        It is called again, with another snapshot, if a writer replaced segments and rows under it.
        """
        while True:
            with self._opening:
                self.refresh()
                snapshot = self.current
            try:
                return ask(snapshot)
            except CorruptIndexError:
                if self._catalog.generation() == snapshot.generation:
                    raise

    def _open(self) -> Snapshot:
        catalog = self._catalog
        while True:
            if not is_fitted(catalog):  # when this was opened
                catalog.reload()
            state, dim = catalog.snapshot(), dim_of(catalog)
            lock = partial(self._lock_at, state.generation)
            try:
                opened = self._segments.open(state.segments, dim, self._bits)
                if self._resident is None:
                    self._resident = Resident(dim)
                flat = FlatSearch(
                    self._folder,
                    state.segments,
                    dim,
                    self._bits,
                    state.removed,
                    self._resident,
                    opened,
                    partial(self._beside.sides.all_of, state.segments, lock),
                )
            except CorruptIndexError:
                # A compaction replaces files: it may have come between the two steps.
                if catalog.generation() == state.generation:
                    raise
                continue
            return Snapshot(
                state.generation,
                flat,
                catalog,
                self.derived,
                self._moments,
                self._beside,
                self._fields,
                lock,
            )

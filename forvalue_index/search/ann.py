"""Search with an approximate FAISS index, for where comparing every vector takes too long.

It is derived: it can be made again from the segments without a forward pass, and deleting it loses
nothing. It only proposes candidates; every score is that of the stored vectors, to the bit. The
segments that are newer are compared vector by vector, and FAISS leaves out what was removed. Knows
nothing of rows, keys or models. `ann_build.py` makes it, `ann_files.py` keeps it.
"""

from __future__ import annotations

from math import ceil, log10
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from forvalue_index.errors import CorruptIndexError
from forvalue_index.search.ann_factory import Effort
from forvalue_index.search.ann_files import NEXT, DerivedInfo, Side, read_file, read_info
from forvalue_index.search.checked import CheckedFiles
from forvalue_index.search.common import Ids, Scores, best_of, bits_of, selector_of
from forvalue_index.search.flat import FlatSearch


class DerivedSearch:
    """Search with a derived index, with the guarantees of `FlatSearch`, but for recall."""

    def __init__(
        self, info: DerivedInfo, index: Any, flat: FlatSearch, weights: ArrayLike | None = None
    ) -> None:
        """`open_derived` is the way to get one.

        Args:
            info: what `index` is.
            index: the FAISS index.
            flat: the segments, as they are now.
            weights: those of the metric it was made for, one for each of `flat.ids`.
        """
        self.info = info
        self._index = index
        self._flat = flat
        self._weights = None if weights is None else np.asarray(weights, np.float32)
        self._effort = Effort(index)
        self._covered = flat.ids_in(info.segments)
        self._newer = np.setdiff1d(flat.ids, self._covered, assume_unique=True)
        self._live = None  # selector of what it covers; None: all that it holds
        if len(self._covered) < info.ntotal:
            self._live = selector_of(bits_of(self._covered))

    @property
    def ntotal(self) -> int:
        """Number of vectors that can be an answer."""
        return self._flat.ntotal

    @property
    def uncovered(self) -> float:
        """Share of the live vectors that are newer than the index, and compared one by one."""
        return len(self._newer) / max(1, self.ntotal)

    def search(
        self,
        queries: Scores,
        k: int,
        *,
        opponents: bool = False,
        allowed: ArrayLike | None = None,
    ) -> tuple[Scores, Ids]:
        """As `FlatSearch.search`: exactly min(k, live) hits, with exact scores, in their order.

        Not every one of the exact top k is found; `info` has the share. If the index can give fewer
        than k, or most of it would be searched, as with a narrow filter, all vectors are compared.
        """
        side = self.info.opponents if opponents else self.info.proponents
        covered, newer, selector = self._covered, self._newer, self._live
        if allowed is not None:
            wanted = self._flat.live(allowed)
            covered = np.intersect1d(covered, wanted, assume_unique=True)
            newer = np.intersect1d(newer, wanted, assume_unique=True)
            selector = selector_of(bits_of(covered))
        effort = self.needed(side, k, len(covered))
        if effort is None or side.flat or k < 1 or not len(queries):
            return self._flat.search(
                queries, k, opponents=opponents, allowed=allowed, weights=self._weights
            )
        asked = -self._flat.checked(queries) if opponents else self._flat.checked(queries)
        ids = self.candidates(asked, k * self.info.k_factor, effort, selector)
        scores = self.scored(asked, ids)
        if len(newer):
            more_scores, more_ids = self._flat.search(
                asked, k, allowed=newer, weights=self._weights
            )
            scores = np.concatenate([scores, more_scores], axis=1)
            ids = np.concatenate([ids, more_ids], axis=1)
        k = min(k, len(covered) + len(newer))
        scores, ids = best_of([scores], [ids], k)
        short = (ids < 0).any(axis=1) if ids.shape[1] == k else np.ones(len(ids), bool)
        if short.any():
            if ids.shape[1] < k:
                scores, ids = np.empty((len(ids), k), np.float32), np.empty((len(ids), k), np.int64)
            scores[short], ids[short] = self._flat.search(
                asked[short], k, allowed=allowed, weights=self._weights
            )
        return (-scores if opponents else scores), ids

    def candidates(self, queries: Scores, m: int, effort: int, selector: Any = None) -> Ids:
        """Returns ids that FAISS proposes by its codes, [q, m], best first; -1: no more."""
        m = min(m, self.info.ntotal)
        parameters = self._effort.parameters(effort, selector)
        return np.asarray(self._index.search(queries, m, params=parameters)[1])

    def scored(self, queries: Scores, ids: Ids) -> Scores:
        """Returns the exact scores of candidates [q, m]; minus infinity for the id -1."""
        none = ids < 0
        scores = self._flat.scores_of(
            queries, np.where(none, self._covered[0], ids), weights=self._weights
        )
        scores[none] = -np.inf
        return scores

    def needed(self, side: Side, k: int, allowed: int) -> int | None:
        """Returns the effort at which as many allowed vectors are seen as were, when recall was
        measured, and enough for k; None if it is as well to compare all that are allowed."""
        if not allowed:
            return None
        most = self._effort.most(self.info.ntotal)
        growth = log10(side.effort_at_100 / side.effort)
        effort = ceil(side.effort * max(1.0, k / 10) ** growth)
        if self._effort.name == "nprobe":
            # Lists are of about one length: see at least four vectors for each candidate.
            effort = max(effort, -(-4 * k * self.info.k_factor * most // self.info.ntotal))
        elif self._effort.name == "efSearch":
            effort = max(effort, k * self.info.k_factor)
        elif allowed < self.info.ntotal // 4:
            return None
        fewer = max(1.0, self.info.ntotal / allowed)
        # A graph's steps lead through those that are not allowed: measured, it takes more.
        effort = ceil(effort * (fewer**1.5 if self._effort.name == "efSearch" else fewer))
        return effort if effort < most or effort == side.effort else None


def open_derived(
    folder: str | Path,
    flat: FlatSearch,
    name: str = "dot",
    *,
    weights: ArrayLike | None = None,
    checked: CheckedFiles | None = None,
) -> DerivedSearch:
    """Returns the derived index NAME in `folder`, mapped into memory where FAISS can.

    Its file is hashed whole, some 0.5 s per GB: a damaged graph or list could crash FAISS.

    Args:
        folder: INDEX/derived.
        flat: the segments, as they are now.
        name: by convention the metric it is for.
        weights: those of the metric it was made for, one for each of `flat.ids`.
        checked: files that need not be hashed, to which this one is added.

    Raises:
        IndexMissingError: there is none of this name.
        CorruptIndexError: it is damaged, or covers segments that are no longer there.
    """
    info = read_info(folder, name)
    path = info.path_in(folder)
    check_current(info, flat, path)
    index = read_file(path, info, mapped=True, checked=checked)
    return DerivedSearch(info, index, flat, weights)


def check_current(info: DerivedInfo, flat: FlatSearch, path: Path) -> None:
    """Checks that all that a derived index covers is in the segments of `flat`.

    Raises:
        CorruptIndexError: it was made from other segments; the message names one.
    """
    name = flat.differing(info.segments)
    if name is not None:
        there = any(segment.name == name for segment in flat.segments)
        what = "has changed since" if there else "no longer exists"
        raise CorruptIndexError(
            f"{path} is out of date: it was made from segment {name}, which {what}; {NEXT}"
        )
    covered = len(flat.ids_in(info.segments))
    if info.dim != flat.dim or info.ntotal < covered:
        raise CorruptIndexError(
            f"{path} holds {info.ntotal} vectors of {info.dim} numbers, but its segments hold "
            f"{covered} of {flat.dim}: {NEXT}"
        )

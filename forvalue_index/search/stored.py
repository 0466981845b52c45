"""The stored vectors of an index under their ids, in mapped segments.

As they were when the segments were opened, whatever a writer does meanwhile. Knows nothing of
queries, rows or keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forvalue_index.errors import CorruptIndexError, InputError
from forvalue_index.records import Segment
from forvalue_index.search.common import Ids, Scores
from forvalue_index.search.first_pass import first_rows
from forvalue_index.search.segment import OpenSegment, open_segment
from forvalue_index.search.side import Side
from forvalue_index.vectors.codes import Bytes, Codes

if TYPE_CHECKING:
    from forvalue_index.search.cosines import Comparable

_NUMBERS = 2**24  # of vectors that `blocks` holds at a time: 64 MiB


class StoredVectors:
    """The vectors of all segments. Those that were removed are in no answer."""

    def __init__(
        self,
        folder: str | Path,
        segments: Iterable[Segment],
        dim: int,
        bits: int,
        removed: ArrayLike = (),
        opened: Sequence[OpenSegment] | None = None,
        sides: Callable[[], Sequence[Side]] | None = None,
    ) -> None:
        """Takes the segments in `folder`; the ids in `removed` are in no answer.

        `opened` are the segments, mapped already; `sides` gives what is kept beside each.

        Raises:
            CorruptIndexError: a segment is not what was committed, or an id is in two of them.
        """
        self.segments = tuple(segments)
        if opened is None:
            opened = [open_segment(folder, segment, dim, bits) for segment in self.segments]
        self.opened = opened
        self._sides = sides
        # Of a million ids in order, as they mostly are, np.unique and np.setdiff1d take a second.
        every = np.concatenate([np.empty(0, np.int64), *(segment.ids for segment in opened)])
        self._ids_at = every  # of the places
        self._order = None if _ascend(every) else np.argsort(every)
        if self._order is not None:
            every = every[self._order]
        twice = every[1:][every[1:] == every[:-1]]
        if len(twice):
            raise CorruptIndexError(
                f"id {twice[0]} is in more than one segment of {folder}: "
                "see `forvalue verify`, or build again"
            )
        self.dim = dim
        self.codes = Codes(dim, bits)
        self._every = every
        self._starts = np.cumsum([0, *(len(segment.ids) for segment in opened)])[:-1]
        gone = np.unique(np.asarray(removed, np.int64))
        self._live = every[~among(every, gone)] if len(gone) else every

    @property
    def ntotal(self) -> int:
        """Number of vectors that can be an answer."""
        return len(self._live)

    @property
    def ids(self) -> Ids:
        """Ids of the vectors that can be an answer, ascending [ntotal]."""
        return self._live

    def vectors(self, ids: ArrayLike) -> Scores:
        """Returns the stored vectors of `ids` [m], in their order: [m, dim] float32.

        Raises:
            InputError: an id is not live.
        """
        return self.codes.decode(self.data(ids))

    def comparable(self, ids: ArrayLike) -> Comparable:
        """Returns the stored vectors of `ids` [m], in their order, for their cosines.

        Raises:
            InputError: an id is not live.
        """
        from forvalue_index.search.cosines import Comparable  # it needs torch

        return Comparable.of(self.codes, self.data(ids))

    def data(self, ids: ArrayLike) -> Bytes:
        """Returns the codes of `ids` [m] as they are stored, in their order: [m, size].

        Raises:
            InputError: an id is not live.
        """
        wanted = np.asarray(ids, np.int64)
        self._require_live(wanted)
        return self._data(wanted)

    def _require_live(self, ids: Ids) -> None:
        missing = ids[~among(ids, self._live)]
        if len(missing):
            raise InputError(
                f"{len(missing)} samples are not in the index, the first with id "
                f"{missing.min()}: ask for ids of its rows"
            )

    def _data(self, ids: Ids) -> Bytes:
        out = np.empty((len(ids), self.codes.size), np.uint8)
        places = self._places(ids)
        segments = np.searchsorted(self._starts, places, side="right") - 1
        for number in np.unique(segments):
            here = segments == number
            out[here] = self.opened[number].data[places[here] - self._starts[number]]
        return out

    def _places(self, ids: Ids) -> NDArray[np.int64]:
        """Returns the place of each id among all vectors, segment after segment."""
        places: NDArray[np.int64] = np.searchsorted(self._every, ids)
        return places if self._order is None else self._order[places]

    def blocks(self, ids: Ids | None = None) -> Iterator[tuple[Ids, Scores]]:
        """Yields `ids` (None: all live ones) and their vectors, some 64 MiB at a time."""
        ids, step = self._live if ids is None else ids, max(1, _NUMBERS // self.dim)
        for start in range(0, len(ids), step):
            block = ids[start : start + step]
            yield block, self.vectors(block)

    def live(self, ids: ArrayLike) -> Ids:
        """Returns those of `ids` that can be an answer, ascending, each once."""
        wanted = np.asarray(ids, np.int64)
        if not _ascend(wanted):
            wanted = np.unique(wanted)
        return wanted[among(wanted, self._live)]

    def first_rows(self) -> list[Bytes]:
        """Returns the highest bits of the vectors of each segment; see `first_pass.py`."""
        if self._sides is None:
            return [first_rows(self.codes, opened) for opened in self.opened]
        return [side.rows for side in self._sides()]

    def differing(self, segments: Mapping[str, str]) -> str | None:
        """Returns the first of segments (name -> sha256) that is not among these; None: all are.

        A segment that was joined into another is still there.
        """
        found = {segment.name: segment.sha256 for segment in self.segments}
        if segments.items() <= found.items():
            return None
        found |= {name: sha256 for name, (sha256, _) in self._joined.items()}
        return next((name for name in segments if segments[name] != found.get(name)), None)

    @cached_property
    def _joined(self) -> dict[str, tuple[str, Ids]]:
        """Segments that were joined into these: name -> sha256, and their ids."""
        found: dict[str, tuple[str, Ids]] = {}
        sides = [] if self._sides is None else self._sides()
        for side, opened in zip(sides, self.opened, strict=bool(sides)):
            for name, (sha256, first, last) in side.lineage.items():
                start, end = np.searchsorted(opened.ids, [first, last + 1])
                found[name] = sha256, opened.ids[start:end]
        return found

    def every_id_in(self, segments: Iterable[str]) -> Ids:
        """Returns the ids in the segments of these names, ascending, removed ones among them."""
        names = set(segments)
        ids = [opened.ids for opened in self.opened if opened.name in names]
        if left := names - {opened.name for opened in self.opened}:
            ids += [self._joined[name][1] for name in left if name in self._joined]
        return np.unique(np.concatenate([np.empty(0, np.int64), *ids]))

    def ids_in(self, segments: Iterable[str]) -> Ids:
        """Returns the ids in the segments of these names that can be an answer, ascending."""
        return self.live(self.every_id_in(segments))


def _ascend(ids: Ids) -> bool:
    return bool((ids[1:] > ids[:-1]).all())


def among(ids: Ids, ascending: Ids) -> NDArray[np.bool_]:
    """Returns which ids are among those that ascend, without sorting these as np.isin would."""
    if not len(ascending):
        return np.zeros(ids.shape, bool)
    places = np.minimum(np.searchsorted(ascending, ids), len(ascending) - 1)
    return np.asarray(ascending[places] == ids)

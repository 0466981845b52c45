"""The states of an index's rows, kept for each segment (`search/state.py`).

They are written with their segment and go where it goes. What is lost stays lost: only the model
could make it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.records import Segment
from forvalue_index.search.checked import State
from forvalue_index.search.state import SUFFIX, StateCodes, States, StateSearch
from forvalue_index.search.stored import among
from forvalue_index.store.kept import Kept

LOST = (
    "--metric hybrid is words and cosine alone; nothing but the model can make states again: "
    "build the index again to have them"
)


class KeptStates(Kept[States]):
    """The states of an index over time."""

    suffix, kind = SUFFIX, States

    def search(self, segments: Sequence[Segment], live: NDArray[np.int64]) -> StateSearch | None:
        """Returns the states of the live rows of segments; None: some of them are missing."""
        with self._lock:
            self._known = self._read(segments)
            parts = [self._known.get(segment.sha256) for segment in segments]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) or len({part.codes.shape[1] for part in found}) != 1:
            return None
        if not among(live, np.sort(np.concatenate([part.ids for part in found]))).all():
            return None
        return StateSearch(found, live)

    def put_codes(self, segment: Segment, ids: NDArray[np.int64], codes: StateCodes) -> State:
        """Keeps the states [n, m] of a new segment; only the holder of the writer's lock may.

        Raises:
            OSError: the disk is full.
        """
        return self.put(segment, States(ids, codes))

    def put_some(
        self, new: Segment, old: Sequence[Segment], ids: NDArray[np.int64]
    ) -> State | None:
        """Keeps the states of a segment that has `ids` of others; None: some of theirs are missing.

        Raises:
            OSError: the disk is full.
        """
        found = self.search(old, ids)
        return None if found is None else self.put_codes(new, ids, found.codes(ids))

    def lacking(self, segments: Iterable[Segment], dim: int) -> Iterator[str]:
        """Yields what is wrong, where each row should have a state of `dim` numbers."""
        for segment in segments:
            found = States.read(self._folder, segment)
            if found is None or found.codes.shape[1] != dim:
                yield (
                    f"{self.file(segment)}, the states of {segment.ntotal:,} rows, is missing or "
                    f"damaged: {LOST}"
                )

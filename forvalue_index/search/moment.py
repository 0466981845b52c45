"""The second moment of the stored vectors, for the metric "decorrelated" (`decorrelate.py`).

The sum of v v^T is kept in a file, so that only vectors that are new or gone since are read. It is
derived: computed again if it is missing, damaged, or of other segments.

    derived/second-moment.bin    JSON of what it covers, a line; the upper triangle of the sum, row
                                 by row, float32; the sha256 of all that, in hex
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from forvalue_index.errors import ForvalueError
from forvalue_index.search.common import Ids, Scores
from forvalue_index.search.flat import FlatSearch
from forvalue_index.system.files import atomic_write, open_own

MOMENT = "second-moment.bin"

Writing = Callable[[], AbstractContextManager[None]]

_NUMBERS = 2**24  # of vectors that are summed at a time: 64 MiB


@dataclass(frozen=True, slots=True)
class SecondMoment:
    """The sum of v v^T over samples, and which samples these are."""

    total: Scores  # [D, D]
    segments: dict[str, str]  # name -> sha256 of those that hold the samples
    left_out: Ids  # ids in these segments that are not in the sum
    most: float  # the largest trace since it was made: what rounding is in proportion to

    def covered(self, flat: FlatSearch) -> Ids | None:
        """Returns the ids of its samples; None if it is of other segments."""
        if flat.differing(self.segments) is not None or len(self.total) != flat.dim:
            return None
        return np.setdiff1d(flat.every_id_in(self.segments), self.left_out)

    def now_of(self, flat: FlatSearch) -> SecondMoment:
        """Returns it as that of the live samples of `flat`, which they are."""
        every = [opened.ids for opened in flat.opened]
        return replace(
            self,
            segments={segment.name: segment.sha256 for segment in flat.segments},
            left_out=np.setdiff1d(np.concatenate([np.empty(0, np.int64), *every]), flat.ids),
            most=max(self.most, float(np.trace(self.total, dtype=np.float64))),
        )


class KeptMoment:
    """The second moment of an index, kept on disk, or in memory if it cannot be written."""

    def __init__(self, folder: Path) -> None:
        """Takes INDEX/derived, which need not exist."""
        self._path = folder / MOMENT
        self._lock = Lock()
        self._own: SecondMoment | None = None  # what could not be written

    def of(self, flat: FlatSearch, writing: Writing) -> SecondMoment:
        """Returns the second moment of the live vectors; reads those that are new or gone since.

        `writing` gives the right to replace the file; if entering it fails, the file stays.
        """
        with self._lock:
            known = self._own
            if known is None or known.covered(flat) is None:
                known = self._read(flat)
            moment = _brought_up_to(flat, known)
            if moment is not known:
                try:
                    self._write(moment, writing)
                    self._own = None
                except (OSError, ForvalueError):
                    self._own = moment
            return moment

    def problem(self, flat: FlatSearch) -> str | None:
        """Returns what is wrong with the file, if there is one: it is to be as `flat` needs it."""
        if not self._path.exists() or self._read(flat) is not None:
            return None
        return (
            f"{self._path} is damaged, or of other segments, and counts for nothing: forvalue "
            "verify --repair removes it, and it is made again when it is needed"
        )

    def drop(self) -> None:
        """Removes the file, if there is one; only the holder of the writer's lock may."""
        self._path.unlink(missing_ok=True)

    def take(self, flat: FlatSearch) -> SecondMoment | None:
        """Returns what the file has, brought up to `flat`, and removes it; None if nothing fits.

        Only the holder of the writer's lock may.
        """
        with self._lock:
            known = self._read(flat)
            self._own = None
            self.drop()
            return None if known is None else _brought_up_to(flat, known)

    def put(self, moment: SecondMoment, flat: FlatSearch) -> None:
        """Keeps the moment of the live vectors of `flat`; only the holder of the lock may.

        Raises:
            OSError: the disk is full.
        """
        self._write(moment.now_of(flat), nullcontext)

    def _read(self, flat: FlatSearch) -> SecondMoment | None:
        """Returns what the file has; None if there is none, or it is damaged or unfitting."""
        dim, ids = flat.dim, sum(len(opened.ids) for opened in flat.opened)
        numbers = dim * (dim + 1) // 2
        try:
            with open_own(self._path) as file:
                most = 4 * numbers + 200 * (len(flat.segments) + ids + 5)
                data = file.read(most)
            end = len(data) - 64
            if hashlib.sha256(memoryview(data)[:end]).hexdigest().encode() != data[end:]:
                return None
            start = data.index(b"\n") + 1
            head = json.loads(data[:start])
            total = np.zeros((dim, dim), np.float32)
            if end - start != 4 * numbers:
                return None
            for i in range(dim):
                row = np.frombuffer(data, "<f4", dim - i, start)
                total[i, i:] = total[i:, i] = row
                start += row.nbytes
            left_out = np.array(head["left_out"], np.int64)
            moment = SecondMoment(total, dict(head["segments"]), left_out, float(head["most"]))
            return None if moment.covered(flat) is None else moment
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None

    def _write(self, moment: SecondMoment, writing: Writing) -> None:
        head = {
            "segments": moment.segments,
            "left_out": moment.left_out.tolist(),
            "most": moment.most,
        }
        digest = hashlib.sha256()
        with ExitStack() as held:

            def named() -> Path:
                held.enter_context(writing())  # until the file is in its place, and no longer
                return self._path

            self._path.parent.mkdir(exist_ok=True)
            with atomic_write(self._path, named=named) as file:
                rows = (row[i:].astype("<f4").tobytes() for i, row in enumerate(moment.total))
                for part in (json.dumps(head).encode() + b"\n", *rows):
                    digest.update(part)
                    file.write(part)
                file.write(digest.hexdigest().encode())


def _brought_up_to(flat: FlatSearch, known: SecondMoment | None) -> SecondMoment:
    """Returns the second moment of the live vectors, from `known` if that is cheaper."""
    covered = None if known is None else known.covered(flat)
    if known is not None and covered is not None:
        gone = np.setdiff1d(covered, flat.ids, assume_unique=True)
        new = np.setdiff1d(flat.ids, covered, assume_unique=True)
        if not len(gone) + len(new):
            return known
        if len(gone) + len(new) < flat.ntotal:
            total = known.total + _sum(flat, new) - _sum(flat, gone)
            # The sum was larger before: what is left must be more than its rounding.
            if np.trace(total, dtype=np.float64) > known.most / 2:
                return replace(known, total=total).now_of(flat)
    return SecondMoment(_sum(flat, flat.ids), {}, np.empty(0, np.int64), 0.0).now_of(flat)


def _sum(flat: FlatSearch, ids: Ids) -> Scores:
    """Returns the sum of v v^T over samples [D, D], also over those that were removed."""
    total = np.zeros((flat.dim, flat.dim), np.float32)
    step = max(1, _NUMBERS // flat.dim)
    for opened in flat.opened:
        places: NDArray[np.intp] = np.flatnonzero(np.isin(opened.ids, ids))
        for start in range(0, len(places), step):
            vectors = flat.codes.decode(opened.data[places[start : start + step]])
            total += vectors.T @ vectors
    return total

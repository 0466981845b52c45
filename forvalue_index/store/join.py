"""Small segments become larger ones while rows are added: a file for many commits, not for each.

    new segment file, its parts in derived/ -> one transaction -> the old files are deleted

Killed anywhere, the index is as it was before or after. Nothing is left out: removed vectors and
their tombstones stay until `compact`. So whatever was derived of the old segments still fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.errors import CorruptIndexError
from forvalue_index.records import Segment
from forvalue_index.search.segment import NEXT, SUFFIX, OpenSegment, verify_segment, write_codes
from forvalue_index.store.layout import storing
from forvalue_index.system.files import path_in, sync_folder
from forvalue_index.vectors.codes import Bytes, Codes

FEWEST = 16
"""Segments that are joined at a time, at least."""

SHARE = 8
"""The largest of them has at most one in so many of their vectors: so each vector is written
again a number of times that grows with the logarithm of how many there are."""


def joinable(sizes: Sequence[int], most: int) -> int:
    """Returns how many of the last segments to join; 0: none.

    Args:
        sizes: vectors of each segment, in the order in which they were committed.
        most: vectors that the joined one may have.
    """
    found, total, largest = 0, 0, 0
    for count, size in enumerate(reversed(sizes), start=1):
        total, largest = total + size, max(largest, size)
        if total > most:
            break
        if count >= FEWEST and SHARE * largest <= total:
            found = count
    return found


def require_sound(
    folder: Path, catalog: Catalog, segments: Sequence[Segment], dim: int, bits: int
) -> list[NDArray[np.int64]]:
    """Returns the ids of segments, each verified: a new checksum must not make damage look sound.

    Raises:
        CorruptIndexError: one is not what was committed.
    """
    found = []
    for segment in segments:
        ids = catalog.segment_ids(segment.name)
        for problem in verify_segment(folder, segment, dim, ids, bits):
            raise CorruptIndexError(f"{problem}: none of it was rewritten; {NEXT}")
        found.append(ids)
    return found


def retained_energy(
    catalog: Catalog, segments: Sequence[Segment], counts: Sequence[int]
) -> float | None:
    """Returns the mean of what the projection kept of segments, of which `counts` rows are left."""
    kept, total = catalog.retained_energy(), sum(counts)
    shares = [kept.get(s.name, 0.0) * n for s, n in zip(segments, counts, strict=True)]
    return sum(shares) / total if total else None


def write_joined(
    folder: Path, catalog: Catalog, opened: Sequence[OpenSegment], codes: Codes
) -> Segment | None:
    """Writes a segment with the vectors of others and returns it; None if their ids overlap.

    Raises:
        StorageError: the disk is full.
    """
    ids = np.concatenate([segment.ids for segment in opened])
    if (np.diff(ids) <= 0).any():
        return None
    data: Bytes = np.concatenate([segment.data for segment in opened])
    with storing(folder.parent):
        return write_codes(folder, new_name(catalog, ids), ids, data, codes)


def new_name(catalog: Catalog, ids: NDArray[np.int64]) -> str:
    """Returns a name that no committed segment ever had: the generation grows with each commit."""
    return f"{ids[0]:012d}-{catalog.generation() + 1}{SUFFIX}"


def put_in_place(
    folder: Path,
    catalog: Catalog,
    old: Sequence[Segment],
    new: Segment | None,
    energy: float | None,
    *,
    joined: bool,
) -> None:
    """Commits a segment in the place of others, and deletes their files."""
    names = [segment.name for segment in old]
    catalog.replace_segments(names, new, retained_energy=energy, joined=joined)
    for name in names:
        path_in(folder, name, SUFFIX).unlink(missing_ok=True)
    sync_folder(folder)

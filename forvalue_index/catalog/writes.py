"""Steps of the transactions that change a catalogue: rows with their checksums and digests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sqlalchemy import Connection, bindparam, insert, select, update

from forvalue_index.catalog.digests import NO_SEGMENTS, seal_ids, xor
from forvalue_index.catalog.reads import CHUNK, in_chunks, some
from forvalue_index.catalog.rows import now, seal
from forvalue_index.catalog.schema import SampleTable, SegmentTable
from forvalue_index.catalog.sealed import SealedSegment, require_segment, sealed_segments
from forvalue_index.catalog.sealed_rows import rows_changed
from forvalue_index.errors import CorruptIndexError
from forvalue_index.records import Segment


def insert_segment(
    connection: Connection,
    segment: Segment,
    retained_energy: float | None,
    figures: str,
    texts: str,
) -> SealedSegment:
    """Adds a row to `segments`, with digests of its rows of `samples`, and returns it."""
    energy = None if retained_energy is None else float(retained_energy)
    made = SealedSegment(0, segment, now(), energy, figures, texts, seal_ids([]), "")
    values = {
        "name": segment.name,
        "ntotal": segment.ntotal,
        "bytes": segment.bytes,
        "sha256": segment.sha256,
        "created_at": made.created_at,
        "retained_energy": energy,
        "figures": figures,
        "texts": texts,
        "removed": made.removed,
        "checksum": made.seal,
    }
    statement = insert(SegmentTable).returning(SegmentTable.id)
    id = connection.execute(statement, values).scalar_one()
    return replace(made, id=id, checksum=made.seal)


def bury(connection: Connection, ids: list[int]) -> tuple[int, str]:
    """Makes live samples tombstones; returns how many, and the XOR of the changed checksums.

    Raises:
        CorruptIndexError: one is not live, or the tombstones are not those that were committed.
    """
    columns = SampleTable.id, SampleTable.segment_id, SampleTable.checksum
    statement = select(*columns).where(SampleTable.removed_at.is_(None))
    found = list(in_chunks(connection, statement, ids, SampleTable.id))
    gone = set(ids) - {row.id for row in found}
    if gone:
        raise CorruptIndexError(
            f"samples {some(sorted(gone))} are not live, so they cannot be removed or "
            "replaced: nothing was committed; run `forvalue verify`"
        )
    if not found:
        return 0, NO_SEGMENTS
    time = now()
    connection.execute(
        update(SampleTable.__table__)  # type: ignore[arg-type]
        .where(SampleTable.id == bindparam("_id"))
        .values(removed_at=time, checksum=bindparam("_checksum")),
        [{"_id": row.id, "_checksum": seal(row.checksum, time)} for row in found],
    )
    new: dict[int, list[int]] = {}
    for row in found:
        new.setdefault(row.segment_id, []).append(row.id)
    removed: dict[int, list[int]] = {id: [] for id in new}
    places = select(SampleTable.segment_id, SampleTable.id)
    gone_by_now = places.where(SampleTable.removed_at.is_not(None))
    for row in in_chunks(connection, gone_by_now, list(new), SampleTable.segment_id):
        removed[row.segment_id].append(row.id)
    seals = []
    for segment in intact_segments(connection, list(new)):
        now_removed = removed[segment.id]
        if seal_ids(np.setdiff1d(now_removed, new[segment.id])) != segment.removed:
            raise CorruptIndexError(rows_changed(segment, "removed_at"))
        after = reseal(connection, segment, removed=seal_ids(now_removed))
        seals += [segment.checksum, after.checksum]
    return len(found), xor(*seals)


def reseal(connection: Connection, segment: SealedSegment, **digests: str) -> SealedSegment:
    """Gives a segment other digests of its rows, and returns it."""
    after = replace(segment, **digests)  # type: ignore[arg-type]
    after = replace(after, checksum=after.seal)
    row = update(SegmentTable).where(SegmentTable.id == segment.id)
    connection.execute(row.values(**digests, checksum=after.checksum))
    return after


def intact_segments(connection: Connection, ids: list[int]) -> list[SealedSegment]:
    """Returns segments after a check of their checksums.

    Raises:
        CorruptIndexError: one was changed.
    """
    found: list[SealedSegment] = []
    for start in range(0, len(ids), CHUNK):
        found += sealed_segments(connection, ids[start : start + CHUNK])
    for segment in found:
        require_segment(segment)
    return found

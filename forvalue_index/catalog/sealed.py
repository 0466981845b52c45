"""The rows of `index_info` and `segments`, each with its checksum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from forvalue_index.catalog.digests import NO_SEGMENTS, seal_segment, seal_state, xor
from forvalue_index.catalog.schema import IndexInfoTable, SegmentTable
from forvalue_index.errors import CorruptIndexError
from forvalue_index.records import Segment

NEXT = "see `forvalue verify`, restore the catalogue from a copy, or build again"


@dataclass(frozen=True, slots=True)
class Info:
    """What every commit changes."""

    next_id: int
    generation: int
    live: int
    segments: str  # XOR of the checksums of all segments

    @property
    def seal(self) -> str:
        """The checksum that they should have."""
        return seal_state(self.next_id, self.generation, self.live, self.segments)


EMPTY = Info(next_id=0, generation=0, live=0, segments=NO_SEGMENTS)


@dataclass(frozen=True, slots=True)
class SealedSegment:
    """A row of `segments`."""

    id: int
    segment: Segment
    created_at: str
    retained_energy: float | None
    figures: str
    texts: str
    removed: str
    checksum: str

    @property
    def seal(self) -> str:
        """The checksum that it should have."""
        described = self.segment, self.created_at, self.retained_energy
        return seal_segment(*described, self.figures, self.texts, self.removed)

    @property
    def rows(self) -> str:
        """Digests of its rows, which no later commit changes."""
        return self.figures + self.texts


def sealed_info(connection: Connection, place: str, *, lock: bool = False) -> Info:
    """Returns what every commit changes; `lock`: a second writer on PostgreSQL waits.

    Raises:
        CorruptIndexError: it was changed.
    """
    table = IndexInfoTable
    columns = table.next_id, table.generation, table.live, table.segments, table.state
    statement = select(*columns)
    row = connection.execute(statement.with_for_update() if lock else statement).first()
    if row is None:
        raise CorruptIndexError(f"the row of index_info in {place} is missing: {NEXT}")
    info = Info(row.next_id, row.generation, row.live, row.segments)
    if info.seal != row.state:
        raise CorruptIndexError(
            f"next_id, generation, live or segments of index_info in {place} were changed: their "
            f"checksum is {info.seal}, but {row.state} was committed; {NEXT}"
        )
    return info


def sealed_segments(
    connection: Connection, ids: Sequence[int] | None = None
) -> list[SealedSegment]:
    """Returns the rows of `segments`, oldest first; their checksums are not checked."""
    statement = select(SegmentTable.__table__).order_by(SegmentTable.id)
    if ids is not None:
        statement = statement.where(SegmentTable.id.in_(ids))
    return [
        SealedSegment(
            row.id,
            Segment(row.name, row.ntotal, row.bytes, row.sha256),
            row.created_at,
            row.retained_energy,
            row.figures,
            row.texts,
            row.removed,
            row.checksum,
        )
        for row in connection.execute(statement)
    ]


def require_segment(segment: SealedSegment) -> None:
    """Checks a row of `segments` against its checksum.

    Raises:
        CorruptIndexError: it is not.
    """
    if segment.checksum != segment.seal:
        raise CorruptIndexError(
            f"the catalogue's row of segment {segment.segment.name!r} was changed: its name, "
            f"ntotal, bytes, sha256 or digests are not what was committed; {NEXT}"
        )


def segment_problems(info: Info, segments: Iterable[SealedSegment], place: str) -> Iterator[str]:
    """Yields what is wrong with the rows of `segments`, of which all are given."""
    changed, seals = False, [NO_SEGMENTS]
    for segment in segments:
        seals.append(segment.seal)
        try:
            require_segment(segment)
        except CorruptIndexError as error:
            changed = True
            yield str(error)
    if not changed and xor(*seals) != info.segments:
        yield (
            f"the {len(seals) - 1} segments of {place} are not those that were committed: one "
            f"was lost, added or changed; {NEXT}"
        )


def sealed(connection: Connection, place: str) -> tuple[Info, list[SealedSegment]]:
    """Returns what every commit changes, and all segments, oldest first.

    Raises:
        CorruptIndexError: some of it was changed.
    """
    info, segments = sealed_info(connection, place), sealed_segments(connection)
    for problem in segment_problems(info, segments, place):
        raise CorruptIndexError(problem)
    return info, segments

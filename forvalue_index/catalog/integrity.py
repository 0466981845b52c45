"""Whether the catalogue's rows are what was committed: nothing is believed unseen.

Three steps, each as cheap as what it is for:

- what the index is made of (`index_info`, `segments`): with every look, a hash for each segment;
- which rows are removed, and the numbers of rows: whenever they are loaded, a hash for each
  segment over the arrays;
- keys, texts, and the database's own indexes, which filters and look-ups go by: read whole once
  for each segment (`Intact.require`). For SQLite this is remembered in a file beside it for the
  state its files are in (sizes, times, inodes), and what this package writes keeps it true.
  A server's rows are read once in each process.

What a row that is shown holds is held to the row's own checksum besides (`rows.py`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    Connection,
    Engine,
    Integer,
    LargeBinary,
    Text,
    and_,
    case,
    cast,
    func,
    inspect,
    select,
)

from forvalue_index.catalog.digests import (
    NO_SEGMENTS,
    seal_figures,
    seal_ids,
    seal_segment,
    seal_state,
    xor,
)
from forvalue_index.catalog.engine import FileState, file_state, place_of, reading
from forvalue_index.catalog.rows import SEAL_BYTES
from forvalue_index.catalog.schema import IndexInfoTable, SampleTable, SegmentTable
from forvalue_index.errors import CorruptIndexError, brief
from forvalue_index.records import Segment
from forvalue_index.system.files import atomic_write, open_own

MEMORY = "checked-catalog.json"
FEW = 16  # segments whose rows are looked up; of more, all rows are read
PATIENCE = 0.25  # seconds in which a commit that is under way comes to its end

FIGURES = "id, segment_id, removed_at, n_scored, loss or norm"
TEXTS = "key, content_hash, n_tokens, truncated or row"

_NEXT = "see `forvalue verify`, restore the catalogue from a copy, or build again"


@dataclass(frozen=True, slots=True)
class Info:
    """What every commit changes."""

    next_id: int
    generation: int
    live: int
    segments: str  # XOR of the checksums of all segments

    @property
    def seal(self) -> str:
        """What their checksum must be."""
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
        """What the checksum must be."""
        described = self.segment, self.created_at, self.retained_energy
        return seal_segment(*described, self.figures, self.texts, self.removed)

    @property
    def rows(self) -> str:
        """What stands for its rows, of which nothing but removals changes."""
        return self.figures + self.texts


@dataclass(frozen=True, slots=True)
class RowFigures:
    """The numbers of rows, tombstones included, in the order of their ids; each [n]."""

    segment_id: NDArray[np.int64]
    ids: NDArray[np.int64]
    n_scored: NDArray[np.int64]
    loss: NDArray[np.float64]
    norm: NDArray[np.float64]
    live: NDArray[np.bool_]

    def at(self, places: NDArray[Any]) -> RowFigures:
        """Those at some places, or that a mask [n] has."""
        columns = (self.segment_id, self.ids, self.n_scored, self.loss, self.norm, self.live)
        return RowFigures(*(column[places] for column in columns))

    @property
    def seal(self) -> str:
        """Their digest, as rows of one segment."""
        return seal_figures(self.ids, self.n_scored, self.loss, self.norm)


@dataclass(slots=True)
class Change:
    """What a transaction of this process's own does to what it knows."""

    generation: int | None = None
    rows: set[str] = field(default_factory=set)  # `SealedSegment.rows` of new segments


class Intact:
    """What this process knows to be intact. Safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = RLock()
        self._state: FileState | None = None  # of the files when all was known to be intact
        self._generation: int | None = None  # up to which it is
        self._rows: set[str] = set()  # `SealedSegment.rows` of the segments that are

    def require(self) -> None:
        """Makes sure that all rows and the database's own indexes are what was committed.

        Costs a look at two files if they are as they were.

        Raises:
            CorruptIndexError: something is not; the message names the segment.
        """
        engine, waits = self._engine, time.monotonic() + PATIENCE
        while True:
            state = file_state(engine)
            if state is not None and state == self._state:
                return
            with self._lock, reading(engine) as connection:
                info, segments = sealed(connection, place_of(engine))
                if state is None and info.generation == self._generation:
                    return
                remembered = state is not None and state == self._remembered()
                edited = self._state is not None and info.generation == self._generation
                if edited and not remembered and time.monotonic() < waits:
                    pass  # it may be a commit under way, of which only the files tell so far
                else:
                    removed_ids(connection, segments, info, place_of(engine))
                    if not remembered:
                        self._require_rows(connection, segments, set() if edited else self._rows)
                    self._rows = {segment.rows for segment in segments}
                    self._generation = info.generation
                    self._state = state if state == file_state(engine) else None
                    if self._state is not None and not remembered:
                        self._remember(self._state)
                    return
            time.sleep(PATIENCE / 5)

    def _require_rows(
        self, connection: Connection, segments: Sequence[SealedSegment], known: set[str]
    ) -> None:
        place = place_of(self._engine)
        if not known:
            for problem in database_problems(connection):
                raise CorruptIndexError(f"{place}: {problem}; {_NEXT}")
        new = [segment for segment in segments if segment.rows not in known]
        require_figures(connection, new, place)
        require_texts(connection, new, place)

    @contextmanager
    def changing(self) -> Iterator[Change]:
        """For a `with` block that changes the database: what was intact before it is so after it.

        What it yields is to be told what was committed.
        """
        with self._lock:
            before = self._state is not None and self._state == file_state(self._engine)
        change = Change()
        try:
            yield change
        except BaseException:
            change = Change()  # nothing was committed
            raise
        finally:
            with self._lock:
                self._rows |= change.rows
                if self._generation is not None and change.generation == self._generation + 1:
                    self._generation = change.generation
                state = file_state(self._engine)
                if before and state is not None:
                    self._state = state
                    self._remember(state)

    # -- what is remembered of SQLite's files ----------------------------------------------------

    @property
    def _memory(self) -> Path:
        return Path(str(self._engine.url.database)).with_name(MEMORY)

    def _remembered(self) -> Any:
        try:
            with open_own(self._memory) as file:
                return json.loads(file.read())
        except (OSError, ValueError, RecursionError):
            return None

    def _remember(self, state: FileState) -> None:
        """Losing it costs time, and it need not be writable."""
        with suppress(OSError), atomic_write(self._memory, text=True) as file:
            json.dump(state, file)


# -- what is sealed --------------------------------------------------------------------------------


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
        raise CorruptIndexError(f"the row of index_info in {place} is missing: {_NEXT}")
    info = Info(row.next_id, row.generation, row.live, row.segments)
    if info.seal != row.state:
        raise CorruptIndexError(
            f"next_id, generation, live or segments of index_info in {place} were changed: their "
            f"checksum is {info.seal}, but {row.state} was committed; {_NEXT}"
        )
    return info


def sealed_segments(
    connection: Connection, ids: Sequence[int] | None = None
) -> list[SealedSegment]:
    """Returns the rows of `segments`, oldest first, not yet held to their checksums."""
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
    """Makes sure that a row of `segments` is as it was committed.

    Raises:
        CorruptIndexError: it is not.
    """
    if segment.checksum != segment.seal:
        raise CorruptIndexError(
            f"the catalogue's row of segment {segment.segment.name!r} was changed: its name, "
            f"ntotal, bytes, sha256 or digests are not what was committed; {_NEXT}"
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
            f"was lost, added or changed; {_NEXT}"
        )


def sealed(connection: Connection, place: str) -> tuple[Info, list[SealedSegment]]:
    """Returns what every commit changes, and all segments, oldest first.

    Raises:
        CorruptIndexError: something of it was changed.
    """
    info, segments = sealed_info(connection, place), sealed_segments(connection)
    for problem in segment_problems(info, segments, place):
        raise CorruptIndexError(problem)
    return info, segments


# -- rows ------------------------------------------------------------------------------------------


def removed_ids(
    connection: Connection, segments: Sequence[SealedSegment], info: Info, place: str
) -> NDArray[np.int64]:
    """Returns the ids of all tombstones, ascending.

    Raises:
        CorruptIndexError: rows were lost, added, hidden, or shown again.
    """
    gone = SampleTable.removed_at.is_not(None)
    rows = connection.execute(select(SampleTable.segment_id, SampleTable.id).where(gone)).all()
    live = connection.execute(
        select(func.count()).select_from(SampleTable).where(SampleTable.removed_at.is_(None))
    ).scalar_one()
    vectors = sum(segment.segment.ntotal for segment in segments)
    if (live, live + len(rows)) != (info.live, vectors):
        raise CorruptIndexError(
            f"{place} has {live} live and {len(rows)} removed samples, but {info.live} live and "
            f"{vectors - info.live} removed were committed: {_NEXT}"
        )
    groups: dict[Any, list[int]] = {segment.id: [] for segment in segments}
    for segment_id, id in rows:
        groups.setdefault(segment_id, []).append(id)
    for segment in segments:
        if seal_ids(groups[segment.id]) != segment.removed:
            raise CorruptIndexError(
                f"removed_at was changed in the catalogue's rows of segment {segment.segment.name}"
                f", or their segment_id: {_NEXT}"
            )
    return np.sort(np.fromiter((id for _, id in rows), np.int64, len(rows)))


def require_figures(
    connection: Connection, segments: Sequence[SealedSegment], place: str
) -> RowFigures:
    """Returns the numbers of the rows of segments.

    Raises:
        CorruptIndexError: they are not what was committed.
    """
    figures = figures_of(connection, segments, place)
    order = np.argsort(figures.segment_id, kind="stable")
    grouped = figures.segment_id[order]
    for segment in segments:
        start, end = np.searchsorted(grouped, [segment.id, segment.id + 1])
        if figures_problem(figures.at(order[start:end]), segment):
            raise CorruptIndexError(rows_changed(segment, FIGURES))
    return figures


def figures_problem(figures: RowFigures, segment: SealedSegment) -> bool:
    """Whether the numbers and the removals of a segment's rows are not what was committed."""
    removed = seal_ids(figures.ids[~figures.live])
    return (figures.seal, removed) != (segment.figures, segment.removed)


def figures_of(connection: Connection, segments: Sequence[SealedSegment], place: str) -> RowFigures:
    """Returns the numbers of the rows of segments, as they stand there.

    Raises:
        CorruptIndexError: one is no number.
    """
    columns = (
        SampleTable.segment_id,
        SampleTable.id,
        SampleTable.n_scored,
        SampleTable.loss,
        SampleTable.norm,
        SampleTable.removed_at.is_(None),
    )
    statement = _of(connection, select(*columns), segments).order_by(SampleTable.id)
    rows = connection.execute(statement).all()
    if not rows:
        none, numbers = np.empty(0, np.int64), np.empty(0)
        return RowFigures(none, none, none, numbers, numbers, np.empty(0, np.bool_))
    try:
        arrays = [np.array(column) for column in zip(*rows, strict=True)]
    except (ValueError, OverflowError):  # an object of a strange kind among them
        arrays = []
    kinds = "".join(array.dtype.kind for array in arrays)
    if kinds not in ("iiiffb", "iiiffi"):
        raise CorruptIndexError(
            f"segment_id, n_scored, loss or norm of a row in {place} is not a number: {_NEXT}"
        )
    segment_id, ids, n_scored, loss, norm, live = arrays
    figures = RowFigures(segment_id, ids, n_scored, loss, norm, live.astype(np.bool_))
    return figures.at(np.isin(figures.segment_id, [segment.id for segment in segments]))


def require_texts(connection: Connection, segments: Sequence[SealedSegment], place: str) -> None:
    """Reads keys, hashes and JSON of all rows of segments.

    Raises:
        CorruptIndexError: they are not what was committed.
    """
    found = text_seals(connection, segments)
    for segment in segments:
        if found[segment.id] != segment.texts:
            raise CorruptIndexError(rows_changed(segment, TEXTS))


def text_seals(connection: Connection, segments: Sequence[SealedSegment]) -> dict[int, str]:
    """Returns segment -> the digest of the texts of its rows."""
    table = SampleTable
    numbers = cast(table.n_tokens, Text) + "\n" + cast(cast(table.truncated, Integer), Text)
    parts = (table.key, table.content_hash, numbers, table.row)
    line: Any = parts[0]
    for part in parts[1:]:
        line = line + "\n" + part
    line = line + "\n"
    if connection.dialect.name == "sqlite":
        # Bytes, whether they are UTF-8 or not; and NULL where a value is not of its column's type.
        texts = [func.typeof(c) == "text" for c in (table.key, table.content_hash, table.row)]
        whole = [func.typeof(c) == "integer" for c in (table.n_tokens, table.truncated)]
        line = case((and_(*texts, *whole), cast(line, LargeBinary)))
    statement = _of(connection, select(table.segment_id, line), segments)
    hashes = {segment.id: hashlib.blake2b(digest_size=SEAL_BYTES) for segment in segments}
    options = {"yield_per": 1000}
    rows = connection.execute(statement.order_by(table.id), execution_options=options)
    for segment_id, text in rows:
        if segment_id in hashes:
            data = text.encode() if isinstance(text, str) else text
            hashes[segment_id].update(b"\0" if data is None else data)
    return {id: made.hexdigest() for id, made in hashes.items()}


def _of(connection: Connection, statement: Any, segments: Sequence[SealedSegment]) -> Any:
    """A statement for all rows of segments, in few steps; others may be among them."""
    if len(segments) > FEW:
        return statement
    inside = SampleTable.segment_id.in_([segment.id for segment in segments])
    ends = select(func.min(SampleTable.id), func.max(SampleTable.id)).where(inside)
    first, last = connection.execute(ends).one()
    if first is None:  # it has no row
        first, last = 0, -1
    return statement.where(SampleTable.id.between(first, last))


def rows_changed(segment: SealedSegment, what: str) -> str:
    """The message about rows of a segment of which only their digest is known."""
    return f"the catalogue's rows of segment {segment.segment.name} were changed ({what}): {_NEXT}"


# -- the database ----------------------------------------------------------------------------------


def database_problems(connection: Connection, most: int = 5) -> list[str]:
    """What is wrong with the database itself and its indexes, a line each."""
    looked = inspect(connection)
    if not looked.has_table("samples"):
        return ["the table samples is missing"]
    there = {index["name"] for index in looked.get_indexes("samples")}
    wanted = {str(index.name) for index in SampleTable.metadata.tables["samples"].indexes}
    problems = [f"the index {name} of its table samples is missing" for name in wanted - there]
    if connection.dialect.name == "sqlite":
        # Also compares its indexes with the tables: by a damaged one a row is not found.
        found = connection.exec_driver_sql(f"PRAGMA integrity_check({most})").scalars().all()
        problems += [brief(line, 300) for line in found if line != "ok"]
        # What somebody else put there would change rows as this package writes to them.
        made = "SELECT type || ' ' || name FROM sqlite_master WHERE type IN ('trigger', 'view')"
        foreign = connection.exec_driver_sql(made).scalars()
        problems += [f"it has a {brief(name)}, which no index has" for name in foreign]
    return problems

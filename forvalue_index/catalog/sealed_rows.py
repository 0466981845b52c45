"""The rows of the table `samples`, held to the digests of their segments."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Integer, LargeBinary, Text, and_, case, cast, func, select

from forvalue_index.catalog.digests import seal_figures, seal_ids
from forvalue_index.catalog.rows import SEAL_BYTES
from forvalue_index.catalog.schema import SampleTable
from forvalue_index.catalog.sealed import NEXT, Info, SealedSegment
from forvalue_index.errors import CorruptIndexError

FEW = 16  # segments whose rows are looked up; of more, all rows are read

FIGURES = "id, segment_id, removed_at, n_scored, loss or norm"
TEXTS = "key, content_hash, n_tokens, truncated or row"


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
        """Returns the numbers of some rows, by their places or a mask [n]."""
        columns = (self.segment_id, self.ids, self.n_scored, self.loss, self.norm, self.live)
        return RowFigures(*(column[places] for column in columns))

    @property
    def seal(self) -> str:
        """Their digest, as rows of one segment."""
        return seal_figures(self.ids, self.n_scored, self.loss, self.norm)


def removed_ids(
    connection: Connection,
    segments: Sequence[SealedSegment],
    info: Info,
    place: str,
    *,
    counted: bool = True,
) -> NDArray[np.int64]:
    """Returns the ids of all tombstones, ascending.

    `counted`: the live rows are counted, for which all are looked at.

    Raises:
        CorruptIndexError: rows were lost, added, hidden, or shown again.
    """
    gone = SampleTable.removed_at.is_not(None)
    rows = connection.execute(select(SampleTable.segment_id, SampleTable.id).where(gone)).all()
    live = info.live
    if counted:
        there = select(func.count()).select_from(SampleTable)
        live = connection.execute(there.where(SampleTable.removed_at.is_(None))).scalar_one()
    vectors = sum(segment.segment.ntotal for segment in segments)
    if (live, live + len(rows)) != (info.live, vectors):
        raise CorruptIndexError(
            f"{place} has {live} live and {len(rows)} removed samples, but {info.live} live and "
            f"{vectors - info.live} removed were committed: {NEXT}"
        )
    groups: dict[Any, list[int]] = {segment.id: [] for segment in segments}
    for segment_id, id in rows:
        groups.setdefault(segment_id, []).append(id)
    for segment in segments:
        if seal_ids(groups[segment.id]) != segment.removed:
            raise CorruptIndexError(
                f"removed_at was changed in the catalogue's rows of segment {segment.segment.name}"
                f", or their segment_id: {NEXT}"
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
    """Returns whether the numbers or the removals of a segment's rows were changed."""
    removed = seal_ids(figures.ids[~figures.live])
    return (figures.seal, removed) != (segment.figures, segment.removed)


def figures_of(connection: Connection, segments: Sequence[SealedSegment], place: str) -> RowFigures:
    """Returns the numbers of the rows of segments, without a check of their digests.

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
            f"segment_id, n_scored, loss or norm of a row in {place} is not a number: {NEXT}"
        )
    segment_id, ids, n_scored, loss, norm, live = arrays
    figures = RowFigures(segment_id, ids, n_scored, loss, norm, live.astype(np.bool_))
    return figures.at(np.isin(figures.segment_id, [segment.id for segment in segments]))


def require_texts(connection: Connection, segments: Sequence[SealedSegment], place: str) -> None:
    """Checks keys, hashes and JSON of all rows of segments against the digests.

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
    """Returns a statement for the rows of segments; it may find rows of other segments, too."""
    if len(segments) > FEW:
        return statement
    inside = SampleTable.segment_id.in_([segment.id for segment in segments])
    ends = select(func.min(SampleTable.id), func.max(SampleTable.id)).where(inside)
    first, last = connection.execute(ends).one()
    if first is None:  # it has no row
        first, last = 0, -1
    return statement.where(SampleTable.id.between(first, last))


def rows_changed(segment: SealedSegment, what: str) -> str:
    """Returns the message about changed rows of a segment."""
    return f"the catalogue's rows of segment {segment.segment.name} were changed ({what}): {NEXT}"

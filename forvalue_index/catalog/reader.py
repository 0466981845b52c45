"""What is in an index, as it is read from the catalogue: every method is one transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    Connection,
    Engine,
    func,
    select,
)

from forvalue_index.catalog.engine import place_of, reading
from forvalue_index.catalog.fields import fields_of, values_of
from forvalue_index.catalog.filters import Condition, Decisions, parse_condition
from forvalue_index.catalog.rows import (
    COLUMNS,
    check_key,
    digest,
    from_row,
)
from forvalue_index.catalog.schema import IndexInfoTable, SampleTable, SegmentTable
from forvalue_index.errors import (
    CorruptIndexError,
    IndexMissingError,
    InputError,
    SchemaError,
)
from forvalue_index.records import Segment, StoredSample

FORMAT = 1
"""Of the segment files and of what the fingerprint means; the tables have their revision."""

CHUNK = 4000  # values in one IN (...): below every database's limit
PAGE = 500  # rows that a scan of all of them holds at a time: few, as they may be long


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a reader needs to search, all as it stood at one moment."""

    generation: int  # grows with every committed change
    segments: list[Segment]
    removed: NDArray[np.int64]  # ids of tombstones, ascending
    count: int  # live samples


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers kept beside the live samples, in the order of their ids; each [n]."""

    ids: NDArray[np.int64]
    norm: NDArray[np.float64]
    n_scored: NDArray[np.int64]
    loss: NDArray[np.float64]  # nats


class CatalogReader:
    """An open catalogue that changes nothing. Use it in a `with` block or close it."""

    def __init__(self, engine: Engine) -> None:
        """Reads what the index is; `create` and `open` are the ways to get one.

        Raises:
            IndexMissingError: its making was not finished.
            SchemaError: segments and fingerprint are of a newer format.
            CorruptIndexError: config or fingerprint were changed.
        """
        self._engine = engine
        self.reload()

    def reload(self) -> None:
        """Reads again what the index is: another process may have set its fingerprint."""
        engine = self._engine
        with reading(engine) as connection:
            info = connection.execute(select(IndexInfoTable.__table__)).first()
        if info is None:
            raise IndexMissingError(
                f"{place_of(engine)} was not finished: remove it and build the index again"
            )
        if info.format != FORMAT:
            raise SchemaError(
                f"{place_of(engine)} has format {info.format}, but this version reads {FORMAT}: "
                "pip install --upgrade forvalue-index, or build again"
            )
        self.created_at: str = info.created_at
        sealed = seal_info(info.config, info.fingerprint, info.created_at)
        if sealed != info.checksum:
            raise CorruptIndexError(
                f"config or fingerprint in {place_of(engine)} was changed: its checksum is "
                f"{sealed}, but {info.checksum} was committed; restore a copy, or build again"
            )
        self.config: dict[str, Any] = json.loads(info.config)
        self.fingerprint: dict[str, Any] = json.loads(info.fingerprint)

    @property
    def place(self) -> str:
        """Where it is, for people: a file, or a URL without its password."""
        return place_of(self._engine)

    def close(self) -> None:
        """Lets go of every connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        """The catalogue itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def snapshot(self) -> Snapshot:
        """All that a reader needs to search, as it stood at one moment.

        Raises:
            CorruptIndexError: rows were lost, added or hidden behind the catalogue's back.
        """
        with reading(self._engine) as connection:
            generation, live = connection.execute(
                select(IndexInfoTable.generation, IndexInfoTable.live)
            ).one()
            snapshot = Snapshot(
                generation=generation,
                segments=self._segments(connection),
                removed=ids_where(connection, SampleTable.removed_at.is_not(None)),
                count=self._count(connection),
            )
        vectors = sum(segment.ntotal for segment in snapshot.segments)
        if (snapshot.count, snapshot.count + len(snapshot.removed)) != (live, vectors):
            raise CorruptIndexError(
                f"{place_of(self._engine)} has {snapshot.count} live and {len(snapshot.removed)} "
                f"removed samples, but {live} live and {vectors - live} removed were committed: "
                "see `forvalue verify`, restore the catalogue from a copy, or build again"
            )
        return snapshot

    def generation(self) -> int:
        """A number that grows with every committed change: has anything happened since?"""
        with reading(self._engine) as connection:
            return connection.execute(select(IndexInfoTable.generation)).scalar_one()

    def next_id(self) -> int:
        """The first id never given out. It stays so only while the writer's lock is held."""
        with reading(self._engine) as connection:
            return connection.execute(select(IndexInfoTable.next_id)).scalar_one()

    def count(self) -> int:
        """Number of live samples."""
        with reading(self._engine) as connection:
            return self._count(connection)

    def segments(self) -> list[Segment]:
        """The committed segments, oldest first."""
        with reading(self._engine) as connection:
            return self._segments(connection)

    def retained_energy(self) -> dict[str, float]:
        """Segment name -> share of energy kept by the projection, where one was recorded."""
        statement = select(SegmentTable.name, SegmentTable.retained_energy)
        with reading(self._engine) as connection:
            found = connection.execute(statement).all()
        return {row.name: row.retained_energy for row in found if row.retained_energy is not None}

    def segment_ids(self, name: str) -> NDArray[np.int64]:
        """Ids of a segment's rows, tombstones included, ascending [n]."""
        with reading(self._engine) as connection:
            return ids_where(connection, SampleTable.segment_id == segment_id_of(name))

    def live_ids(self, name: str) -> NDArray[np.int64]:
        """Ids of a segment's live rows, ascending [n]."""
        live = SampleTable.removed_at.is_(None)
        with reading(self._engine) as connection:
            return ids_where(connection, SampleTable.segment_id == segment_id_of(name), live)

    def check(self) -> list[str]:
        """What is wrong with the catalogue itself, a line each; nothing if it is whole.

        Every row is read, and held to its checksum.
        """
        place, problems = place_of(self._engine), []
        with reading(self._engine) as connection:
            if self._engine.name == "sqlite":
                found = connection.exec_driver_sql("PRAGMA integrity_check(5)").scalars().all()
                problems += [f"{place}: {line}" for line in found if line != "ok"]
            statement = select(*COLUMNS).order_by(SampleTable.id)
            rows = connection.execution_options(yield_per=PAGE).execute(statement)
            for row in rows.mappings():
                try:
                    from_row(row)
                except CorruptIndexError as error:
                    problems.append(str(error))
        return problems

    def removed_ids(self) -> NDArray[np.int64]:
        """Ids of all tombstones, ascending [n]."""
        with reading(self._engine) as connection:
            return ids_where(connection, SampleTable.removed_at.is_not(None))

    def known(self, keys: Iterable[str]) -> dict[str, str]:
        """Key -> content hash, for those of `keys` that are live.

        Raises:
            InputError: a key is one that no database can keep.
        """
        statement = select(SampleTable.key, SampleTable.content_hash)
        return {row.key: row.content_hash for row in self._live(statement, keys)}

    def ids_of(self, keys: Iterable[str]) -> dict[str, int]:
        """Key -> id, for those of `keys` that are live."""
        return {
            row.key: row.id for row in self._live(select(SampleTable.key, SampleTable.id), keys)
        }

    def samples(self, ids: Iterable[int]) -> dict[int, StoredSample]:
        """Id -> sample. A row never changes, and a tombstone's is there until compaction.

        Raises:
            CorruptIndexError: an id has no row, or a row is not what was committed.
        """
        wanted = list(dict.fromkeys(as_ints(ids)))
        with reading(self._engine) as connection:
            found = list(in_chunks(connection, select(*COLUMNS), wanted, SampleTable.id))
        samples = {row.id: from_row(row._mapping) for row in found}
        if len(samples) != len(wanted):
            missing = some([id for id in wanted if id not in samples])
            raise CorruptIndexError(
                f"samples {missing} have no row in {place_of(self._engine)}: open the index "
                "again if it was compacted meanwhile, or run `forvalue verify`"
            )
        return {id: samples[id] for id in wanted}

    def iterate(self, after: int = -1, page: int = 1000) -> Iterator[StoredSample]:
        """Yields the live samples with ids above `after`, in the order of their ids.

        Every `page` rows are a transaction of their own: a sample that is added or removed
        meanwhile may or may not be among them.

        Raises:
            CorruptIndexError: a row is not what was committed.
        """
        statement = select(*COLUMNS).where(SampleTable.removed_at.is_(None)).limit(page)
        statement = statement.order_by(SampleTable.id)
        while True:
            with reading(self._engine) as connection:
                rows = connection.execute(statement.where(SampleTable.id > after)).all()
            for row in rows:
                yield from_row(row._mapping)
            if len(rows) < page:
                return
            after = rows[-1].id

    def where(self, conditions: Iterable[Condition | str]) -> NDArray[np.int64]:
        """Ids of the live samples whose rows meet all `conditions`, ascending [n].

        The database takes the fields out of the rows, Python decides once for each distinct value
        (`filters` has the rules). `tools/bench_filters.py` measures what it costs.

        Args:
            conditions: such as "source=math"; with none of them, all live samples.

        Raises:
            InputError: a condition cannot be read, or no row has its field; the message names
                the fields that there are.
        """
        wanted = [parse_condition(c) if isinstance(c, str) else c for c in conditions]
        decisions = [Decisions(condition) for condition in wanted]
        found: list[int] = []
        total = 0
        live = SampleTable.removed_at.is_(None)
        statement = select(SampleTable.id, *fields_of(self._engine, wanted)).where(live)
        with reading(self._engine) as connection:
            if not wanted:
                return ids_where(connection, live)
            rows = connection.execution_options(yield_per=PAGE).execute(statement)
            for page in rows.partitions():
                total += len(page)
                ids, wholes, *columns = map(list, zip(*page, strict=True))
                for place, row in enumerate(wholes):
                    if row is not None:
                        values = values_of(json.loads(row), wanted)
                        for column, value in zip(columns, values, strict=True):
                            column[place] = value
                met = [d.of(texts) for d, texts in zip(decisions, columns, strict=True)]
                found += compress(ids, map(all, zip(*met, strict=True)))
        for condition, decided in zip(wanted, decisions, strict=True):
            if total and not decided.seen:
                raise InputError(
                    f"no sample has a field {condition.field!r}: the fields are "
                    f"{', '.join(self.fields())}"
                )
        return np.sort(np.array(found, np.int64))

    def fields(self) -> list[str]:
        """The names of the fields of the first thousand live samples, in their order."""
        live = SampleTable.removed_at.is_(None)
        statement = select(SampleTable.row).where(live).order_by(SampleTable.id).limit(1000)
        with reading(self._engine) as connection:
            rows = connection.execute(statement).scalars().all()
        return list(dict.fromkeys(name for row in rows for name in json.loads(row)))

    def figures(self) -> Figures:
        """The numbers kept beside all live samples, in the order of their ids."""
        columns = SampleTable.id, SampleTable.norm, SampleTable.n_scored, SampleTable.loss
        statement = select(*columns).where(SampleTable.removed_at.is_(None))
        with reading(self._engine) as connection:
            rows = connection.execute(statement.order_by(SampleTable.id)).all()
        ids, norm, n_scored, loss = zip(*rows, strict=True) if rows else ((), (), (), ())
        return Figures(
            np.array(ids, np.int64),
            np.array(norm, np.float64),
            np.array(n_scored, np.int64),
            np.array(loss, np.float64),
        )

    def _live(self, statement: Any, keys: Iterable[str]) -> list[Any]:
        live = statement.where(SampleTable.removed_at.is_(None))
        with reading(self._engine) as connection:
            return list(in_chunks(connection, live, checked_keys(keys)))

    def _count(self, connection: Connection) -> int:
        live = SampleTable.removed_at.is_(None)
        return connection.execute(
            select(func.count()).select_from(SampleTable).where(live)
        ).scalar_one()

    def _segments(self, connection: Connection) -> list[Segment]:
        columns = SegmentTable.name, SegmentTable.ntotal, SegmentTable.bytes, SegmentTable.sha256
        rows = connection.execute(select(*columns).order_by(SegmentTable.id))
        return [Segment(*row) for row in rows]


def in_chunks(
    connection: Connection,
    statement: Any,
    values: Sequence[Any],
    column: Any = SampleTable.key,
) -> Iterator[Any]:
    """Yields the rows whose `column` is one of `values`."""
    for start in range(0, len(values), CHUNK):
        chunk = values[start : start + CHUNK]
        yield from connection.execute(statement.where(column.in_(chunk)))


def ids_where(connection: Connection, *conditions: Any) -> NDArray[np.int64]:
    """Returns the ids of the samples that meet all conditions, ascending."""
    found = connection.execute(select(SampleTable.id).where(*conditions)).scalars()
    return np.sort(np.fromiter(found, np.int64))


def checked_keys(keys: Iterable[str]) -> list[str]:
    """Returns the keys, each once, once all of them can be keys."""
    return [check_key(key) for key in dict.fromkeys(keys)]


def as_ints(values: Iterable[Any]) -> list[int]:
    """Returns Python's integers: a driver knows no numpy ones."""
    return [int(value) for value in values]


def seal_info(config: str, fingerprint: str, created_at: str) -> str:
    """Returns the checksum of what an index is."""
    return digest(str(FORMAT), config, fingerprint, created_at)


def segment_id_of(name: str) -> Any:
    """Returns the query for a segment's number."""
    return select(SegmentTable.id).where(SegmentTable.name == name).scalar_subquery()


def some(values: Sequence[Any], shown: int = 5) -> str:
    """Returns the first values in words, for messages."""
    rest = f" and {len(values) - shown} more" if len(values) > shown else ""
    return ", ".join(repr(value) for value in values[:shown]) + rest

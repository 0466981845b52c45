"""What is in an index, in a database: its making, its segments, and a row for each sample.

Knows of no vector and no file of vectors; `store.py` joins it with the segments. Every method is
one transaction, and none of them encodes anything.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    JSON,
    URL,
    Connection,
    Engine,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    not_,
    select,
    update,
)

from forvalue_index.catalog.engine import make_engine, outside, place_of, reading, writing
from forvalue_index.catalog.filters import MISSING, Condition, parse_condition, value_of
from forvalue_index.catalog.migrations import check_revision, current, upgrade_connection
from forvalue_index.catalog.rows import (
    COLUMNS,
    check_key,
    digest,
    from_row,
    now,
    seal,
    to_json,
    to_row,
)
from forvalue_index.catalog.schema import Base, IndexInfoTable, SampleTable, SegmentTable
from forvalue_index.errors import (
    CorruptIndexError,
    FingerprintError,
    IndexMissingError,
    InputError,
    KeyConflictError,
    LockedError,
    SchemaError,
)
from forvalue_index.records import Segment, StoredSample

FORMAT = 1
"""Of the segment files and of what the fingerprint means; the tables have their revision."""

_CHUNK = 4000  # values in one IN (...): below every database's limit
_PAGE = 10_000  # rows that a scan of all of them holds at a time


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


class Catalog:
    """An open catalogue. Use it in a `with` block or close it."""

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
                f"{place_of(engine)} has format {info.format}, this version reads {FORMAT}: "
                "pip install --upgrade forvalue-index, or build again"
            )
        self.created_at: str = info.created_at
        sealed = _seal_info(info.config, info.fingerprint, info.created_at)
        if sealed != info.checksum:
            raise CorruptIndexError(
                f"config or fingerprint in {place_of(engine)} were changed: their checksum is "
                f"{sealed}, committed was {info.checksum}; restore a copy, or build again"
            )
        self.config: dict[str, Any] = json.loads(info.config)
        self.fingerprint: dict[str, Any] = json.loads(info.fingerprint)

    @classmethod
    def create(cls, url: str | URL, config: dict[str, Any], fingerprint: dict[str, Any]) -> Self:
        """A new, empty catalogue at `url`: tables and first row in one transaction.

        Raises:
            IndexMissingError: there is a catalogue already.
            InputError: `url` cannot be used, or config or fingerprint are not JSON.
        """
        texts = to_json(config, "the configuration"), to_json(fingerprint, "the fingerprint")
        time = now()
        engine = make_engine(url, create=True)
        try:
            with writing(engine) as connection:
                if current(connection) is not None:
                    raise IndexMissingError(
                        f"{place_of(engine)} holds a catalogue already: open that index, "
                        "or choose another place"
                    )
                upgrade_connection(connection)
                connection.execute(
                    insert(IndexInfoTable),
                    {
                        "id": 1,
                        "format": FORMAT,
                        "config": texts[0],
                        "fingerprint": texts[1],
                        "created_at": time,
                        "next_id": 0,
                        "generation": 0,
                        "live": 0,
                        "checksum": _seal_info(*texts, time),
                    },
                )
            return cls(engine)
        except BaseException:
            engine.dispose()
            raise

    @classmethod
    def open(cls, url: str | URL) -> Self:
        """The catalogue at `url`, once its schema is known to be this version's.

        Raises:
            IndexMissingError: there is none.
            SchemaError: it has another revision; the message names both and what to run.
            CorruptIndexError: it is not a database, or was changed.
        """
        engine = make_engine(url)
        try:
            check_revision(engine)
            return cls(engine)
        except BaseException:
            engine.dispose()
            raise

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

    # -- writing -------------------------------------------------------------------------------

    def set_fingerprint(self, fingerprint: dict[str, Any]) -> None:
        """Replaces the fingerprint, as fitting a recipe or a projection does.

        Raises:
            FingerprintError: there are vectors already: they were made with the old one.
        """
        text = to_json(fingerprint, "the fingerprint")
        with writing(self._engine) as connection:
            self._next_id(connection)
            if connection.execute(select(SegmentTable.id).limit(1)).first() is not None:
                raise FingerprintError(
                    f"{place_of(self._engine)} has vectors made with fingerprint "
                    f"{self.fingerprint}, it cannot become {fingerprint}: build a new index"
                )
            stored = connection.execute(select(IndexInfoTable.config)).scalar_one()
            self._advance(
                connection, fingerprint=text, checksum=_seal_info(stored, text, self.created_at)
            )
        self.fingerprint = json.loads(text)

    def commit_segment(
        self,
        segment: Segment,
        samples: Sequence[StoredSample],
        *,
        replaces: Sequence[int] = (),
        retained_energy: float | None = None,
    ) -> None:
        """Makes a segment that is complete on disk, and its rows, part of the index.

        Args:
            segment: the file, as `write_segment` described it.
            samples: a row for each of its vectors; ids from `next_id()` on, in any order.
            replaces: ids of live samples that become tombstones in the same transaction.
            retained_energy: share of the samples' energy that the learned projection kept.

        Raises:
            KeyConflictError: a key stands twice, or is live already and not replaced.
            CorruptIndexError: segment and rows do not fit, or an id was given out before.
            InputError: a row cannot be kept as JSON.
        """
        ids = {int(sample.id) for sample in samples}
        if not samples or not len(samples) == len(ids) == segment.ntotal:
            raise CorruptIndexError(
                f"segment {segment.name} holds {segment.ntotal} vectors, but {len(samples)} rows "
                f"with {len(ids)} ids were given for it: nothing was committed"
            )
        keys = [sample.key for sample in samples]
        twice = [key for key, times in Counter(keys).items() if times > 1]
        if twice:
            raise KeyConflictError(f"{_some(twice)} stand more than once in the input")
        rows = [to_row(sample) for sample in samples]
        with writing(self._engine) as connection:
            first = self._next_id(connection)
            if min(ids) < first:
                raise CorruptIndexError(
                    f"id {min(ids)} was given out before, the next one is {first}: nothing was "
                    "committed; take ids from next_id() while holding the writer's lock"
                )
            buried = self._bury(connection, _ints(replaces))
            there = select(SampleTable.key).where(SampleTable.removed_at.is_(None))
            taken = list(_in_chunks(connection, there, keys))
            if taken:
                raise KeyConflictError(
                    f"{_some(sorted(row.key for row in taken))} are in the index already: "
                    "remove them first, or replace them"
                )
            segment_id = self._insert_segment(connection, segment, retained_energy)
            connection.execute(insert(SampleTable), [r | {"segment_id": segment_id} for r in rows])
            live = IndexInfoTable.live + len(rows) - buried
            self._advance(connection, next_id=max(ids) + 1, live=live)

    def remove(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """The ids that were live under `keys` and are tombstones now, ascending.

        A key that is not live is passed over, so that a removal can be run again.
        """
        return self._remove(SampleTable.key, _keys(keys))

    def remove_ids(self, ids: Iterable[int]) -> NDArray[np.int64]:
        """Those of `ids` that were live and are tombstones now, ascending."""
        return self._remove(SampleTable.id, _ints(ids))

    def _remove(self, column: Any, values: Sequence[Any]) -> NDArray[np.int64]:
        live = select(SampleTable.id).where(SampleTable.removed_at.is_(None))
        with writing(self._engine) as connection:
            self._next_id(connection)
            ids = sorted({row.id for row in _in_chunks(connection, live, values, column)})
            if ids:
                buried = self._bury(connection, ids)
                self._advance(connection, live=IndexInfoTable.live - buried)
        return np.array(ids, np.int64)

    def replace_segments(
        self, old: Sequence[str], new: Segment | None, *, retained_energy: float | None = None
    ) -> None:
        """Puts a segment in the place of others: their live rows move, their tombstones go.

        Args:
            old: names of committed segments.
            new: holds exactly their live vectors; None if there are none.
            retained_energy: as in `commit_segment`.

        Raises:
            CorruptIndexError: a name is not known, or the live rows are not as many as the new
                segment's vectors.
        """
        with writing(self._engine) as connection:
            self._next_id(connection)
            found = _in_chunks(connection, select(SegmentTable.id), old, SegmentTable.name)
            places = [row.id for row in found]
            inside = SampleTable.segment_id.in_(places)
            live = SampleTable.removed_at.is_(None)
            count = connection.execute(
                select(func.count()).select_from(SampleTable).where(inside, live)
            ).scalar_one()
            ntotal = 0 if new is None else new.ntotal
            if (len(places), count) != (len(old), ntotal):
                raise CorruptIndexError(
                    f"{len(old)} segments with {ntotal} live samples were to be rewritten, "
                    f"{place_of(self._engine)} has {len(places)} with {count}: nothing was "
                    "committed; run `forvalue verify`"
                )
            if new is not None:
                place = self._insert_segment(connection, new, retained_energy)
                moved = update(SampleTable.__table__).where(inside, live)  # type: ignore[arg-type]
                connection.execute(moved.values(segment_id=place))
            connection.execute(delete(SampleTable).where(inside))
            connection.execute(delete(SegmentTable).where(SegmentTable.id.in_(places)))
            self._advance(connection)

    def vacuum(self) -> None:
        """Leaves nothing in the database's files of the rows that were deleted.

        What a server keeps for itself (PostgreSQL's write-ahead log and backups) is out of reach.

        Raises:
            LockedError: a reader is in the way for too long.
            StorageError: there is no room for a second copy of the live rows.
        """
        with outside(self._engine) as connection:
            if self._engine.name != "sqlite":
                connection.exec_driver_sql("VACUUM FULL samples")
                return
            connection.exec_driver_sql("VACUUM")
            busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
        if busy:
            raise LockedError(
                f"{place_of(self._engine)} is being read: what was deleted may still stand in its "
                "write-ahead log; run `forvalue compact` again"
            )

    def drop(self) -> None:
        """Deletes the catalogue's tables, as a creation that failed has to."""
        with writing(self._engine) as connection:
            Base.metadata.drop_all(connection)
            connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")

    def _insert_segment(
        self, connection: Connection, segment: Segment, retained_energy: float | None
    ) -> int:
        values = {
            "name": segment.name,
            "ntotal": segment.ntotal,
            "bytes": segment.bytes,
            "sha256": segment.sha256,
            "created_at": now(),
            "retained_energy": retained_energy,
        }
        return connection.execute(
            insert(SegmentTable).returning(SegmentTable.id), values
        ).scalar_one()

    def _bury(self, connection: Connection, ids: list[int]) -> int:
        """Makes live samples tombstones, and returns how many."""
        statement = select(SampleTable.id, SampleTable.checksum).where(
            SampleTable.removed_at.is_(None)
        )
        found = list(_in_chunks(connection, statement, ids, SampleTable.id))
        gone = set(ids) - {row.id for row in found}
        if gone:
            raise CorruptIndexError(
                f"samples {_some(sorted(gone))} are not live, so they cannot be removed or "
                "replaced: nothing was committed"
            )
        if not found:
            return 0
        time = now()
        connection.execute(
            update(SampleTable.__table__)  # type: ignore[arg-type]
            .where(SampleTable.id == bindparam("_id"))
            .values(removed_at=time, checksum=bindparam("_checksum")),
            [{"_id": row.id, "_checksum": seal(row.checksum, time)} for row in found],
        )
        return len(found)

    def _next_id(self, connection: Connection) -> int:
        # FOR UPDATE: on PostgreSQL a second writer waits here; SQLite's waits at BEGIN.
        locked = select(IndexInfoTable.next_id).with_for_update()
        return connection.execute(locked).scalar_one()

    def _advance(self, connection: Connection, **values: Any) -> None:
        values["generation"] = IndexInfoTable.generation + 1
        connection.execute(update(IndexInfoTable).values(**values))

    # -- reading -------------------------------------------------------------------------------

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
                removed=_ids(connection, SampleTable.removed_at.is_not(None)),
                count=self._count(connection),
            )
        vectors = sum(segment.ntotal for segment in snapshot.segments)
        if (snapshot.count, snapshot.count + len(snapshot.removed)) != (live, vectors):
            raise CorruptIndexError(
                f"{place_of(self._engine)} has {snapshot.count} live and {len(snapshot.removed)} "
                f"removed samples, committed were {live} live and {vectors - live} removed: "
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
            return _ids(connection, SampleTable.segment_id == _segment_id(name))

    def live_ids(self, name: str) -> NDArray[np.int64]:
        """Ids of a segment's live rows, ascending [n]."""
        live = SampleTable.removed_at.is_(None)
        with reading(self._engine) as connection:
            return _ids(connection, SampleTable.segment_id == _segment_id(name), live)

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
            rows = connection.execution_options(yield_per=_PAGE).execute(statement)
            for row in rows.mappings():
                try:
                    from_row(row)
                except CorruptIndexError as error:
                    problems.append(str(error))
        return problems

    def removed_ids(self) -> NDArray[np.int64]:
        """Ids of all tombstones, ascending [n]."""
        with reading(self._engine) as connection:
            return _ids(connection, SampleTable.removed_at.is_not(None))

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
        wanted = list(dict.fromkeys(_ints(ids)))
        with reading(self._engine) as connection:
            found = list(_in_chunks(connection, select(*COLUMNS), wanted, SampleTable.id))
        samples = {row.id: from_row(row._mapping) for row in found}
        if len(samples) != len(wanted):
            missing = _some([id for id in wanted if id not in samples])
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

        The database takes the fields out of the rows, Python compares them (`filters` has the
        rules): of 100,000 rows of 1 KB 0.3 s on SQLite, 1.3 s on PostgreSQL, where parsing all of
        each row in Python takes 1.2 s more.

        Args:
            conditions: such as "source=math"; with none of them, all live samples.

        Raises:
            InputError: a condition cannot be read, or no row has its field; the message names
                the fields that there are.
        """
        wanted = [parse_condition(c) if isinstance(c, str) else c for c in conditions]
        # Most fields that are worth a condition have few values: each is looked at once.
        answers: list[dict[str, bool]] = [{} for _ in wanted]
        found: list[int] = []
        seen, total = [False] * len(wanted), 0
        live = SampleTable.removed_at.is_(None)
        whole, texts = _fields(self._engine, wanted)
        statement = select(SampleTable.id, whole, *texts).where(live)
        with reading(self._engine) as connection:
            rows = connection.execution_options(yield_per=_PAGE).execute(statement)
            for id, row, *values in rows:
                total += 1
                if row is not None:
                    values = _values(json.loads(row), wanted)
                met = True
                for i, text in enumerate(values):
                    if text is None:
                        met &= wanted[i].met_without()
                        continue
                    seen[i] = True
                    answer = answers[i].get(text)
                    if answer is None:
                        answer = wanted[i].met_by(json.loads(text))
                        if len(answers[i]) < _PAGE:
                            answers[i][text] = answer
                    met &= answer
                if met:
                    found.append(id)
        for condition, there in zip(wanted, seen, strict=True):
            if total and not there:
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
            return list(_in_chunks(connection, live, _keys(keys)))

    def _count(self, connection: Connection) -> int:
        live = SampleTable.removed_at.is_(None)
        return connection.execute(
            select(func.count()).select_from(SampleTable).where(live)
        ).scalar_one()

    def _segments(self, connection: Connection) -> list[Segment]:
        columns = SegmentTable.name, SegmentTable.ntotal, SegmentTable.bytes, SegmentTable.sha256
        rows = connection.execute(select(*columns).order_by(SegmentTable.id))
        return [Segment(*row) for row in rows]


def _in_chunks(
    connection: Connection,
    statement: Any,
    values: Sequence[Any],
    column: Any = SampleTable.key,
) -> Iterator[Any]:
    """Yields the rows whose `column` is one of `values`."""
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        yield from connection.execute(statement.where(column.in_(chunk)))


def _fields(engine: Engine, conditions: Sequence[Condition]) -> tuple[Any, list[Any]]:
    """Two kinds of columns: the whole row, where only Python can read it, else NULL; and for each
    condition the JSON text of its field, as it stands in the row, NULL where there is none.

    Python writes NaN and infinity, which are not JSON, and writes letters beyond ASCII in two
    ways, of which an old SQLite finds one in a name.
    """
    row = SampleTable.row
    names = [name for c in conditions for name in (c.field, *c.path)]
    plain = all(name.isascii() and name.isprintable() for name in names)
    plain &= not any(set(name) & {'"', "\\"} for name in names)
    old = engine.name == "sqlite" and sqlite3.sqlite_version_info < (3, 38)  # has no ->
    if old or not plain:
        return row.label("whole"), []
    if engine.name == "sqlite":
        valid: Any = func.json_valid(row) == 1
        document: Any = row

        def step(name: str) -> str:
            return f'$."{name}"'
    else:
        # Nor does it take half of a surrogate pair, which Python escapes.
        bad = "NaN", "Infinity", "\\u"
        valid = and_(*(func.strpos(row, text) == 0 for text in bad))
        document = cast(row, JSON)

        def step(name: str) -> str:
            return name

    def follow(names: Sequence[str]) -> Any:
        value = document
        for name in names:
            value = value.op("->", return_type=JSON())(literal(step(name), Text))
        return cast(value, Text)

    texts = []
    for condition in conditions:
        either = [follow([condition.field])]
        if len(condition.path) > 1:
            either.append(follow(condition.path))
        found = func.coalesce(*either) if len(either) > 1 else either[0]
        texts.append(case((valid, found)))
    return case((not_(valid), row)).label("whole"), texts


def _values(row: dict[str, Any], conditions: Sequence[Condition]) -> list[str | None]:
    """What the second kind of columns would be, from the whole row."""
    values = [value_of(row, condition) for condition in conditions]
    return [None if value is MISSING else json.dumps(value) for value in values]


def _ids(connection: Connection, *conditions: Any) -> NDArray[np.int64]:
    found = connection.execute(select(SampleTable.id).where(*conditions)).scalars()
    return np.sort(np.fromiter(found, np.int64))


def _segment_id(name: str) -> Any:
    return select(SegmentTable.id).where(SegmentTable.name == name).scalar_subquery()


def _keys(keys: Iterable[str]) -> list[str]:
    return [check_key(key) for key in dict.fromkeys(keys)]


def _ints(values: Iterable[Any]) -> list[int]:
    return [int(value) for value in values]  # a driver knows no numpy integers


def _some(values: Sequence[Any], shown: int = 5) -> str:
    rest = f" and {len(values) - shown} more" if len(values) > shown else ""
    return ", ".join(repr(value) for value in values[:shown]) + rest


def _seal_info(config: str, fingerprint: str, created_at: str) -> str:
    return digest(str(FORMAT), config, fingerprint, created_at)

"""What is in an index, as it is read from the catalogue: every method is one transaction."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, select

from forvalue_index.catalog.check import check
from forvalue_index.catalog.digests import seal_info
from forvalue_index.catalog.engine import let_go, place_of, reading
from forvalue_index.catalog.fields import field_of
from forvalue_index.catalog.integrity import Intact
from forvalue_index.catalog.migrations import check_format
from forvalue_index.catalog.rows import COLUMNS, as_ints, checked_keys, from_row
from forvalue_index.catalog.schema import IndexInfoTable, SampleTable, SegmentTable
from forvalue_index.catalog.sealed import Info, SealedSegment, sealed, sealed_info
from forvalue_index.catalog.sealed_rows import removed_ids, require_figures
from forvalue_index.errors import CorruptIndexError, IndexMissingError
from forvalue_index.records import MISSING, Figures, Generation, Segment, StoredSample, value_of

CHUNK = 4000  # values in one IN (...): below every database's limit
PAGE = 500  # rows that a scan of all of them holds at a time: few, as they may be long


class CatalogReader:
    """An open catalogue, without the methods that change it. Close it after use."""

    def __init__(self, engine: Engine) -> None:
        """Reads what the index is; `create` and `open` are the ways to get one.

        Raises:
            IndexMissingError: its creation was not finished.
            SchemaError: segments and fingerprint are of another format.
            CorruptIndexError: config or fingerprint were changed.
        """
        self._engine = engine
        self._intact = Intact(engine)
        self.reload()
        # One that is forgotten instead of closed leaves no connection behind.
        weakref.finalize(self, let_go, engine, os.getpid()).atexit = False

    def reload(self) -> None:
        """Reads config and fingerprint again: another process may have set the fingerprint."""
        engine = self._engine
        with reading(engine) as connection:
            info = connection.execute(select(IndexInfoTable.__table__)).first()
        if info is None:
            raise IndexMissingError(
                f"{place_of(engine)} was not finished: remove it and build the index again"
            )
        check_format(info.format, engine)
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
        with self._intact.changing():  # SQLite's last connection empties the log
            self._engine.dispose()

    def __enter__(self) -> Self:
        """Returns the catalogue itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def snapshot(self) -> Generation:
        """Returns all that a reader needs to search, as it was at one moment.

        Raises:
            CorruptIndexError: rows were lost, added or hidden by another program.
        """
        changed = not self._intact.unchanged()
        with reading(self._engine) as connection:
            info, segments = self._sealed(connection)
            counted = changed and self._intact.must_count(info.generation)
            removed = removed_ids(connection, segments, info, self.place, counted=counted)
            self._intact.found(info.generation)
            return Generation(
                generation=info.generation,
                segments=[segment.segment for segment in segments],
                removed=removed,
                count=info.live,
            )

    def generation(self) -> int:
        """Returns a number that grows with every committed change."""
        with reading(self._engine) as connection:
            return sealed_info(connection, self.place).generation

    def next_id(self) -> int:
        """Returns the first id that was never given out; valid while the writer's lock is held."""
        with reading(self._engine) as connection:
            return sealed_info(connection, self.place).next_id

    def count(self) -> int:
        """Returns the number of live samples."""
        with reading(self._engine) as connection:
            return sealed_info(connection, self.place).live

    def segments(self) -> list[Segment]:
        """Returns the committed segments, oldest first."""
        with reading(self._engine) as connection:
            return [segment.segment for segment in self._sealed(connection)[1]]

    def retained_energy(self) -> dict[str, float]:
        """Returns segment name -> share of energy kept by the projection, if it was recorded."""
        with reading(self._engine) as connection:
            segments = self._sealed(connection)[1]
        shares = {segment.segment.name: segment.retained_energy for segment in segments}
        return {name: share for name, share in shares.items() if share is not None}

    def segment_ids(self, name: str) -> NDArray[np.int64]:
        """Returns the ids of a segment's rows, tombstones included, ascending [n]."""
        with reading(self._engine) as connection:
            return ids_where(connection, SampleTable.segment_id == segment_id_of(name))

    def segment_figures(self, name: str) -> Figures:
        """Returns the numbers kept beside a segment's rows, tombstones included.

        Raises:
            CorruptIndexError: they are not what was committed.
        """
        with reading(self._engine) as connection:
            own = [s for s in self._sealed(connection)[1] if s.segment.name == name]
            found = require_figures(connection, own, self.place)
        return Figures(found.ids, found.norm, found.n_scored, found.loss)

    def live_ids(self, name: str) -> NDArray[np.int64]:
        """Returns the ids of a segment's live rows, ascending [n]."""
        live = SampleTable.removed_at.is_(None)
        with reading(self._engine) as connection:
            return ids_where(connection, SampleTable.segment_id == segment_id_of(name), live)

    def check(self) -> list[str]:
        """Returns what is wrong with the catalogue, a line each; see `check.py`."""
        return check(self._engine)

    def removed_ids(self) -> NDArray[np.int64]:
        """Returns the ids of all tombstones, ascending [n]."""
        return self.snapshot().removed

    def known(self, keys: Iterable[str]) -> dict[str, str]:
        """Returns key -> content hash, for those of `keys` that are live.

        Raises:
            InputError: a key is one that no database can keep.
        """
        statement = select(SampleTable.key, SampleTable.content_hash)
        return {row.key: row.content_hash for row in self._live(statement, keys)}

    def ids_of(self, keys: Iterable[str]) -> dict[str, int]:
        """Returns key -> id, for those of `keys` that are live."""
        return {
            row.key: row.id for row in self._live(select(SampleTable.key, SampleTable.id), keys)
        }

    def keys_from(self, start: str, limit: int) -> list[str]:
        """Returns live keys that begin with a text, at most `limit`."""
        begins = SampleTable.key.startswith(start, autoescape=True)
        statement = select(SampleTable.key).where(begins, SampleTable.removed_at.is_(None))
        with reading(self._engine) as connection:
            return list(connection.execute(statement.limit(limit)).scalars())

    def samples(self, ids: Iterable[int]) -> dict[int, StoredSample]:
        """Returns id -> sample. A row never changes; a tombstone's is there until compaction.

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
            self.require_intact()
            with reading(self._engine) as connection:
                rows = connection.execute(statement.where(SampleTable.id > after)).all()
            for row in rows:
                yield from_row(row._mapping)
            if len(rows) < page:
                return
            after = rows[-1].id

    def column(self, name: str, field: str) -> tuple[list[int], list[str | None]]:
        """Returns the ids of a segment's rows, ascending, and a field of each as JSON.

        None where a row lacks the field. Tombstones are among the rows.
        """
        own = SampleTable.segment_id == segment_id_of(name)
        columns = field_of(self._engine, field)
        statement = select(SampleTable.id, *columns).where(own).order_by(SampleTable.id)
        ids: list[int] = []
        texts: list[str | None] = []
        with reading(self._engine) as connection:
            rows = connection.execution_options(yield_per=PAGE).execute(statement)
            for id, whole, text in rows:
                ids.append(id)
                if whole is not None:
                    value = value_of(json.loads(whole), field)
                    text = None if value is MISSING else json.dumps(value)
                texts.append(text)
        return ids, texts

    def fields(self) -> list[str]:
        """Returns the names of the fields of the first thousand live samples, in their order."""
        self.require_intact()
        live = SampleTable.removed_at.is_(None)
        statement = select(SampleTable.row).where(live).order_by(SampleTable.id).limit(1000)
        with reading(self._engine) as connection:
            rows = connection.execute(statement).scalars().all()
        return list(dict.fromkeys(name for row in rows for name in json.loads(row)))

    def figures(self) -> Figures:
        """Returns the numbers kept beside all live samples, in the order of their ids.

        Raises:
            CorruptIndexError: they are not what was committed.
        """
        with reading(self._engine) as connection:
            found = require_figures(connection, self._sealed(connection)[1], self.place)
        live = found.at(found.live)
        return Figures(live.ids, live.norm, live.n_scored, live.loss)

    def require_intact(self) -> None:
        """Checks the rows and the database's indexes; see `Intact.require`.

        Every method that reads keys, rows or the indexes of the database calls this first.

        Raises:
            CorruptIndexError: something is not.
        """
        self._intact.require()

    def _live(self, statement: Any, keys: Iterable[str]) -> list[Any]:
        wanted = checked_keys(keys)
        self.require_intact()
        live = statement.where(SampleTable.removed_at.is_(None))
        with reading(self._engine) as connection:
            return list(in_chunks(connection, live, wanted))

    def _sealed(self, connection: Connection) -> tuple[Info, list[SealedSegment]]:
        return sealed(connection, self.place)


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


def segment_id_of(name: str) -> Any:
    """Returns the query for a segment's number."""
    return select(SegmentTable.id).where(SegmentTable.name == name).scalar_subquery()


def some(values: Sequence[Any], shown: int = 5) -> str:
    """Returns the first values in words, for messages."""
    rest = f" and {len(values) - shown} more" if len(values) > shown else ""
    return ", ".join(repr(value) for value in values[:shown]) + rest

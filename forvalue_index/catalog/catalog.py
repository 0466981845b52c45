"""The catalogue of an index: its config and fingerprint, its segments, and a row for each sample.

Knows of no vector and no file of vectors; `store/writer.py` joins it with the segments. Every
method is one transaction, and none of them encodes anything.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import URL, Connection, delete, insert, select, update

from forvalue_index.catalog.digests import (
    seal_figures,
    seal_ids,
    seal_info,
    seal_texts,
    text_line,
    xor,
)
from forvalue_index.catalog.engine import make_engine, outside, place_of, writing
from forvalue_index.catalog.integrity import Change
from forvalue_index.catalog.migrations import check_revision, current, upgrade_connection
from forvalue_index.catalog.reads import CatalogReader, in_chunks, some
from forvalue_index.catalog.rows import as_ints, checked_keys, now, to_json, to_row
from forvalue_index.catalog.schema import FORMAT, Base, IndexInfoTable, SampleTable, SegmentTable
from forvalue_index.catalog.sealed import EMPTY, Info, sealed_info
from forvalue_index.catalog.sealed_rows import require_figures, require_texts, text_seals
from forvalue_index.catalog.writes import bury, insert_segment, intact_segments, reseal
from forvalue_index.errors import (
    CorruptIndexError,
    FingerprintError,
    IndexMissingError,
    KeyConflictError,
    LockedError,
    brief,
)
from forvalue_index.records import Segment, StoredSample

MEASURED = "fidelity"
"""The entry of a fingerprint that says how good the vectors are, not how they were made."""


class Catalog(CatalogReader):
    """An open catalogue: what a reader has, and all that changes it."""

    @classmethod
    def create(cls, url: str | URL, config: dict[str, Any], fingerprint: dict[str, Any]) -> Self:
        """Returns a new, empty catalogue at `url`: tables and first row in one transaction.

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
                        f"{place_of(engine)} already holds a catalogue: open that index, "
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
                        **asdict(EMPTY),
                        "state": EMPTY.seal,
                        "checksum": seal_info(*texts, time),
                    },
                )
            return cls(engine)
        except BaseException:
            engine.dispose()
            raise

    @classmethod
    def open(cls, url: str | URL) -> Self:
        """Returns the catalogue at `url`, after a check of its schema's revision.

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

    # -- writing -------------------------------------------------------------------------------

    def set_fingerprint(self, fingerprint: dict[str, Any]) -> None:
        """Replaces the fingerprint, as fitting a recipe or a projection does.

        Raises:
            FingerprintError: there are vectors already, which were made with the old one, and more
                than what was measured of them (MEASURED) is another.
        """
        text = to_json(fingerprint, "the fingerprint")
        with self._intact.changing() as change, writing(self._engine) as connection:
            info = self._info(connection)
            segment = connection.execute(select(SegmentTable.id).limit(1)).first()
            differing = _differing(fingerprint, self.fingerprint)
            if segment is not None and differing:
                shown = "; ".join(
                    f"{name} {brief(self.fingerprint.get(name), 60)}, "
                    f"not {brief(fingerprint.get(name), 60)}"
                    for name in differing
                )
                raise FingerprintError(
                    f"{place_of(self._engine)} has vectors that were made with {shown}: build a "
                    "new index"
                )
            stored = connection.execute(select(IndexInfoTable.config)).scalar_one()
            seal = seal_info(stored, text, self.created_at)
            self._advance(connection, change, info, fingerprint=text, checksum=seal)
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
            KeyConflictError: a key occurs twice, or is live already and not replaced.
            CorruptIndexError: segment and rows do not fit, or an id was given out before.
            InputError: a row cannot be kept as JSON.
        """
        ids = {int(sample.id) for sample in samples}
        if not samples or not len(samples) == len(ids) == segment.ntotal:
            raise CorruptIndexError(
                f"segment {segment.name} holds {segment.ntotal} vectors, but {len(samples)} rows "
                f"with {len(ids)} ids were given for it: nothing was committed; give one for each"
            )
        keys = [sample.key for sample in samples]
        twice = [key for key, times in Counter(keys).items() if times > 1]
        if twice:
            raise KeyConflictError(
                f"keys that occur more than once in the input: {some(twice)}; rename them"
            )
        rows = sorted((to_row(sample) for sample in samples), key=lambda row: int(row["id"]))
        self.require_intact()
        with self._intact.changing() as change, writing(self._engine) as connection:
            info = self._info(connection)
            if min(ids) < info.next_id:
                raise CorruptIndexError(
                    f"id {min(ids)} is already taken, the next one is {info.next_id}: nothing was "
                    "committed; take ids from next_id() while holding the writer's lock"
                )
            buried, resealed = bury(connection, as_ints(replaces))
            there = select(SampleTable.key).where(SampleTable.removed_at.is_(None))
            taken = list(in_chunks(connection, there, keys))
            if taken:
                raise KeyConflictError(
                    f"keys already in the index: {some(sorted(row.key for row in taken))}; "
                    "remove them first, or replace them"
                )
            names = "id", "n_scored", "loss", "norm"
            figures = seal_figures(*([row[name] for row in rows] for name in names))
            texts = seal_texts([text_line(row) for row in rows])
            new = insert_segment(connection, segment, retained_energy, figures, texts)
            connection.execute(insert(SampleTable), [r | {"segment_id": new.id} for r in rows])
            change.rows.add(new.rows)
            after = replace(
                info,
                next_id=max(ids) + 1,
                live=info.live + len(rows) - buried,
                segments=xor(info.segments, resealed, new.checksum),
            )
            self._advance(connection, change, after)

    def remove(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """Makes live samples tombstones; returns their ids, ascending.

        A key that is not live is passed over, so that a removal can be run again.
        """
        return self._remove(SampleTable.key, checked_keys(keys))

    def remove_ids(self, ids: Iterable[int]) -> NDArray[np.int64]:
        """Makes those of `ids` that are live tombstones; returns them, ascending."""
        return self._remove(SampleTable.id, as_ints(ids))

    def _remove(self, column: Any, values: Sequence[Any]) -> NDArray[np.int64]:
        live = select(SampleTable.id).where(SampleTable.removed_at.is_(None))
        self.require_intact()
        with self._intact.changing() as change, writing(self._engine) as connection:
            info = self._info(connection)
            ids = sorted({row.id for row in in_chunks(connection, live, values, column)})
            if ids:
                buried, resealed = bury(connection, ids)
                segments = xor(info.segments, resealed)
                after = replace(info, live=info.live - buried, segments=segments)
                self._advance(connection, change, after)
        return np.array(ids, np.int64)

    def replace_segments(
        self,
        old: Sequence[str],
        new: Segment | None,
        *,
        retained_energy: float | None = None,
        joined: bool = False,
    ) -> None:
        """Puts a segment in the place of others: their live rows move, their tombstones go.

        Args:
            old: names of committed segments.
            new: holds exactly their live vectors; None if there are none.
            retained_energy: as in `commit_segment`.
            joined: tombstones move, too, and `new` has all vectors.

        Raises:
            CorruptIndexError: a name is not known, or the live rows are not as many as the new
                segment's vectors.
        """
        self.require_intact()
        with self._intact.changing() as change, writing(self._engine) as connection:
            info = self._info(connection)
            names = in_chunks(connection, select(SegmentTable.id), old, SegmentTable.name)
            replaced = intact_segments(connection, [row.id for row in names])
            # Damage must not get a new digest.
            figures = require_figures(connection, replaced, self.place)
            require_texts(connection, replaced, self.place)
            left = figures if joined else figures.at(figures.live)
            ntotal = 0 if new is None else new.ntotal
            if (len(replaced), len(left.ids)) != (len(old), ntotal):
                kind = "samples" if joined else "live samples"
                raise CorruptIndexError(
                    f"{len(old)} segments with {ntotal} {kind} were to be rewritten, "
                    f"but {self.place} has {len(replaced)} with {len(left.ids)}: nothing was "
                    "committed; run `forvalue verify`"
                )
            seals = [segment.checksum for segment in replaced]
            inside = SampleTable.segment_id.in_([segment.id for segment in replaced])
            if new is not None:
                made = insert_segment(connection, new, retained_energy, left.seal, "")
                moved = update(SampleTable.__table__).where(inside)  # type: ignore[arg-type]
                if not joined:
                    moved = moved.where(SampleTable.removed_at.is_(None))
                connection.execute(moved.values(segment_id=made.id))
                texts = text_seals(connection, [made])[made.id]
                removed = seal_ids(left.ids[~left.live])
                made = reseal(connection, made, texts=texts, removed=removed)
                seals.append(made.checksum)
                change.rows.add(made.rows)
            connection.execute(delete(SampleTable).where(inside))
            gone = SegmentTable.id.in_([segment.id for segment in replaced])
            connection.execute(delete(SegmentTable).where(gone))
            after = replace(info, segments=xor(info.segments, *seals))
            self._advance(connection, change, after)

    def vacuum(self) -> None:
        """Leaves nothing in the database's files of the rows that were deleted.

        What a server keeps for itself (PostgreSQL's write-ahead log and backups) is out of reach.

        Raises:
            LockedError: a reader is in the way for too long.
            StorageError: there is no room for a second copy of the live rows.
        """
        with self._intact.changing(), outside(self._engine) as connection:
            if self._engine.name != "sqlite":
                connection.exec_driver_sql("VACUUM FULL samples")
                return
            connection.exec_driver_sql("VACUUM")
            busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
        if busy:
            raise LockedError(
                f"{place_of(self._engine)} is being read: what was deleted may still be in its "
                "write-ahead log; run `forvalue compact` again"
            )

    def drop(self) -> None:
        """Deletes the catalogue's tables, as a creation that failed has to."""
        with writing(self._engine) as connection:
            Base.metadata.drop_all(connection)
            connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")

    def _info(self, connection: Connection) -> Info:
        # FOR UPDATE: on PostgreSQL a second writer waits here; SQLite's waits at BEGIN.
        return sealed_info(connection, self.place, lock=True)

    def _advance(self, connection: Connection, change: Change, info: Info, **values: str) -> None:
        """Writes the state of the next generation, as the last step of every change."""
        info = replace(info, generation=info.generation + 1)
        connection.execute(update(IndexInfoTable).values(**asdict(info), state=info.seal, **values))
        change.generation = info.generation


def _differing(fingerprint: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Returns the entries in which two fingerprints say that vectors were made differently."""
    names = {*fingerprint, *other} - {MEASURED}
    return sorted(name for name in names if fingerprint.get(name) != other.get(name))

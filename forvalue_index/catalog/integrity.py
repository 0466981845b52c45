"""Checks that the catalogue is what was committed, as often as it is cheap to.

- `index_info` and `segments` (`sealed.py`): in every transaction, a hash for each segment;
- which rows are removed, and the numbers of rows (`sealed_rows.py`): whenever they are loaded, a
  hash for each segment over the arrays. Rows are counted where `Intact` does not know better;
- keys, texts and the database's own indexes, which filters and look-ups use: read whole once for
  each segment (`Intact.require`). For SQLite this is remembered in a file beside it, for the state
  of its files (sizes, times, inodes), and updated with what this package writes. A server's rows
  are read once in each process.

A row that is shown is checked against its own checksum besides (`rows.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

from sqlalchemy import Connection, Engine, inspect

from forvalue_index.catalog.engine import FileState, file_state, place_of, reading
from forvalue_index.catalog.schema import SampleTable
from forvalue_index.catalog.sealed import NEXT, SealedSegment, sealed
from forvalue_index.catalog.sealed_rows import removed_ids, require_figures, require_texts
from forvalue_index.errors import CorruptIndexError, brief
from forvalue_index.system.files import atomic_write, open_own

MEMORY = "checked-catalog.json"
PATIENCE = 0.25  # seconds in which a commit that is under way comes to its end


@dataclass(slots=True)
class Change:
    """What a transaction of this process committed."""

    generation: int | None = None
    rows: set[str] = field(default_factory=set)  # `SealedSegment.rows` of new segments


class Intact:
    """The rows that this process found intact. Safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = RLock()
        self._state: FileState | None = None  # of the files when all was known to be intact
        self._generation: int | None = None  # up to which it is
        self._rows: set[str] = set()  # `SealedSegment.rows` of the segments that are
        self._counted: int | None = None  # a server's generation whose rows were all there

    def require(self) -> None:
        """Checks that all rows and the database's own indexes are what was committed.

        If SQLite's files did not change, only their status is read.

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
                    if not remembered:
                        counted = self.must_count(info.generation)
                        removed_ids(connection, segments, info, place_of(engine), counted=counted)
                        self.found(info.generation)
                        self._require_rows(connection, segments, set() if edited else self._rows)
                    self._rows = {segment.rows for segment in segments}
                    self._generation = info.generation
                    self._state = state if state == file_state(engine) else None
                    if self._state is not None and not remembered:
                        self._remember(self._state)
                    return
            time.sleep(PATIENCE / 5)

    def unchanged(self) -> bool:
        """Whether SQLite's files are in a state in which all rows were found intact."""
        state = file_state(self._engine)
        return state is not None and state in (self._state, self._remembered())

    def must_count(self, generation: int) -> bool:
        """Returns whether the rows of a generation are to be counted.

        Those of a server are when it is opened, and when it is looked at again; not when it has a
        new generation, of which what is new is sealed. A row that another program took away since
        then is missed when it is read.
        """
        return self._counted is None or generation <= self._counted

    def found(self, generation: int) -> None:
        """Notes that all rows of a generation are there, as far as that was to be checked."""
        if file_state(self._engine) is None:
            self._counted = generation

    def _require_rows(
        self, connection: Connection, segments: Sequence[SealedSegment], known: set[str]
    ) -> None:
        place = place_of(self._engine)
        if not known:
            for problem in database_problems(connection):
                raise CorruptIndexError(f"{place}: {problem}; {NEXT}")
        new = [segment for segment in segments if segment.rows not in known]
        require_figures(connection, new, place)
        require_texts(connection, new, place)

    @contextmanager
    def changing(self) -> Iterator[Change]:
        """Takes over into a `with` block that changes the database what was intact before it.

        The block fills in what it yields with what it committed.
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
        """Writes the state of intact files, if the folder can be written."""
        with suppress(OSError), atomic_write(self._memory, text=True) as file:
            json.dump(state, file)


def database_problems(connection: Connection, most: int = 5) -> list[str]:
    """Returns what is wrong with the database itself and its indexes, a line each."""
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

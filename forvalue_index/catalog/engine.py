"""How the catalogue's database is reached: engines and transactions. Knows of no table."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from forvalue_index.catalog.address import parse_url, shown
from forvalue_index.catalog.driver_errors import no_room, translated
from forvalue_index.errors import (
    CorruptIndexError,
    DependencyError,
    IndexMissingError,
    InputError,
)

BUSY_SECONDS = 30  # how long to wait for another process's transaction
LOG_INDEX_BYTES = 32768  # the least that SQLite's index of a write-ahead log has

_WRITES = "forvalue_writes"
"""Execution option: whether this transaction writes; None: there is no transaction."""


def sqlite_url(file: Path) -> URL:
    """Returns the URL of an SQLite file, whatever characters are in its name."""
    return URL.create("sqlite", database=str(file))


def make_engine(url: str | URL, *, create: bool = False, foreign_keys: bool = True) -> Engine:
    """Returns an engine for the catalogue at `url`, SQLite or PostgreSQL; nothing is connected yet.

    `create` lets SQLite make a file that is not there. `foreign_keys` is for migrations alone,
    which may have to rebuild a table that others point to.

    Raises:
        IndexMissingError: SQLite's file is not there and `create` is false.
        InputError: `url` is not a database URL, or of another kind of database.
        DependencyError: the driver is not installed.
    """
    parsed = parse_url(url)
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise InputError(f"a catalogue cannot be on {backend!r}: use sqlite or postgresql")
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise InputError(f"catalogue {shown(parsed)} has no file: write sqlite:///FILE")
        if not create and not Path(str(parsed.database)).is_file():
            raise IndexMissingError(
                f"no index here: {parsed.database} does not exist. "
                "Make one with `forvalue build`, or correct the directory"
            )
    file = Path(str(parsed.database))
    shared = backend == "sqlite" and not create and not _writable(file)
    try:
        own = {"creator": lambda: _connect(file), "poolclass": NullPool} if shared else {}
        engine = create_engine(parsed, hide_parameters=True, **own)
    except (ModuleNotFoundError, NoSuchModuleError) as error:  # the latter is an ArgumentError
        raise DependencyError(
            f"the driver of {parsed.drivername!r} is missing ({error}): "
            "pip install forvalue-index[postgres], and write postgresql+psycopg://..."
        ) from error
    except (ArgumentError, ValueError, TypeError) as error:
        raise InputError(
            f"the options of {shown(parsed)} cannot be used ({error}): correct them"
        ) from error
    if backend == "sqlite":
        _set_up_sqlite(engine, foreign_keys, shared)
    else:
        _set_up_postgresql(engine)
    return engine


def _writable(file: Path) -> bool:
    return os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)


def _connect(file: Path) -> sqlite3.Connection:
    """Returns a connection to a database that this user may only read, for one transaction.

    If there is a write-ahead log, its owner has the database open, and SQLite reads both files.
    Otherwise SQLite would make one, so it is told that nothing changes meanwhile.
    """
    return _connect_as(file, "immutable=1" if _idle(file) else "mode=ro")


class _Unlocked(sqlite3.Connection):
    """A connection without locks: SQLite was told that nothing changes meanwhile."""

    stamp: tuple[int, int]  # of the file, before


def _connect_as(file: Path, how: str) -> sqlite3.Connection:
    uri = f"{file.absolute().as_uri()}?{how}"
    if how != "immutable=1":
        return sqlite3.connect(uri, uri=True, check_same_thread=False)
    stamp = _stamp(file)
    made = sqlite3.connect(uri, uri=True, check_same_thread=False, factory=_Unlocked)
    made.stamp = stamp
    return made


def _stamp(file: Path) -> tuple[int, int]:
    """Returns what changes with every write to a file."""
    found = file.stat()
    return found.st_mtime_ns, found.st_size


def _idle(file: Path) -> bool:
    """Returns whether nobody has a database open, and all of it is in its file.

    If a full disk kept SQLite from opening it, an empty log is left, and too short an index of it.
    """
    log, index = (file.with_name(file.name + ending) for ending in ("-wal", "-shm"))
    return not _size(log) and (_size(index) < LOG_INDEX_BYTES or not log.exists())


def _size(file: Path) -> int:
    """Returns how many bytes a file has: 0 if it is not there."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _connected_for_reading(engine: Engine) -> Connection:
    """Returns a connection to read with, also if a full disk has no room for the log's index."""
    try:
        return engine.connect()
    except DBAPIError as error:
        file = Path(str(engine.url.database))
        full = engine.name == "sqlite" and no_room(error.orig)
        if not full or not _idle(file):
            raise
    # For this one transaction: the next may find room, and what others wrote.
    alone = create_engine(
        engine.url, creator=lambda: _connect_as(file, "immutable=1"), poolclass=NullPool
    )
    _set_up_sqlite(alone, foreign_keys=True, shared=True)
    return alone.connect()


def _set_up_sqlite(engine: Engine, foreign_keys: bool, shared: bool) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        # The driver's own BEGIN comes late and never before DDL or SELECT; ours is in `begin`.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        if not shared:
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
        cursor.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        cursor.execute("PRAGMA trusted_schema = OFF")  # the file may come from somebody else
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        if writes is not False:
            _use_log(connection)
        # A reader that turns writer midway cannot wait for the other writer: say so at once.
        if writes is not None:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _use_log(connection: Connection) -> None:
    """Gives a database a write-ahead log, if it has none; only a writer may call this.

    Never a journal beside the file: one from somebody else could name a file to delete.
    """
    if connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
        connection.exec_driver_sql("PRAGMA journal_mode = MEMORY")
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")


def _set_up_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "do_connect")
    def ask(dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
        try:
            return dialect.connect(*arguments, **options)
        except dialect.loaded_dbapi.Error as error:
            if getattr(error, "sqlstate", None) is not None:  # a server's answer
                raise
            raise InputError(
                f"cannot open the catalogue {place_of(engine)}: {error}; check its URL, and that "
                "the server runs"
            ) from error

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET lock_timeout = '{BUSY_SECONDS}s'")
        cursor.close()
        connection.commit()


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Yields a connection in one transaction that sees the catalogue at one moment."""
    options = {"isolation_level": "REPEATABLE READ"} if engine.name == "postgresql" else {}
    with (
        translated(place_of(engine), BUSY_SECONDS),
        _connected_for_reading(engine).execution_options(**options) as connection,
        connection.begin(),
    ):
        try:
            yield connection
        finally:
            _require_unchanged(engine, connection)


def _require_unchanged(engine: Engine, connection: Connection) -> None:
    """Checks that nothing was written to a file that was read without locks.

    Raises:
        CorruptIndexError: something was; what was read may be of two moments.
    """
    own = connection.connection.dbapi_connection
    if isinstance(own, _Unlocked) and _stamp(Path(str(engine.url.database))) != own.stamp:
        raise CorruptIndexError(
            f"{place_of(engine)} was written to while it was read: run the command again"
        )


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Yields a connection in one transaction, which any exception rolls back."""
    options = {_WRITES: True}
    with (
        translated(place_of(engine), BUSY_SECONDS),
        engine.connect().execution_options(**options) as connection,
        connection.begin(),
    ):
        yield connection


@contextmanager
def outside(engine: Engine) -> Iterator[Connection]:
    """Yields a connection in no transaction, as VACUUM needs it."""
    options: dict[str, Any] = {_WRITES: None}
    if engine.name == "postgresql":
        options["isolation_level"] = "AUTOCOMMIT"
    with (
        translated(place_of(engine), BUSY_SECONDS),
        engine.connect().execution_options(**options) as connection,
    ):
        yield connection


FileState = list[list[int] | None]


def file_state(engine: Engine) -> FileState | None:
    """Returns what every write to SQLite's two files changes; None for a server.

    An empty log counts as none: each process that opens the database makes one. The log's ctime
    does not count: root's SQLite changes it whenever it opens a log.
    """
    if engine.name != "sqlite":
        return None
    file = Path(str(engine.url.database))
    found: FileState = []
    log = file.with_name(file.name + "-wal")
    for path in (file, log):
        try:
            stat = path.stat()
        except FileNotFoundError:
            found.append(None)
            continue
        times = [stat.st_mtime_ns] if path == log else [stat.st_mtime_ns, stat.st_ctime_ns]
        found.append([stat.st_size, *times, stat.st_ino] if stat.st_size else None)
    return found


def let_go(engine: Engine, process: int) -> None:
    """Closes the connections that wait for use; those of a parent process are its own to close."""
    engine.dispose(close=os.getpid() == process)


def place_of(engine: Engine) -> str:
    """Returns where the catalogue is, for messages: a file, or the URL without its password."""
    if engine.name == "sqlite":
        return str(engine.url.database)
    return shown(engine.url)

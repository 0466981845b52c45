"""How the catalogue's database is reached: engines, transactions, and its errors in our words.

Knows of no table.
"""

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
from forvalue_index.errors import (
    CorruptIndexError,
    DependencyError,
    ForvalueError,
    IndexMissingError,
    InputError,
    LockedError,
    StorageError,
    brief,
)

BUSY_SECONDS = 30  # how long to wait for another process's transaction
LOG_INDEX_BYTES = 32768  # the least that SQLite's index of a write-ahead log has

# SQLite's primary result codes. Those of reading that a damaged file causes are CORRUPT's.
_SQLITE_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_SQLITE_CLOSED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
_SQLITE_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_SQLITE_UNWRITTEN = {*_SQLITE_NO_ROOM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOMEM}
# ERROR: a table or column is missing, or JSON is broken: the statements themselves are right.
_SQLITE_CORRUPT = {
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_SCHEMA,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_INTERNAL,
    sqlite3.SQLITE_PROTOCOL,
}
_SQLITE_UNREADABLE = {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ}

# PostgreSQL's SQLSTATEs, or their classes (the first two signs).
_STATE_TOO_LARGE = "22003"
_STATES_LOCKED = {"55P03", "40P01", "40001", "57014"}
_STATES_UNWRITTEN = {"53100", "53200", "58030", "25006", "42501"}
_STATES_CLOSED = {"08", "28", "3D", "53", "57"}
_STATES_CORRUPT = {"22", "23", "XX", "42P01", "42703"}  # a table or column is missing

_WRITES = (
    "forvalue_writes"  # execution option: whether this transaction writes; None: there is none
)


def sqlite_url(file: Path) -> URL:
    """The URL of an SQLite file, whatever signs are in its name."""
    return URL.create("sqlite", database=str(file))


def make_engine(url: str | URL, *, create: bool = False, foreign_keys: bool = True) -> Engine:
    """An engine for the catalogue at `url`, SQLite or PostgreSQL; nothing is connected yet.

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
    except (ArgumentError, ValueError, TypeError) as error:
        raise InputError(
            f"the options of {shown(parsed)} cannot be used ({error}): correct them"
        ) from error
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise DependencyError(
            f"the driver of {parsed.drivername!r} is missing ({error}): "
            "pip install forvalue-index[postgres], and write postgresql+psycopg://..."
        ) from error
    if backend == "sqlite":
        _set_up_sqlite(engine, foreign_keys, shared)
    else:
        _set_up_postgresql(engine)
    return engine


def _writable(file: Path) -> bool:
    return os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)


def _connect(file: Path) -> sqlite3.Connection:
    """A connection to a database that this user may only read, for one transaction.

    Where there is a write-ahead log, its owner has the database open, and SQLite looks into both.
    Where there is none, SQLite would make one, and is told that nothing changes meanwhile.
    """
    return _connect_as(file, "immutable=1" if _idle(file) else "mode=ro")


class _Unlocked(sqlite3.Connection):
    """A connection that takes no locks, for SQLite was told that nothing changes meanwhile."""

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
    """Whether nobody has a database open, and all of it is in its file.

    Where a full disk kept SQLite from opening it, an empty log is left, and too short an index.
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
    """A connection to read with, also where a full disk has no room for an index of the log."""
    try:
        return engine.connect()
    except DBAPIError as error:
        file = Path(str(engine.url.database))
        full = engine.name == "sqlite" and _primary(error.orig) in _SQLITE_NO_ROOM
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
    """Gives a database a write-ahead log, if it has none: only a writer may change its file.

    It never has a journal beside it: one from somebody else could name a file to delete.
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
            raise InputError(f"cannot open the catalogue {place_of(engine)}: {error}") from error

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET lock_timeout = '{BUSY_SECONDS}s'")
        cursor.close()
        connection.commit()


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection in one transaction that sees the catalogue at one moment."""
    options = {"isolation_level": "REPEATABLE READ"} if engine.name == "postgresql" else {}
    with (
        _translated(engine),
        _connected_for_reading(engine).execution_options(**options) as connection,
        connection.begin(),
    ):
        try:
            yield connection
        finally:
            _require_unchanged(engine, connection)


def _require_unchanged(engine: Engine, connection: Connection) -> None:
    """Makes sure that nothing was written to a file that was read without locks.

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
    """A connection in one transaction: committed at the end, rolled back by any exception."""
    options = {_WRITES: True}
    with (
        _translated(engine),
        engine.connect().execution_options(**options) as connection,
        connection.begin(),
    ):
        yield connection


@contextmanager
def outside(engine: Engine) -> Iterator[Connection]:
    """A connection in no transaction, as VACUUM wants it."""
    options: dict[str, Any] = {_WRITES: None}
    if engine.name == "postgresql":
        options["isolation_level"] = "AUTOCOMMIT"
    with _translated(engine), engine.connect().execution_options(**options) as connection:
        yield connection


@contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    """Translates what the driver raises into this package's errors, by the driver's codes."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InputError(f"{error.object!r:.200} holds a character that is not text") from error
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise CorruptIndexError(_UNREADABLE.format(place_of(engine), reason)) from error
    except OverflowError as error:
        raise InputError(f"a number is too large for {place_of(engine)} ({error})") from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _STATE_TOO_LARGE:
            reason = brief(error.orig, 300)
            raise InputError(f"a number is too large for {place_of(engine)} ({reason})") from error
        found = _meaning(error.orig)
        if found is None:
            raise
        place, reason = place_of(engine), brief(error.orig, 300)
        if found is LockedError:
            raise LockedError(
                f"{place} has been locked by another process for {BUSY_SECONDS} s: "
                "wait until it has finished, or stop it"
            ) from error
        if found is CorruptIndexError:
            raise CorruptIndexError(_UNREADABLE.format(place, reason)) from error
        if found is StorageError:
            raise StorageError(
                f"{place} cannot be written ({reason}): nothing of this step was committed; make "
                "room and run the command again"
            ) from error
        raise InputError(f"cannot open the catalogue {place}: {reason}") from error


_UNREADABLE = "{} cannot be read ({}): restore it from a copy, or build again"


def _meaning(error: BaseException | None) -> type[ForvalueError] | None:
    """The error that a driver's is translated into; None if it is a bug of ours."""
    if isinstance(error, sqlite3.Error):
        code, primary = getattr(error, "sqlite_errorcode", None), _primary(error)
        if code in _SQLITE_UNREADABLE or primary in _SQLITE_CORRUPT:
            return CorruptIndexError
        if primary in _SQLITE_LOCKED:
            return LockedError
        if primary in _SQLITE_UNWRITTEN:
            return StorageError
        if primary in _SQLITE_CLOSED:
            return InputError
        # The driver's own, without a code: text that is not UTF-8.
        undecoded = primary is None and isinstance(error, sqlite3.OperationalError)
        return CorruptIndexError if undecoded else None
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state is None:  # no server answered
        return InputError if type(error).__name__ == "OperationalError" else None
    if state in _STATES_LOCKED:
        return LockedError
    if state in _STATES_UNWRITTEN:
        return StorageError
    if state[:2] in _STATES_CLOSED:
        return InputError
    return CorruptIndexError if {state, state[:2]} & _STATES_CORRUPT else None


def _primary(error: BaseException | None) -> int | None:
    """SQLite's primary result code, the low byte of the extended one; None if there is none."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


FileState = list[list[int] | None]


def file_state(engine: Engine) -> FileState | None:
    """What changes with every write to SQLite's two files, whoever writes; None for a server.

    A log that is empty is as good as none: each process that opens the database makes one. When
    the log's status changed does not count: root's SQLite changes it whenever it opens a log.
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


def place_of(engine: Engine) -> str:
    """Where the catalogue is, for messages: SQLite's file, or the URL without its password."""
    if engine.name == "sqlite":
        return str(engine.url.database)
    return shown(engine.url)

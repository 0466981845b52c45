"""Errors of SQLite and PostgreSQL, by their codes, as this package's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from forvalue_index.errors import (
    CorruptIndexError,
    ForvalueError,
    InputError,
    LockedError,
    StorageError,
    brief,
)

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


def no_room(error: BaseException | None) -> bool:
    """Returns whether an error of SQLite's driver means that the disk is full."""
    return _primary(error) in _SQLITE_NO_ROOM


@contextmanager
def translated(place: str, waited: float) -> Iterator[None]:
    """Translates what the driver raises into this package's errors, by the driver's codes.

    `place` is the catalogue's, `waited` the seconds after which a lock counts as one.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        raise InputError(
            f"{error.object!r:.200} holds a character that is not text: leave it out"
        ) from error
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise CorruptIndexError(_UNREADABLE.format(place, reason)) from error
    except OverflowError as error:
        raise InputError(
            f"a number is too large for {place} ({error}): use a smaller one"
        ) from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _STATE_TOO_LARGE:
            reason = brief(error.orig, 300)
            raise InputError(
                f"a number is too large for {place} ({reason}): use a smaller one"
            ) from error
        found = _meaning(error.orig)
        if found is None:
            raise
        reason = brief(error.orig, 300)
        if found is LockedError:
            raise LockedError(
                f"{place} has been locked by another process for {waited} s: "
                "wait until it has finished, or stop it"
            ) from error
        if found is CorruptIndexError:
            raise CorruptIndexError(_UNREADABLE.format(place, reason)) from error
        if found is StorageError:
            raise StorageError(
                f"{place} cannot be written ({reason}): nothing of this step was committed; make "
                "room and run the command again"
            ) from error
        way = "check its URL, and that the server runs"
        if isinstance(error.orig, sqlite3.Error):
            way = "check that it and what lies beside it are files that you may read"
        raise InputError(f"cannot open the catalogue {place}: {reason}; {way}") from error


_UNREADABLE = "{} cannot be read ({}): restore it from a copy, or build again"


def _meaning(error: BaseException | None) -> type[ForvalueError] | None:
    """Returns the error that a driver's is translated into; None if it is a bug of ours."""
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
    """Returns SQLite's primary result code, the low byte of the extended one, if there is one."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF

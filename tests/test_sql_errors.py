"""What a database's driver raises is told apart by its codes, whatever its words are."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from helpers.catalogs import add
from sqlalchemy.exc import OperationalError

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.engine import make_engine, reading, writing
from forvalue_index.errors import (
    CorruptIndexError,
    InputError,
    LockedError,
    StorageError,
)

SQLITE = {
    sqlite3.SQLITE_BUSY_SNAPSHOT: LockedError,
    sqlite3.SQLITE_LOCKED: LockedError,
    sqlite3.SQLITE_FULL: StorageError,
    sqlite3.SQLITE_IOERR_WRITE: StorageError,
    sqlite3.SQLITE_IOERR_FSYNC: StorageError,
    sqlite3.SQLITE_READONLY_DBMOVED: StorageError,
    sqlite3.SQLITE_IOERR_READ: CorruptIndexError,
    sqlite3.SQLITE_IOERR_SHORT_READ: CorruptIndexError,
    sqlite3.SQLITE_CORRUPT_INDEX: CorruptIndexError,
    sqlite3.SQLITE_NOTADB: CorruptIndexError,
    sqlite3.SQLITE_ERROR: CorruptIndexError,
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: CorruptIndexError,
    sqlite3.SQLITE_CANTOPEN: InputError,
    None: CorruptIndexError,  # the driver's own: text that is not UTF-8
}
SERVER = {
    "55P03": LockedError,
    "40P01": LockedError,
    "53100": StorageError,
    "25006": StorageError,
    "XX002": CorruptIndexError,
    "42P01": CorruptIndexError,
    "23505": CorruptIndexError,
    "28P01": InputError,
    "3D000": InputError,
    "57P01": InputError,
    None: InputError,  # no server answered
}


def raised(tmp_path: Path, original: Exception) -> Exception:
    """What becomes of a driver's error while the catalogue is read."""
    engine = make_engine(f"sqlite:///{tmp_path / 'x.db'}", create=True)
    with pytest.raises(Exception) as caught, reading(engine):
        raise OperationalError("SELECT", {}, original)
    engine.dispose()
    return caught.value


@pytest.mark.parametrize("code", SQLITE)
def test_sqlite_errors_are_known_by_their_codes(tmp_path: Path, code: int | None) -> None:
    original = sqlite3.OperationalError("etwas\nging schief")
    if code is not None:
        original.sqlite_errorcode = code
    error = raised(tmp_path, original)
    assert type(error) is SQLITE[code]
    assert "\n" not in str(error)


@pytest.mark.parametrize("code", SERVER)
def test_server_errors_are_known_by_their_states(tmp_path: Path, code: str | None) -> None:
    psycopg = pytest.importorskip("psycopg")
    original: Any = psycopg.OperationalError("etwas\nging schief")
    original.sqlstate = code
    error = raised(tmp_path, original)
    assert type(error) is SERVER[code]
    assert "\n" not in str(error)


def test_a_bug_of_ours_is_no_damage(tmp_path: Path) -> None:
    misuse = sqlite3.ProgrammingError("Cannot operate on a closed database.")
    assert isinstance(raised(tmp_path, misuse), OperationalError)
    psycopg = pytest.importorskip("psycopg")
    syntax = psycopg.errors.SyntaxError("database is locked, malformed")
    assert isinstance(raised(tmp_path, syntax), OperationalError)


def test_what_drivers_raise_has_codes(catalog: Catalog, url: str) -> None:
    add(catalog, "a", range(2))
    engine = make_engine(url)
    for statement in ("SELECT nothing FROM samples", "SELECT * FROM nothing"):
        with pytest.raises(CorruptIndexError, match="nothing"), reading(engine) as connection:
            connection.exec_driver_sql(statement)
    with pytest.raises(CorruptIndexError), writing(engine) as connection:
        connection.exec_driver_sql("UPDATE samples SET key = 'k0'")
    engine.dispose()
    with pytest.raises(InputError, match="too large"):
        list(catalog.iterate(after=2**70))
    assert catalog.count() == 2


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(InputError, match="cannot open the catalogue") as caught:
        Catalog.open(f"postgresql+psycopg://x:secret@/x?host={tmp_path}")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)

"""The directory of an index: what is where in it, and writing there safely.

    INDEX/catalog.db    or catalog.url, where the catalogue is in another database
    INDEX/segments/     the vectors
    INDEX/vectoriser-*  what the first rows taught, named by its hash
    INDEX/derived/      what can be made again from the segments
    INDEX/checked.json  segments that were found intact, and the states of their files
    INDEX/checked-derived.json, INDEX/checked-catalog.json  the same of derived/ and the catalogue
    INDEX/rejects.jsonl rows that the last writer passed over, and why
    INDEX/write.lock    who writes

A sharded index has a folder of such directories: see `manifest.py`.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import URL

from forvalue_index.catalog import migrations
from forvalue_index.catalog.address import require_named
from forvalue_index.catalog.engine import sqlite_url
from forvalue_index.errors import CorruptIndexError, IndexMissingError, InputError, StorageError
from forvalue_index.store.manifest import is_sharded, read_manifest
from forvalue_index.system.files import NO_ROOM, open_own, own_files

CATALOG = "catalog.db"
CATALOG_URL = "catalog.url"
SEGMENTS = "segments"
DERIVED = "derived"
CHECKED = "checked.json"
CHECKED_DERIVED = "checked-derived.json"
REJECTS = "rejects.jsonl"


def is_index(directory: Path) -> bool:
    """Returns whether `directory` holds an index whose creation was finished."""
    if is_sharded(directory):
        return not _unfinished(directory)
    files = directory / CATALOG, directory / CATALOG_URL
    return any(file.is_file() for file in files) and not _unfinished(directory)


def require_empty(path: Path) -> None:
    """Checks that an index may be made at `path`.

    Raises:
        IndexMissingError: the directory is not empty, or is a file.
    """
    if path.exists() and not (path.is_dir() and (_is_empty(path) or _unfinished(path))):
        raise IndexMissingError(f"{path} is not empty: choose a new directory for the index")


def discard(path: Path, *, itself: bool) -> None:
    """Removes the files of a failed creation; `itself`: and the directory, which it made."""
    if itself:
        shutil.rmtree(path, ignore_errors=True)
        return
    for item in path.iterdir():
        shutil.rmtree(item) if item.is_dir() else item.unlink()


def files(directory: Path) -> list[Path]:
    """Returns the files of an index, after a check that all of them are its own.

    Raises:
        CorruptIndexError: a link, a pipe or a device is among them, or a journal that SQLite would
            follow: no index ever has one, and it may name a file elsewhere, to be deleted.
        StorageError: a folder cannot be read.
    """
    try:
        found = own_files(directory, (SEGMENTS, DERIVED))
    except OSError as error:
        raise StorageError(
            f"{error.filename} cannot be read ({error.strerror}): ask its owner"
        ) from error
    journal = directory / f"{CATALOG}-journal"
    if journal in found:
        raise CorruptIndexError(
            f"{journal} is there, which an index never has: restore the index from a copy"
        )
    return found


def size(directory: Path) -> int:
    """Returns the bytes of all files of an index, without those that are removed meanwhile.

    Raises:
        CorruptIndexError: as `files`.
    """
    total = 0
    for path in files(directory):
        with suppress(FileNotFoundError):  # a reader may just have finished with a temporary file
            total += path.stat().st_size
    return total


@contextmanager
def storing(directory: Path) -> Iterator[None]:
    """Translates OSError into StorageError, which says what to do."""
    try:
        yield
    except OSError as error:
        way = "put that right"
        if error.errno in NO_ROOM:
            way = "make room"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            way = "ask its owner, or copy the index"
        raise StorageError(
            f"{error.filename or directory} cannot be written ({error.strerror or error}): nothing "
            f"of this step was committed; {way} and run the command again"
        ) from error


def url_of(directory: Path) -> str | URL:
    """Returns the URL of an index's catalogue, after a check of the files in the directory.

    Raises:
        CorruptIndexError: a link or a special file is among them.
        InputError: the URL is not of PostgreSQL, or this user has not named it.
    """
    own, file = files(directory), directory / CATALOG_URL
    if file not in own:
        return sqlite_url(directory / CATALOG)
    try:
        with open_own(file) as stream:
            url = stream.read(10_000).decode(errors="replace").strip()
    except PermissionError as error:
        raise InputError(f"{file} is for its owner's eyes only: ask the owner") from error
    return require_named(url, file)


def _is_empty(path: Path) -> bool:
    return next(path.iterdir(), None) is None


def _unfinished(path: Path) -> bool:
    """Returns whether `path` holds what a killed `create` leaves: folders, and no catalogue."""
    if is_sharded(path):
        manifest = read_manifest(path)
        return not manifest.attached and "vectoriser" not in manifest.fingerprint
    names = {item.name for item in path.iterdir()}
    if {name for name in names if not name.startswith((CATALOG, CATALOG_URL))} != {SEGMENTS}:
        return False
    url = url_of(path)
    return _is_empty(path / SEGMENTS) and not migrations.is_catalog(url)

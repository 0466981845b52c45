"""The directory of an index: what is where in it, and writing there safely.

    INDEX/catalog.db    or catalog.url, where the catalogue is in another database
    INDEX/segments/     the vectors
    INDEX/vectoriser-*  what the first rows taught, named by its hash
    INDEX/derived/      what can be made again from the segments
    INDEX/checked.json  segments that were found intact, and when
    INDEX/checked-catalog.json  the same of the catalogue (see `catalog/integrity.py`)
    INDEX/rejects.jsonl rows that the last writer passed over, and why
    INDEX/write.lock    who writes

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
from forvalue_index.system.files import NO_ROOM, open_own, own_files, path_in

CATALOG = "catalog.db"
CATALOG_URL = "catalog.url"
SEGMENTS = "segments"
DERIVED = "derived"
CHECKED = "checked.json"
REJECTS = "rejects.jsonl"


def is_index(directory: Path) -> bool:
    """Whether there is an index in `directory`, whose making was finished."""
    files = directory / CATALOG, directory / CATALOG_URL
    return any(file.is_file() for file in files) and not _unfinished(directory)


def require_empty(path: Path) -> None:
    """Nothing, if an index may be made at `path`.

    Raises:
        IndexMissingError: something else is there.
    """
    if path.exists() and not (path.is_dir() and (_is_empty(path) or _unfinished(path))):
        raise IndexMissingError(f"{path} is not empty: choose a new directory for the index")


def discard(path: Path, *, itself: bool) -> None:
    """Removes what a failed creation left in a directory that was empty or not there."""
    if itself:
        shutil.rmtree(path, ignore_errors=True)
        return
    for item in path.iterdir():
        shutil.rmtree(item) if item.is_dir() else item.unlink()


def vectoriser_file(directory: Path, name: str) -> Path:
    """The file of the vectoriser with the hash `name`.

    Raises:
        CorruptIndexError: it is no file of `directory`.
    """
    return path_in(directory, f"vectoriser-{name}.safetensors", ".safetensors")


def files(directory: Path) -> list[Path]:
    """The files of an index, once all of them are its own.

    Raises:
        CorruptIndexError: a link, a pipe or a device is among them, or a journal that SQLite would
            follow: no index ever has one, and it may name a file elsewhere, to be deleted.
    """
    try:
        found = own_files(directory, (SEGMENTS, DERIVED))
    except OSError as error:
        raise StorageError(f"{error.filename} cannot be read ({error.strerror})") from error
    journal = directory / f"{CATALOG}-journal"
    if journal in found:
        raise CorruptIndexError(
            f"{journal} is there, which an index never has: restore the index from a copy"
        )
    return found


def size(directory: Path) -> int:
    """The bytes of all files of an index; those that somebody removes meanwhile count for nothing.

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
    """Turns the system's refusal to write into this package's words."""
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
    """The URL of an index's catalogue, once what is in the directory may be used.

    Raises:
        CorruptIndexError: a link or a special file is among the files.
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
    """Whether `path` holds what a `create` that was killed leaves: folders, and no catalogue."""
    names = {item.name for item in path.iterdir()}
    if {name for name in names if not name.startswith((CATALOG, CATALOG_URL))} != {SEGMENTS}:
        return False
    url = url_of(path)
    return _is_empty(path / SEGMENTS) and not migrations.is_catalog(url)

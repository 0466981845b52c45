"""The directory of an index: what is where in it, and writing there safely.

    INDEX/catalog.db    or catalog.url, where the catalogue is in another database
    INDEX/segments/     the vectors
    INDEX/vectoriser-*  what the first rows taught, named by its hash
    INDEX/derived/      what can be made again from the segments
    INDEX/checked.json  segments that were found intact, and when
    INDEX/checked-catalog.json  the same of the catalogue (see `catalog/intact.py`)
    INDEX/rejects.jsonl rows that the last writer passed over, and why
    INDEX/write.lock    who writes

Knows nothing of what the files hold.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL

from forvalue_index.catalog import migrations
from forvalue_index.catalog.engine import sqlite_url
from forvalue_index.errors import IndexMissingError, StorageError
from forvalue_index.search.segments import sync_folder

CATALOG = "catalog.db"
CATALOG_URL = "catalog.url"
SEGMENTS = "segments"
DERIVED = "derived"
CHECKED = "checked.json"
REJECTS = "rejects.jsonl"

_ENDINGS = "", "-wal", "-shm", "-journal", ".tmp"


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


def vectoriser_file(name: str) -> str:
    """The file name of the vectoriser with the hash `name`."""
    return f"vectoriser-{name}.safetensors"


@contextmanager
def storing(directory: Path) -> Iterator[None]:
    """Turns the system's refusal to write into this package's words."""
    try:
        yield
    except OSError as error:
        denied = isinstance(error, PermissionError) or error.errno == errno.EROFS
        way = "ask its owner, or copy the index" if denied else "make room"
        raise StorageError(
            f"{error.filename or directory} cannot be written ({error.strerror or error}): nothing "
            f"of this step was committed; {way} and run the command again"
        ) from error


def url_of(directory: Path) -> str | URL:
    """The URL of an index's catalogue."""
    file = directory / CATALOG_URL
    if file.is_file():
        return file.read_text().strip()
    return sqlite_url(directory / CATALOG)


def _is_empty(path: Path) -> bool:
    return next(path.iterdir(), None) is None


def _unfinished(path: Path) -> bool:
    """Whether `path` holds what a `create` that was killed leaves: folders, and no catalogue."""
    names = {item.name for item in path.iterdir()}
    names -= {name + end for name in (CATALOG, CATALOG_URL) for end in _ENDINGS}
    if names != {SEGMENTS} or not _is_empty(path / SEGMENTS):
        return False
    return not migrations.is_catalog(url_of(path))


def write_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Writes a file that is there whole, and safe on disk, or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.touch(mode)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)

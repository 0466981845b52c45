"""Temporary files, with errors that say what to do."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from forvalue_index.errors import StorageError


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """Translates OSError into StorageError, which says what to do."""
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or "the folder for temporary files"
        raise StorageError(
            f"{what} cannot be stored in {folder} ({error.strerror or error}): set TMPDIR to a "
            "folder with more space and run the command again"
        ) from error


class Spool:
    """Pieces of data by name, in a temporary file that is gone with this object."""

    def __init__(self, what: str) -> None:
        """`what` names the data in errors."""
        self._what = what
        self._places: dict[str, tuple[int, int]] = {}  # name -> start, length
        with keeping(what):
            self._file = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (as long as self)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            with suppress(OSError):  # what is left to write finds no room
                self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def put(self, name: str, data: bytes) -> None:
        """Keeps a piece.

        Raises:
            StorageError: there is no room for it.
        """
        with keeping(self._what):
            start = self._file.seek(0, 2)
            self._file.write(data)
            self._file.flush()
        self._places[name] = start, len(data)

    def get(self, name: str) -> bytes:
        """Returns a piece.

        Raises:
            StorageError: it cannot be read.
        """
        start, length = self._places[name]
        with keeping(self._what):
            self._file.seek(start)
            return self._file.read(length)

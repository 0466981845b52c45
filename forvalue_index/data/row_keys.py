"""Keys and contents of all rows of an input, and which of them are left to do: on disk.

SQLite's private temporary database, which is in memory as long as it is small, and in the folder
for temporary files beyond that. Safe to use from several threads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from weakref import finalize

from forvalue_index.errors import StorageError

_MEMORY = 256 * 1024  # KiB that stay in memory
_PAGE = 4000  # keys that are looked up at a time
_NEW, _CHANGED, _SAME = 1, 2, 0


@dataclass(frozen=True, slots=True)
class Compared:
    """How the rows of an input compare with what is there."""

    new: int
    changed: int  # whose key is there with other content
    same: int
    first_changed: str | None  # key of the first of these


class RowKeys:
    """The rows by their keys."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._count = 0
        with self._storing() as database:
            database.execute(f"PRAGMA cache_size = -{_MEMORY}")
            database.execute("PRAGMA journal_mode = OFF")
            database.execute(
                "CREATE TABLE rows (key TEXT PRIMARY KEY, content TEXT, place TEXT, number INTEGER,"
                f" state INTEGER DEFAULT {_NEW}) WITHOUT ROWID"
            )
            # One transaction for all: a commit counts all pages in memory that are not written.
            database.execute("BEGIN")

    @contextmanager
    def _storing(self) -> Iterator[sqlite3.Connection]:
        """Yields the database; translates its errors into StorageError."""
        with self._lock:
            try:
                if not hasattr(self, "_database"):
                    self._database = sqlite3.connect(
                        "", isolation_level=None, check_same_thread=False
                    )
                    finalize(self, self._database.close)  # Python 3.13 warns of one left open
                yield self._database
            except sqlite3.Error as error:
                raise StorageError(
                    f"the keys of the rows cannot be stored in the folder for temporary files "
                    f"({error}): set TMPDIR to a folder with more space and run the command again"
                ) from error

    def __len__(self) -> int:
        """Number of keys."""
        return self._count

    def add(self, key: str, content: str, place: str) -> str | None:
        """Notes a row, and returns None; if its key is there already, where that stands."""
        insert = "INSERT OR IGNORE INTO rows (key, content, place, number) VALUES (?, ?, ?, ?)"
        with self._storing() as database:
            added = database.execute(insert, (key, content, place, self._count)).rowcount
            if added:
                self._count += 1
                return None
            found = database.execute("SELECT place FROM rows WHERE key = ?", (key,))
            return str(found.fetchone()[0])

    def compare(self, known: Callable[[list[str]], dict[str, str]]) -> Compared:
        """Notes which rows are there: `known` returns key -> content, for those that are."""
        changed, same, last = 0, 0, ""
        first: tuple[int, str] | None = None
        while True:
            with self._storing() as database:
                page = database.execute(
                    "SELECT key, content, number FROM rows WHERE key > ? ORDER BY key LIMIT ?",
                    (last, _PAGE),
                ).fetchall()
            if not page:
                break
            last = page[-1][0]
            found = known([key for key, *_ in page])
            states = []
            for key, content, number in page:
                if key in found:
                    other = found[key] != content
                    states.append((_CHANGED if other else _SAME, key))
                    changed, same = changed + other, same + (not other)
                    if other and (first is None or number < first[0]):
                        first = number, key
            with self._storing() as database:
                database.executemany("UPDATE rows SET state = ? WHERE key = ?", states)
        first_key = None if first is None else first[1]
        return Compared(self._count - changed - same, changed, same, first_key)

    def take(self, key: str) -> bool:
        """Returns whether a row is left to do, which it is no longer then."""
        done = f"UPDATE rows SET state = -state WHERE key = ? AND state > {_SAME}"
        with self._storing() as database:
            return database.execute(done, (key,)).rowcount > 0

    def changed(self, keys: list[str]) -> list[str]:
        """Returns those of keys that are there with other content, also if they were taken."""
        wanted = f"SELECT 1 FROM rows WHERE key = ? AND abs(state) = {_CHANGED}"
        with self._storing() as database:
            return [key for key in keys if database.execute(wanted, (key,)).fetchone()]

    def other(self, rows: Iterable[tuple[str, str]]) -> str | None:
        """Returns the first of some keys whose content is not the one that was noted, if any."""
        noted = "SELECT content FROM rows WHERE key = ?"
        with self._storing() as database:
            for key, content in rows:
                if database.execute(noted, (key,)).fetchone() != (content,):
                    return key
        return None

    def by_content(self) -> Iterator[str]:
        """Yields the keys of the rows that are left to do, in the order of their contents."""
        page = f"SELECT key FROM rows WHERE state > {_SAME} ORDER BY content LIMIT ? OFFSET ?"
        start = 0
        while True:
            with self._storing() as database:
                found = database.execute(page, (4 * _PAGE, start)).fetchall()
            yield from (key for (key,) in found)
            start += len(found)
            if not found:
                return

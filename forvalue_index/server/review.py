"""What a person decided about rows, kept in files that the commands take.

    INDEX/review/decisions.jsonl   a line for each decision, in the order in which they were made
    INDEX/review/drop.txt          keys, for `forvalue remove --keys-file`
    INDEX/review/fix.jsonl         rows, for `forvalue add --update`

They are written anew with each decision, so that they are whole at any time. What another server
of the index has written there, or a person moved away, is seen at the next look.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from forvalue_index.errors import CorruptIndexError, brief
from forvalue_index.records import Row, value_of
from forvalue_index.server.problem import HttpError
from forvalue_index.store.layout import storing
from forvalue_index.system.files import atomic_write, open_own

FOLDER = "review"
DECISIONS, DROP, FIX = "decisions.jsonl", "drop.txt", "fix.jsonl"
KINDS = ("keep", "drop", "fix")
MOST = 100_000  # decisions
LARGEST = 256 << 20  # bytes of the file


class Review:
    """The decisions about the rows of an index."""

    def __init__(self, directory: Path, key_field: str | None, *, writable: bool) -> None:
        """Reads what was decided before.

        Args:
            directory: of the index.
            key_field: of its rows' keys. Without one, a fixed row has another key, so that the one
                before is dropped.
            writable: whether decisions are taken.

        Raises:
            CorruptIndexError: the file holds something else.
        """
        self._folder = directory / FOLDER
        self._key_field = key_field
        self._writable = writable
        self._lock = Lock()
        self._seen: tuple[int, int] | None = None  # of the file that was read or written last
        self._decisions: dict[str, Row] = {}
        self._look()

    def to_json(self) -> dict[str, Any]:
        """Returns all decisions, as `DecisionsAnswer` has them."""
        with self._lock:
            self._look()
            decisions = [*self._decisions.values()]
        counts = Counter(row["decision"] for row in decisions)
        return {
            "decisions": decisions,
            "counts": {kind: counts[kind] for kind in KINDS},
            "writable": self._writable,
        }

    def decide(self, key: str, decision: str | None, row: Row | None, note: str) -> None:
        """Keeps a decision about the row under a key; None takes the one before back.

        Raises:
            HttpError: a fix comes without its row, a row without a fix, the key cannot stand on a
                line, or there are too many decisions.
            StorageError: the files cannot be written.
        """
        if (decision == "fix") != (row is not None):
            raise HttpError(422, 'give a "row" with the decision "fix", and with no other')
        if decision in ("drop", "fix") and (not key or key != key.strip("\r\n") or "\n" in key):
            raise HttpError(422, "a key with a line break cannot stand in a file of keys")
        if row is not None and self._key_field is not None:
            own = value_of(row, self._key_field)
            if str(own) != key:
                raise HttpError(
                    422, f"the row's {self._key_field!r} must stay {brief(key)!r}, its key"
                )
        with self._lock:
            self._look()
            changed = {known: value for known, value in self._decisions.items() if known != key}
            if decision is not None:
                time = datetime.now(UTC).isoformat(timespec="seconds")
                changed[key] = {
                    "key": key,
                    "decision": decision,
                    "row": row,
                    "note": note,
                    "time": time,
                }
            if len(changed) > MOST:
                raise HttpError(413, f"there are {MOST:,} decisions already: act on them first")
            self._write(changed)
            self._decisions = changed

    def file(self, name: str) -> str:
        """Returns the text of "drop.txt" or "fix.jsonl"."""
        with self._lock:
            self._look()
            return self._text(name, self._decisions)

    def _look(self) -> None:
        """Reads the file if it is another one than before."""
        now = _state(self._folder / DECISIONS)
        if now != self._seen:
            self._decisions = {row["key"]: row for row in _read(self._folder / DECISIONS)}
            self._seen = now

    def _write(self, decisions: dict[str, Row]) -> None:
        texts = {name: self._text(name, decisions) for name in (DECISIONS, DROP, FIX)}
        if len(texts[DECISIONS]) > LARGEST:
            raise HttpError(413, "the decisions take more room than there is: act on them first")
        with storing(self._folder):
            self._folder.mkdir(exist_ok=True)
            for name, text in texts.items():
                with atomic_write(self._folder / name, text=True) as file:
                    file.write(text)
        self._seen = _state(self._folder / DECISIONS)

    def _text(self, name: str, decisions: dict[str, Row]) -> str:
        """Returns the text of a file of decisions."""
        if name == DECISIONS:
            lines = [json.dumps(row) for row in decisions.values()]
        elif name == DROP:
            dropped = ("drop",) if self._key_field is not None else ("drop", "fix")
            lines = [key for key, row in decisions.items() if row["decision"] in dropped]
        else:
            fixed = [row["row"] for row in decisions.values() if row["decision"] == "fix"]
            lines = [json.dumps(row) for row in fixed]
        return "".join(f"{line}\n" for line in lines)


def _state(path: Path) -> tuple[int, int] | None:
    """Returns what tells a file from the one that replaces it; None: there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def _read(path: Path) -> list[Row]:
    try:
        with open_own(path) as file:
            text = file.read(LARGEST).decode()
        rows = [json.loads(line) for line in text.splitlines()]
        if not all(row["decision"] in KINDS and isinstance(row["key"], str) for row in rows):
            raise ValueError("a line is no decision")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptIndexError(
            f"{path} cannot be read as decisions ({brief(error)}): restore it, or move it away"
        ) from None
    return rows

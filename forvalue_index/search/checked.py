"""Which files of an index were found to be, byte for byte, what was written to them.

Hashing costs about as much as reading, so each file is hashed once for each state it is seen in
(size, times, inode) and that is remembered. Damage below the file system, which does not change
these, is found by `verify_segment`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

from forvalue_index.errors import CorruptIndexError
from forvalue_index.records import Segment
from forvalue_index.search.segment import NEXT, SUFFIX, OpenSegment, open_segment, stat_of
from forvalue_index.system.files import atomic_write, open_own, path_in
from forvalue_index.system.machine import cores

State = list[int | str]
"""The committed sha256 of a file, and its size, times and inode when it was hashed."""


def state_of(sha256: str, found: os.stat_result) -> State:
    """Returns the state of a file that should have this SHA-256."""
    times = found.st_mtime_ns, found.st_ctime_ns
    return [sha256, found.st_size, *times, found.st_ino]


class CheckedFiles:
    """Files of a folder that were found intact, each with its state. Safe to use from threads."""

    def __init__(self, folder: Path, memory: Path) -> None:
        """`memory` is the file that keeps the states; it need not be writable, and may be lost."""
        self.folder = folder
        self._memory = memory
        self._lock = Lock()
        self._states: dict[str, State] = {}

    def unknown(self, states: Mapping[str, State]) -> list[str]:
        """Returns the names of the files that were not found intact in the states they have now."""
        with self._lock:
            names = [name for name in states if self._states.get(name) != states[name]]
            remembered = _remembered(self._memory) if names else {}
            return [name for name in names if remembered.get(name) != states[name]]

    def add(self, states: Mapping[str, State], *, hashed: bool) -> None:
        """Remembers files that are intact; `hashed`: the memory on disk lacks some of them."""
        with self._lock:
            self._states |= states
            if hashed:
                there = {*states, *(path.name for path in self.folder.iterdir())}
                known = _remembered(self._memory) | self._states
                self._states = {name: known[name] for name in known if name in there}
                _remember(self._memory, self._states)


class OpenSegments:
    """The mapped segments of an index; those whose files did not change are mapped only once."""

    def __init__(self, checked: CheckedFiles) -> None:
        """Takes INDEX/segments, and what was found intact in it."""
        self._checked = checked
        self._open: dict[str, tuple[Segment, State, OpenSegment]] = {}

    def open(self, segments: Iterable[Segment], dim: int, bits: int) -> list[OpenSegment]:
        """Returns committed segments, mapped, in their order.

        Raises:
            CorruptIndexError: a file is missing, or is not what was committed.
        """
        segments = list(segments)
        states = self._require_intact(segments)
        now: dict[str, tuple[Segment, State, OpenSegment]] = {}
        for segment in segments:
            key = segment, states[segment.name]
            before = self._open.get(segment.name)
            if before is not None and before[:2] == key:
                now[segment.name] = before
            else:
                opened = open_segment(self._checked.folder, segment, dim, bits)
                now[segment.name] = *key, opened
        self._open = now
        return [now[segment.name][2] for segment in segments]

    def close(self) -> None:
        """Lets go of the files."""
        self._open = {}

    def _require_intact(self, segments: Iterable[Segment]) -> dict[str, State]:
        """Checks that every segment's file has the committed size and SHA-256; returns the states.

        Raises:
            CorruptIndexError: a file is missing or was changed; the message names it.
        """
        paths, committed = dict[str, Path](), dict[str, State]()
        for segment in segments:
            path = paths[segment.name] = path_in(self._checked.folder, segment.name, SUFFIX)
            committed[segment.name] = state_of(segment.sha256, stat_of(path, segment))
        unknown = self._checked.unknown(committed)
        with ThreadPoolExecutor(cores()) as pool:  # hashing releases the interpreter's lock
            for _ in pool.map(lambda name: _require_hash(paths[name], committed[name][0]), unknown):
                pass
        self._checked.add(committed, hashed=bool(unknown))
        return committed


def _require_hash(path: Path, committed: object) -> None:
    try:
        with open_own(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorruptIndexError(f"{path} cannot be read ({error.strerror}): {NEXT}") from error
    if sha256 != committed:
        raise CorruptIndexError(
            f"{path} was changed: its sha256 is {sha256}, but {committed} was committed; {NEXT}"
        )


def _remembered(memory: Path) -> dict[str, State]:
    try:
        with open_own(memory) as file:
            found = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(memory: Path, states: Mapping[str, State]) -> None:
    # A reader may not be allowed to write.
    with suppress(OSError), atomic_write(memory, text=True) as file:
        json.dump(states, file)

"""Whether segment files are, byte for byte, what was committed.

Hashing costs about as much as reading, so each file is hashed once for each state it is seen in
(size, times, inode) and that is remembered. What changes below the file system, without touching
these, is for `verify_segment` to find.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from forvalue_index.errors import CorruptIndexError
from forvalue_index.records import Segment
from forvalue_index.search.segment import NEXT, SUFFIX, stat_of
from forvalue_index.system.files import atomic_write, open_own, path_in
from forvalue_index.system.machine import cores

States = dict[str, list[int | str]]
"""Name of a segment -> the state in which its file was hashed."""


def require_intact(
    folder: str | Path, segments: Iterable[Segment], memory: Path, own: States | None = None
) -> None:
    """Nothing, if every segment's file has the size and the SHA-256 that were committed.

    Args:
        folder: where the files are.
        segments: what was committed.
        memory: the file that remembers; losing it costs time, and it need not be writable.
        own: what the caller remembers besides, which is brought up to date.

    Raises:
        CorruptIndexError: a file is missing or was changed; the message names it.
    """
    remembered, seen = _remembered(memory), States()
    known = remembered | (own or {})
    unknown: list[tuple[Path, Segment]] = []
    for segment in segments:
        path = path_in(folder, segment.name, SUFFIX)
        seen[segment.name] = state = _state(path, segment)
        if known.get(segment.name) != state:
            unknown.append((path, segment))
    with ThreadPoolExecutor(cores()) as pool:  # hashing lets go of the interpreter
        for _ in pool.map(lambda item: _require_hash(*item), unknown):
            pass
    if own is not None:
        own.clear()
        own.update(seen)
    if remembered != seen:
        _remember(memory, seen)


def _state(path: Path, segment: Segment) -> list[int | str]:
    found = stat_of(path, segment)
    times = found.st_mtime_ns, found.st_ctime_ns
    return [segment.sha256, found.st_size, *times, found.st_ino]


def _require_hash(path: Path, segment: Segment) -> None:
    try:
        with open_own(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorruptIndexError(f"{path} cannot be read ({error.strerror}): {NEXT}") from error
    if sha256 != segment.sha256:
        raise CorruptIndexError(
            f"{path} was changed: its sha256 is {sha256}, but {segment.sha256} was committed; "
            f"{NEXT}"
        )


def _remembered(memory: Path) -> States:
    try:
        with open_own(memory) as file:
            found = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(memory: Path, states: States) -> None:
    # A reader may not be allowed to write.
    with suppress(OSError), atomic_write(memory, text=True) as file:
        json.dump(states, file)

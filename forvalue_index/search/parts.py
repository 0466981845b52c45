"""Arrays that are derived of one segment, in a file beside it.

    INDEX/derived/<segment>.<kind>   a line of JSON: which segment it is of, how long each array is,
                                     and what else belongs to it; the arrays; the sha256 of all
                                     that, in hex

Such a file counts for nothing unless it is whole and of that very segment. It can be made again.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.records import Segment
from forvalue_index.system.files import atomic_write, open_own

Arrays = Sequence[NDArray[Any]]

STEP = 2**24  # bytes that are hashed and written at a time


def parts_file(folder: Path, segment: Segment, suffix: str) -> Path:
    """Returns where the arrays of a kind of a segment are kept."""
    return folder / f"{Path(segment.name).stem}{suffix}"


def write_parts(
    path: Path, segment: Segment, arrays: Arrays, kinds: Sequence[str], **more: Any
) -> os.stat_result:
    """Writes arrays as numbers of `kinds`, with `more` as JSON; returns the file's status.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    whole = [np.ascontiguousarray(a, kind) for a, kind in zip(arrays, kinds, strict=True)]
    head = {"sha256": segment.sha256, "sizes": [part.size for part in whole]} | more
    digest = hashlib.sha256()
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as file:
        views = (memoryview(part.tobytes()) for part in whole)
        for data in (memoryview(json.dumps(head).encode() + b"\n"), *views):
            for start in range(0, len(data), STEP):
                digest.update(data[start : start + STEP])
                file.write(data[start : start + STEP])
        file.write(digest.hexdigest().encode())
    return path.stat()


def read_parts(
    path: Path, segment: Segment, kinds: Sequence[str], *, known: bool = False
) -> tuple[list[NDArray[Any]], dict[str, Any]] | None:
    """Returns the arrays, mapped, and the JSON beside them; None: nothing that can be believed.

    `known`: the file was found intact before, so that it is not hashed.
    """
    try:
        with open_own(path) as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        end = len(data) - 64
        if not known:
            found = hashlib.sha256(memoryview(data)[:end]).hexdigest()
            if found.encode() != data[end:]:
                return None
        start = data.find(b"\n") + 1
        head = json.loads(data[:start])
        if head["sha256"] != segment.sha256:
            return None
        arrays: list[NDArray[Any]] = []
        for size, kind in zip(head["sizes"], kinds, strict=True):
            arrays.append(np.frombuffer(data, kind, size, start))
            start += arrays[-1].nbytes
        return (arrays, head) if start == end else None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None

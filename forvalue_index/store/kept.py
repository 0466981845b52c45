"""What is kept of each segment beside it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Generic, Protocol, Self, TypeVar

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.errors import CorruptIndexError, ForvalueError
from forvalue_index.records import Segment
from forvalue_index.search.checked import CheckedFiles, State, state_of
from forvalue_index.search.moment import Writing
from forvalue_index.search.parts import parts_file


def require_current(catalog: Catalog, segment: Segment) -> None:
    """Checks that the rows of a segment are still all there, after something was made of them.

    Raises:
        CorruptIndexError: another segment has taken its place.
    """
    if len(catalog.segment_ids(segment.name)) != segment.ntotal:
        raise CorruptIndexError(f"segment {segment.name} was replaced meanwhile: ask again")


class Part(Protocol):
    """What is derived of one segment."""

    def write(self, folder: Path, segment: Segment) -> os.stat_result:
        """Keeps it in INDEX/derived; returns the file's status."""

    @classmethod
    def read(cls, folder: Path, segment: Segment, *, known: bool = False) -> Self | None:
        """Returns what is kept; `known`: it was found intact before."""


P = TypeVar("P", bound=Part)


class Kept(Generic[P]):
    """The parts of a kind, over time: on disk, or in memory where they cannot be there."""

    suffix: str
    kind: type[P]

    def __init__(self, checked: CheckedFiles) -> None:
        """Takes INDEX/derived, which need not exist, with what was found intact in it."""
        self._checked, self._folder = checked, checked.folder
        self._lock = RLock()
        self._known: dict[str, P] = {}  # sha256 of a segment -> its part

    def put(self, segment: Segment, part: P) -> State:
        """Keeps the part of a new segment; only the holder of the writer's lock may.

        Raises:
            OSError: the disk is full.
        """
        return state_of(segment.sha256, part.write(self._folder, segment))

    def file(self, segment: Segment) -> Path:
        """Returns where the part of a segment is kept."""
        return parts_file(self._folder, segment, self.suffix)

    def _read(self, segments: Sequence[Segment]) -> dict[str, P]:
        """Returns sha256 -> part, of those that are kept and sound."""
        states: dict[str, State] = {}
        for segment in segments:
            with suppress(OSError):
                path = self.file(segment)
                states[path.name] = state_of(segment.sha256, path.stat())
        unknown = set(self._checked.unknown(states))
        found, hashed = dict[str, P](), dict[str, State]()
        for segment in segments:
            name = self.file(segment).name
            part = self._known.get(segment.sha256)
            if part is None and name in states:
                part = self.kind.read(self._folder, segment, known=name not in unknown)
                if part is not None:
                    hashed[name] = states[name]
            if part is not None:
                found[segment.sha256] = part
        if hashed:
            self._checked.add(hashed, hashed=not unknown.isdisjoint(hashed))
        return found

    def _write(self, parts: dict[Segment, P]) -> None:
        written = {self.file(segment).name: self.put(segment, p) for segment, p in parts.items()}
        self._checked.add(written, hashed=True)


class KeptDerived(Kept[P], ABC):
    """The parts of a kind that can be made again, from rows or vectors, wherever one is missing."""

    @abstractmethod
    def made(self, segment: Segment) -> P:
        """Returns the part of a segment, made from its rows or vectors."""

    @abstractmethod
    def joined(self, parts: Sequence[tuple[Segment, P]]) -> P:
        """Returns the part of one segment that has all of several, in their order."""

    def all_of(self, segments: Sequence[Segment], writing: Writing) -> list[P]:
        """Returns the parts of segments; makes those that are not kept, and keeps them.

        `writing` gives the right to write files; where entering it fails, nothing is written.
        """
        with self._lock:
            known = self._read(segments)
            missing = [segment for segment in segments if segment.sha256 not in known]
            for segment in missing:
                known[segment.sha256] = self.made(segment)
            with suppress(OSError, ForvalueError):
                if missing:
                    with writing():
                        self._write({segment: known[segment.sha256] for segment in missing})
            self._known = known
            return [known[segment.sha256] for segment in segments]

    def put_joined(self, new: Segment, old: Sequence[Segment]) -> State:
        """Keeps the part of a segment that has all of `old`; only the holder of the lock may.

        Raises:
            OSError: the disk is full.
        """
        known = self._read(old)
        parts = [(segment, known.get(segment.sha256) or self.made(segment)) for segment in old]
        return self.put(new, self.joined(parts))

    def put_missing(self, segments: Sequence[Segment]) -> None:
        """Keeps the parts of segments that have none; only the holder of the lock may.

        Raises:
            OSError: the disk is full.
        """
        known = self._read(segments)
        for segment in segments:
            if segment.sha256 not in known:
                self._write({segment: self.made(segment)})

    def problems(self, segments: Iterable[Segment]) -> Iterator[str]:
        """Yields what is wrong with the files that are there, each of which is hashed."""
        for segment in segments:
            path = self.file(segment)
            if path.exists() and self.kind.read(self._folder, segment) is None:
                yield (
                    f"{path} is damaged, or of another segment, and counts for nothing: forvalue "
                    "verify --repair makes it again"
                )

"""The words of an index's rows: kept for each segment, made from the rows where that is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import RLock

import numpy as np
from numpy.typing import NDArray

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.config import FormatConfig
from forvalue_index.data.row_text import texts_of
from forvalue_index.errors import ForvalueError, RowError
from forvalue_index.records import Row, Segment
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.moment import Writing
from forvalue_index.search.words import Lexicon, Words, words_file


class KeptWords:
    """The words of an index over time: on disk, or in memory where they cannot be there."""

    def __init__(self, folder: Path, catalog: Catalog, format: FormatConfig) -> None:
        """Takes INDEX/derived, which need not exist."""
        self._folder, self._catalog, self._format = folder, catalog, format
        self._lock = RLock()
        self._known: dict[str, Words] = {}  # sha256 of a segment -> its words

    def of(self, flat: FlatSearch, writing: Writing) -> Lexicon:
        """Returns the words of the live samples; makes those that are not kept, and keeps them.

        `writing` gives the right to write files; where entering it fails, nothing is written.
        """
        with self._lock:
            known, made = dict[str, Words](), dict[str, Segment]()
            for segment in flat.segments:
                words = self._words(segment)
                if words is None:
                    words = self._made(segment)
                    made[segment.sha256] = segment
                known[segment.sha256] = words
            with suppress(OSError, ForvalueError):
                if made:
                    with writing():
                        for name, segment in made.items():
                            known[name].write(self._folder, segment)
            self._known = known
            return Lexicon(list(known.values()), flat.ids)

    def put(self, segment: Segment, ids: NDArray[np.int64], rows: Sequence[Row]) -> None:
        """Keeps the words of a new segment's rows; only the holder of the writer's lock may.

        Raises:
            OSError: the disk is full.
        """
        Words.of(ids, [self._texts(row) for row in rows]).write(self._folder, segment)

    def put_missing(self, segments: Iterable[Segment]) -> None:
        """Keeps the words of segments that have none; only the holder of the writer's lock may.

        Raises:
            OSError: the disk is full.
        """
        for segment in segments:
            if self._words(segment) is None:
                self._made(segment).write(self._folder, segment)

    def problems(self, segments: Iterable[Segment]) -> Iterator[str]:
        """Yields what is wrong with the files that are there."""
        for segment in segments:
            path = words_file(self._folder, segment)
            if path.exists() and Words.read(self._folder, segment) is None:
                yield (
                    f"{path} is damaged, or of another segment, and counts for nothing: forvalue "
                    "verify --repair makes it again"
                )

    def _words(self, segment: Segment) -> Words | None:
        return self._known.get(segment.sha256) or Words.read(self._folder, segment)

    def _made(self, segment: Segment) -> Words:
        ids = self._catalog.live_ids(segment.name)
        samples = self._catalog.samples(ids)
        texts = [self._texts(sample.row) for sample in samples.values()]
        return Words.of(np.fromiter(samples, np.int64, len(samples)), texts)

    def _texts(self, row: Mapping[str, object]) -> tuple[str, str]:
        """Returns the prompt and the scored text; of a row that has none, nothing."""
        try:
            return texts_of(dict(row), "row", self._format)
        except RowError:
            return "", ""

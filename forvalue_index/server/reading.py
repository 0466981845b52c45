"""What the server answers from the rows of an index, as JSON values, without its model.

Knows no HTTP. A row is as it was given, but of its pictures only the hash and the size are told.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from threading import Lock
from typing import Any

from forvalue_index.analysis.as_json import hit_json
from forvalue_index.data.images import of_pictures, pictures_of
from forvalue_index.errors import InputError, RowError, brief
from forvalue_index.index import InfluenceIndex
from forvalue_index.picture import HASH
from forvalue_index.records import Hit, Passage, Row, StoredSample
from forvalue_index.server.field_counts import field_counts
from forvalue_index.server.lane import Stop
from forvalue_index.server.problem import HttpError, Names
from forvalue_index.server.uploads import require_length, with_sent_images

log = logging.getLogger(__name__)

Json = dict[str, Any]

PLACES = ("directory", "catalog")  # of `info`, which are this machine's own
REMEMBERED = 32  # conditions whose counts are kept
LARGEST_SIDE = 1024  # pixels of a picture that is shown


class Reader:
    """The rows of an index for clients."""

    def __init__(self, index: InfluenceIndex, *, writable: bool = False) -> None:
        self.index = index
        self.names = Names(index)
        self.writable = writable
        self._counted: dict[tuple[Any, ...], Any] = {}
        self._lock = Lock()

    def info(self) -> Json:
        """Returns what the index holds, without the places where it and its model are."""
        info = {name: value for name, value in self.index.info().items() if name not in PLACES}
        model = info["config"]["model"]
        of = self.names.of
        adapters = [of(adapter) for adapter in model["adapters"]]
        named = model | {"name": of(model["name"]), "adapters": adapters}
        if "adapters" in info:
            info["adapters"] = [*map(of, info["adapters"])]
        return info | {
            "model": of(info["model"]),
            "config": info["config"] | {"model": named},
            "fields": self.index.fields(),
            "writable": self.writable,
            "images": self._takes_images(),
        }

    def _takes_images(self) -> bool:
        """Returns whether rows have images: in their field, or as the first row has them."""
        format = self.index.config.format
        first = self.index.rows(limit=1)
        return format.image_field is not None or any(
            pictures_of(stored.row, stored.key, format) for stored in first
        )

    def rows(self, where: Sequence[str], after: int, limit: int) -> Json:
        """Returns a page of rows, whether there are more, and how many there are in all."""
        found = list(self.index.rows(where, after=after, limit=limit + 1))
        return {
            "rows": [*map(self.stored, found[:limit])],
            "more": len(found) > limit,
            "total": self._total(where),
        }

    def row(self, key: str) -> Json:
        """Returns one row.

        Raises:
            HttpError: there is none under the key.
        """
        return self.stored(self.find(key))

    def fields(self, where: Sequence[str], stop: Stop) -> Json:
        """Returns the fields of the rows that meet conditions, with the counts of their values."""
        return self._once(("fields", *where), lambda: field_counts(self.index, where, stop))

    def search(self, words: str, k: int, where: Sequence[str]) -> Json:
        """Returns the rows that share most words with a text."""
        require_length([words])
        return {"hits": [self.hit(hit) for hit in self.index.search(words, k, where=where)]}

    def picture(self, key: str, number: int) -> bytes:
        """Returns a picture of a row as a PNG file, made smaller if it is large.

        Raises:
            HttpError: there is no such row, or it has no such picture.
        """
        row = self.find(key).row
        pictures = pictures_of(row, "the row", self.index.config.format)
        if number >= len(pictures):
            raise HttpError(404, f"the row has {len(pictures)} pictures, counted from 0")
        try:
            pictures[number].require_named("the row")
        except RowError as error:
            log.warning("row %s: %s", brief(key), error.reason)
            raise HttpError(404, "the picture's folder is not this server's to read") from None
        try:
            pixels = pictures[number].pixels("the row")
        except InputError:
            raise HttpError(404, "the picture's file is gone or was changed") from None
        pixels.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        buffer = io.BytesIO()
        pixels.save(buffer, "PNG")
        return buffer.getvalue()

    def all_rows(self, where: Sequence[str], stop: Stop) -> Iterator[Row]:
        """Yields all rows that meet conditions, for a file."""
        for stored in self.index.rows(where):
            stop.check()
            yield self.shown(stored.row)

    def find(self, key: str) -> StoredSample:
        """Returns a stored row.

        Raises:
            HttpError: there is none under the key.
        """
        try:
            return self.index.get(key)
        except InputError:
            raise HttpError(404, "no row has this key: see /api/rows for those there are") from None

    def hit(self, hit: Hit, passage: Passage | None = None) -> Json:
        """Returns a hit as JSON values, without its pictures."""
        found = hit_json(hit, passage)
        return found | {"sample": self.shown(found["sample"])}

    def stored(self, stored: StoredSample) -> Json:
        """Returns a stored row as JSON values, without its pictures."""
        return asdict(stored) | {"row": self.shown(stored.row)}

    def shown(self, row: Row) -> Row:
        """Returns a row without the bytes of its pictures and the places where they are."""
        return of_pictures(
            row,
            self.index.config.format,
            lambda picture: {HASH: picture[HASH], "size": picture.get("size")},
        )

    def with_pictures_of(self, row: Row, stored: Row) -> Row:
        """Returns a row of a client with the pictures of the stored row, of which it has hashes.

        Raises:
            HttpError: another picture of it is not in the request.
        """
        known: dict[str, Json] = {}

        def note(picture: Json) -> Json:
            known[picture[HASH]] = picture
            return picture

        format = self.index.config.format
        of_pictures(stored, format, note)
        return with_sent_images(row, format, "the row", known)

    def _total(self, where: Sequence[str]) -> int:
        if not where:
            return len(self.index)
        found = self._once(
            ("total", *where),
            lambda: {"total": self.index.answer(lambda view: len(view.where(where)))},
        )
        return int(found["total"])

    def _once(self, name: tuple[str, ...], count: Any) -> Json:
        """Returns what `count` returns, kept until the index changes."""
        key = (self.index.store.catalog.generation(), *name)
        with self._lock:
            known = self._counted.get(key)
        if known is None:
            known = count()
            with self._lock:
                while len(self._counted) >= REMEMBERED:
                    del self._counted[next(iter(self._counted))]
                self._counted[key] = known
        return dict(known)


def finite(value: Any) -> Any:
    """Returns JSON values with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value

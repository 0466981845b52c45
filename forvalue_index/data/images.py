"""Images of rows: found wherever the common conventions put them, checked, named by their hash.

row as it was read -> row that keeps each picture as JSON (see `picture.py`)"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from forvalue_index.config import FormatConfig
from forvalue_index.data.image_forms import Known, picture
from forvalue_index.data.rows import Outcome, Rows
from forvalue_index.errors import RowError
from forvalue_index.picture import HASH, LARGEST_BYTES, Picture
from forvalue_index.records import Row
from forvalue_index.system.image_folders import keep_folders

LARGEST_ROW = 4 * LARGEST_BYTES
"""Bytes of all the pictures that one row holds itself, which a database has to keep."""


def with_images(rows: Rows, config: FormatConfig) -> Rows:
    """Returns rows that keep their images as JSON (`settle`), or the rows if they can have none."""
    if rows.settled or (config.image_field is None and config.messages_field is None):
        return rows
    return ImageRows(rows, config)


class ImageRows(Rows):
    """Rows whose images are settled, as they were when they were first read."""

    def __init__(self, rows: Rows, config: FormatConfig) -> None:
        self._rows = rows
        self._config = config
        self._known = Known()

    def outcomes(self) -> Iterator[Outcome]:
        """Yields the rows; one with an image that cannot be used has an error in its place."""
        try:
            for place, row in self._rows.outcomes():
                yield place, self._settled(row, place)
        finally:
            keep_folders()

    def _settled(self, row: Row | RowError, place: str) -> Row | RowError:
        if isinstance(row, RowError):
            return row
        remote = self._rows.allow_remote
        try:
            return settle(row, place, self._config, known=self._known, allow_remote=remote)
        except RowError as error:
            return error


def settle(
    row: Row,
    source: str,
    config: FormatConfig,
    *,
    known: Known | None = None,
    allow_remote: bool = False,
) -> Row:
    """Returns a row that keeps its images as JSON; one without images as it is.

    Args:
        row: its images are in `image_field`, or parts of the messages' contents. Each is a path
            (from the data file's folder or the working directory), bytes, base64, a data: URI, an
            object with "bytes" or "path", or a URL.
        source: where the row stands.
        config: which fields there are.
        known: images that were read before. The others are decoded, so that what is broken is
            found before the first forward pass.
        allow_remote: fetch URLs. What was fetched is kept in the row.

    Raises:
        RowError: an image is not there, is not allowed, or does not decode.
    """

    images, n_bytes = known or Known(), 0

    def settled(value: Any) -> dict[str, Any]:
        nonlocal n_bytes
        found = picture(value, source, images, allow_remote)
        n_bytes += len(found.data or b"")
        if n_bytes > LARGEST_ROW:
            raise RowError(
                source,
                f"its images are larger than {LARGEST_ROW >> 20} MiB together: make them smaller",
            )
        return found.to_json()

    return _changed(row, config, settled, lambda part: _settled_part(part, settled))


def of_pictures(row: Row, config: FormatConfig, change: Callable[[dict[str, Any]], Any]) -> Row:
    """Returns a settled row with something else in the place of each picture.

    Where the format has no picture, nothing is one, whatever it looks like.
    """

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, dict) and HASH in value else value

    def of_part(part: Any) -> Any:
        if isinstance(part, dict) and part.get("type") == "image" and "image" in part:
            return part | {"image": changed(part["image"])}
        return part

    return _changed(row, config, changed, of_part)


def bare(row: Row, config: FormatConfig) -> Row:
    """Returns a settled row with nothing but the hash of its pictures: wherever they are now."""
    return of_pictures(row, config, lambda value: {HASH: value[HASH]})


def _changed(
    row: Row, config: FormatConfig, of_value: Callable[[Any], Any], of_part: Callable[[Any], Any]
) -> Row:
    """Returns a row with what may be a picture changed: in its field, and parts of messages."""
    field = config.image_field
    if field is not None and (value := row.get(field)) is not None:
        row = row | {
            field: list(map(of_value, value)) if isinstance(value, list) else of_value(value)
        }
    field = config.messages_field
    if field is not None and isinstance(row.get(field), list):
        row = row | {field: [_changed_message(message, of_part) for message in row[field]]}
    return row


def _changed_message(message: Any, of_part: Callable[[Any], Any]) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return message | {"content": list(map(of_part, message["content"]))}


def _settled_part(part: Any, settled: Callable[[Any], Any]) -> Any:
    """Returns a part of a message's content: of an image, {"type": "image", "image": ...}."""
    if not isinstance(part, dict) or part.get("type") not in ("image", "image_url"):
        return part
    for name in ("image", "image_url", "url", "path", "base64", "bytes"):
        value = part.get(name)
        if value is not None:
            if name == "image_url" and isinstance(value, dict):
                value = value.get("url")
            return {"type": "image", "image": settled(value)}
    return {"type": "image"}  # it is in the image field


def pictures_of(row: Row, source: str, config: FormatConfig) -> tuple[Picture, ...]:
    """Returns the pictures of a settled row, in the order in which its text names them.

    Raises:
        RowError: parts of messages hold none, and there are not as many in the image field.
    """
    listed = row.get(config.image_field) if config.image_field is not None else None
    fields = listed if isinstance(listed, list) else [] if listed is None else [listed]
    images = [Picture.from_json(value) for value in fields]
    messages = row.get(config.messages_field) if config.messages_field is not None else None
    parts = [
        part.get("image")
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
        if isinstance(part, dict) and part.get("type") == "image"
    ]
    if not any(parts):
        return tuple(images)
    if not all(parts) or images:
        raise RowError(
            source,
            "some images are in the messages and some are not: put all of them there, or all into "
            "an image field",
        )
    return tuple(Picture.from_json(part) for part in parts if part)

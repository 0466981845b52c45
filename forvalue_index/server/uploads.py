"""Rows and images that a client sends: bounded, and never the name of a file of this machine.

An image of a request is a data: URI or base64; `build` decodes it as it does one of a data file.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from forvalue_index.config import FormatConfig
from forvalue_index.data.image_forms import Known
from forvalue_index.errors import RowError
from forvalue_index.picture import HASH
from forvalue_index.records import Row
from forvalue_index.server.problem import HttpError
from forvalue_index.server.schema import LONGEST_TEXT, MOST_IMAGES

NAMES = ("image", "image_url", "url", "path", "base64", "bytes")  # of what a part's image is


def received(row: Row, format: FormatConfig, place: str) -> Row:
    """Returns a row of a client with its images decoded once, in the form in which rows keep them.

    Args:
        row: as it came.
        format: of the index.
        place: where the row stands in the request, for messages.

    Raises:
        HttpError: it is too long, has too many images, or one of them is not in the request.
        RowError: an image cannot be decoded.
    """
    found = with_sent_images(row, format, place)
    require_length(_texts(found), place)
    return found


def with_sent_images(
    row: Row, format: FormatConfig, place: str, stored: Mapping[str, Row] = MappingProxyType({})
) -> Row:
    """Returns a row of a client with its images in the form in which rows keep them.

    Args:
        row: as it came.
        format: of the index.
        place: where the row stands in the request, for messages.
        stored: images that the index has, by hash, which the row may name instead.

    Raises:
        HttpError: there are too many images, or one is neither in the request nor in `stored`.
        RowError: an image cannot be decoded.
    """
    count, known = 0, Known()

    def picture(value: Any) -> Any:
        nonlocal count
        if isinstance(value, dict) and value.get(HASH) in stored:
            return stored[value[HASH]]
        count += 1
        if count > MOST_IMAGES:
            raise HttpError(413, f"{place} has more than {MOST_IMAGES} images: send fewer")
        return known.embedded(image_bytes(value, place), None, place).to_json()

    field, found = format.image_field, dict(row)
    if field is not None and (value := row.get(field)) is not None:
        found[field] = [*map(picture, value)] if isinstance(value, list) else picture(value)
    for name, value in row.items():  # whichever of them is read as a conversation
        if name != field and isinstance(value, list):
            found[name] = [_with_images(message, picture) for message in value]
    return found


def image_bytes(value: Any, place: str) -> bytes:
    """Returns the bytes of an image that is a data: URI, base64, or an object with these "bytes".

    Raises:
        HttpError: it is something else, such as a path or a URL.
    """
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, str):
        text = value
        if value.startswith("data:"):
            head, _, text = value.partition(",")
            text = text if head.endswith(";base64") else ""
        try:
            if data := base64.b64decode(text, validate=True):
                return data
        except (binascii.Error, ValueError):
            pass
    raise HttpError(
        422,
        f"an image of {place} is not in the request: send it as base64 or as a data: URI, for the "
        "server reads no files and fetches nothing",
    )


def require_length(texts: Sequence[str | None], place: str = "the request") -> None:
    """Checks how long texts are together.

    Raises:
        HttpError: too long.
    """
    n = sum(len(text) for text in texts if text is not None)
    if n > LONGEST_TEXT:
        raise HttpError(
            413,
            f"the texts of {place} have {n:,} characters, and at most {LONGEST_TEXT:,} are read: "
            "cut them",
        )


def all_received(rows: Sequence[Row], format: FormatConfig) -> list[Row]:
    """Returns the rows of a client; see `received`."""
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(received(row, format, f"row {number}"))
        except RowError as error:
            raise HttpError(422, str(error)) from None
    return found


def _with_images(message: Any, picture: Callable[[Any], Any]) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return message | {"content": [_part(part, picture) for part in message["content"]]}


def _part(part: Any, picture: Callable[[Any], Any]) -> Any:
    """Returns a part of a message's content; an image's with the image under "image"."""
    if not isinstance(part, dict) or part.get("type") not in ("image", "image_url"):
        return part
    for name in NAMES:
        value = part.get(name)
        if value is not None:
            if name == "image_url" and isinstance(value, dict):
                value = value.get("url")
            return {"type": "image", "image": picture(value)}
    return {"type": "image"}


def _texts(value: Any) -> list[str]:
    """Returns all texts in JSON values, but for those of images."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        if HASH in value:
            return []
        return [text for name, item in value.items() for text in (name, *_texts(item))]
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []

"""Images of rows: found wherever the common conventions put them, checked, named by their hash.

    row as it was read -> row that keeps each picture as JSON (see `pictures.py`)

And, once a row is text, the placeholders in it become the tokens that its pictures take. Knows no
model: what stands for a picture in the text is asked of a `Vision`.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from forvalue_index.config import FormatConfig
from forvalue_index.data.rows import Outcome, Rows
from forvalue_index.data.tokens import Rendered, Span
from forvalue_index.errors import RowError
from forvalue_index.pictures import HASH, Picture, read
from forvalue_index.records import Row

MARK = "<image>"
"""What stands for a picture in the text of many data sets, whatever the model's own word is."""

_ENDING = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?)$", re.IGNORECASE)

REMOTE_BYTES = 64 << 20  # of one picture, at most
REMOTE_SECONDS = 30


class Vision(Protocol):
    """What is asked of a model that reads pictures."""

    placeholder: str  # what stands for one picture in a text, before it is expanded
    insertion: str  # what a prompt gets for a picture that it has no placeholder for

    def expansion(self, size: tuple[int, int]) -> str:
        """Returns the text of the tokens that a picture of a width and height takes."""

    def special_ids(self, size: tuple[int, int]) -> frozenset[int]:
        """Returns the ids that stand for a picture of a size, and those that frame it."""


def with_images(rows: Rows, config: FormatConfig) -> Rows:
    """Returns rows that keep their images as JSON (`settle`), or the rows if they can have none."""
    if config.image_field is None and config.messages_field is None:
        return rows
    return ImageRows(rows, config)


class ImageRows(Rows):
    """Rows whose images are settled; decoded as well until all rows have been read once."""

    def __init__(self, rows: Rows, config: FormatConfig) -> None:
        self._rows = rows
        self._config = config
        self._checked = False

    def outcomes(self) -> Iterator[Outcome]:
        """Yields the rows; one with an image that cannot be used has an error in its place."""
        for place, row in self._rows.outcomes():
            if isinstance(row, RowError):
                yield place, row
                continue
            try:
                yield (
                    place,
                    settle(
                        row,
                        place,
                        self._config,
                        check=not self._checked,
                        allow_remote=self._rows.allow_remote,
                    ),
                )
            except RowError as error:
                yield place, error
        self._checked = True


def settle(
    row: Row,
    source: str,
    config: FormatConfig,
    *,
    check: bool = True,
    allow_remote: bool = False,
) -> Row:
    """Returns a row that keeps its images as JSON; one without images as it is.

    Args:
        row: its images are in `image_field`, or parts of the messages' contents. Each is a path
            (from the data file's folder or the working directory), bytes, base64, a data: URI, an
            object with "bytes" or "path", or a URL.
        source: where the row stands.
        config: which fields there are.
        check: decode them, so that what is broken is known before the first forward pass.
        allow_remote: fetch URLs. What was fetched is kept in the row.

    Raises:
        RowError: an image is not there, is not allowed, or does not decode.
    """

    def settled(value: Any) -> dict[str, Any]:
        picture = _picture(value, source, allow_remote)
        if check:
            picture.pixels(source)
        return picture.to_json()

    if config.image_field is not None and (value := row.get(config.image_field)) is not None:
        images = [settled(v) for v in value] if isinstance(value, list) else settled(value)
        row = row | {config.image_field: images}
    field = config.messages_field
    if field is not None and isinstance(row.get(field), list):
        row = row | {field: [_settled_message(m, settled) for m in row[field]]}
    return row


def _settled_message(message: Any, settled: Any) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return message | {"content": [_settled_part(part, settled) for part in message["content"]]}


def _settled_part(part: Any, settled: Any) -> Any:
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


def with_parts(messages: Sequence[dict[str, Any]], images: int) -> list[dict[str, Any]]:
    """Returns messages whose contents are lists of parts, as chat templates of such models ask.

    `<image>` in a text becomes a part; where nothing stands for the row's images, they come first
    in the first message of the user.
    """
    result = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            content = _parts(content) if images else [{"type": "text", "text": content}]
        result.append(message | {"content": content})
    named = [p for m in result for p in m["content"] if p.get("type") == "image"]
    if images and not named:
        asking = [m for m in result if m["role"] == "user"] or result
        asking[0]["content"] = [{"type": "image"}] * images + asking[0]["content"]
    return result


def _parts(text: str) -> list[dict[str, Any]]:
    pieces = re.split(f"({MARK}\n?)", text)
    return [
        {"type": "text", "text": piece} if i % 2 == 0 else {"type": "image"}
        for i, piece in enumerate(pieces)
        if piece
    ]


def with_placeholders(rendered: Rendered, images: int, vision: Vision) -> Rendered:
    """Returns a text that names its images in the model's way.

    `<image>` does as well as the model's own placeholder, and images that nothing stands for come
    before the text.
    """
    if not images or vision.placeholder in rendered.text:
        return rendered
    if rendered.text.count(MARK) == images:
        return _replaced(rendered, MARK, [vision.insertion] * images)
    inserted = vision.insertion * images
    spans = [(start + len(inserted), end + len(inserted)) for start, end in rendered.spans]
    return Rendered(inserted + rendered.text, spans)


def expand(
    rendered: Rendered, pictures: Sequence[Picture], vision: Vision, source: str
) -> Rendered:
    """Returns the text with the tokens of its pictures in the place of the placeholders.

    They are in no span: a model does not say them.

    Raises:
        RowError: there are not as many placeholders as pictures.
    """
    found = rendered.text.count(vision.placeholder)
    if found != len(pictures):
        raise RowError(
            source,
            f"the text holds {vision.placeholder!r} {found} times, but the row has "
            f"{len(pictures)} images",
        )
    texts = [vision.expansion(picture.size) for picture in pictures]
    return _replaced(rendered, vision.placeholder, texts)


def _replaced(rendered: Rendered, mark: str, texts: Sequence[str]) -> Rendered:
    """Returns a text with the n-th mark replaced by the n-th of `texts`, in no span."""
    pieces = rendered.text.split(mark)
    result, spans, old = "", [], 0
    for number, piece in enumerate(pieces):
        shift = len(result) - old
        spans += [(s + shift, e + shift) for s, e in _within(rendered.spans, old, old + len(piece))]
        result += piece + (texts[number] if number < len(texts) else "")
        old += len(piece) + len(mark)
    return Rendered(result, spans)


def _within(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    """Returns the parts of spans that are between `start` and `end`."""
    parts = [(max(a, start), min(b, end)) for a, b in spans]
    return [(a, b) for a, b in parts if a < b]


def looks_like_image(value: Any) -> bool:
    """Returns whether a value is an image in one of its forms, or a list of them, by its looks."""
    if isinstance(value, list):
        return bool(value) and looks_like_image(value[0])
    if isinstance(value, dict):
        return (
            HASH in value
            or isinstance(value.get("bytes"), str | bytes)
            or (isinstance(value.get("path"), str) and looks_like_image(value["path"]))
        )
    if isinstance(value, str):
        return value.startswith("data:image/") or _ENDING.search(value) is not None
    return isinstance(value, bytes) or _is_decoded(value)


def _is_decoded(value: Any) -> bool:
    """Returns whether a value is an image of Pillow."""
    return hasattr(value, "save") and hasattr(value, "getbands")


def _picture(value: Any, source: str, allow_remote: bool) -> Picture:
    """Returns an image in any of its forms as a picture."""
    if isinstance(value, dict):
        return _of_object(value, source, allow_remote)
    if isinstance(value, str):
        return _of_text(value, source, allow_remote)
    if isinstance(value, bytes | bytearray | memoryview):
        return Picture.of(bytes(value), None, source, embedded=True)
    if _is_decoded(value):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return Picture.of(buffer.getvalue(), None, source, embedded=True)
    raise RowError(source, f"an image must be a path, bytes or base64, not {type(value).__name__}")


def _of_object(value: dict[str, Any], source: str, allow_remote: bool) -> Picture:
    data, path = value.get("bytes"), value.get("path")
    if data is not None:
        data = _base64(data) if isinstance(data, str) else bytes(data)
        if data is None:
            raise RowError(source, 'the "bytes" of an image are text, but not base64')
        return Picture.of(data, path, source, embedded=True)
    place = path if path is not None else value.get("url")
    if not isinstance(place, str):
        raise RowError(source, 'an image object has neither "bytes" nor "path"')
    picture = _of_text(place, source, allow_remote)
    if value.get(HASH, picture.digest) != picture.digest:
        raise RowError(
            source, f"image {place} is not the image of the row: its hash differs; restore it"
        )
    return picture


def _of_text(value: str, source: str, allow_remote: bool) -> Picture:
    if value.startswith("data:"):
        data = _base64(value.partition(",")[2]) if ";base64," in value[:200] else None
        if data is None:
            raise RowError(source, "the data: URI of an image holds no base64")
        return Picture.of(data, None, source, embedded=True)
    if re.match(r"https?://", value):
        if not allow_remote:
            raise RowError(
                source, f"image {value} is a URL: pass --allow-remote to fetch images, or save it"
            )
        return Picture.of(_fetch(value, source), value, source, embedded=True)
    path = _found(value.removeprefix("file://"), source)
    if path is not None:
        return Picture.of(read(path, source), str(path), source, embedded=False)
    data = _base64(value) if len(value) >= 64 else None
    if data is not None:
        return Picture.of(data, None, source, embedded=True)
    shown = value if len(value) < 200 else value[:200] + "…"
    if Path(shown).is_absolute():
        raise RowError(source, f"image {shown} does not exist")
    raise RowError(
        source, f"image {shown} is not in the data file's folder, nor in the working directory"
    )


def _found(name: str, source: str) -> Path | None:
    """Returns the absolute path of a file that is named in a row."""
    folder = Path(source.rpartition(":")[0]).parent
    for path in (folder / name, Path(name)):
        try:
            if path.is_file():
                return path.resolve()
        except (OSError, ValueError):  # a name that no file can have, such as base64
            return None
    return None


def _base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


@lru_cache(maxsize=64)
def _fetch(url: str, source: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=REMOTE_SECONDS) as answer:
            data: bytes = answer.read(REMOTE_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise RowError(source, f"image {url} cannot be fetched ({error})") from None
    if len(data) > REMOTE_BYTES:
        raise RowError(source, f"image {url} is larger than {REMOTE_BYTES >> 20} MiB")
    return data

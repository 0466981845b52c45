"""Images of rows: found wherever the common conventions put them, checked, named by their hash.

    row as it was read -> row that keeps each picture as JSON (see `picture.py`)

And, once a row is text, the placeholders in it become the tokens that its pictures take. Knows no
model: what stands for a picture in the text is asked of a `Vision`.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from forvalue_index.config import FormatConfig
from forvalue_index.data.remote import fetch
from forvalue_index.data.rows import Outcome, Rows
from forvalue_index.data.tokens import Rendered, Span
from forvalue_index.errors import RowError, brief
from forvalue_index.picture import (
    HASH,
    LARGEST_BYTES,
    LARGEST_PIXELS,
    Picture,
    digest_of,
    read,
    require_size,
)
from forvalue_index.records import Row
from forvalue_index.system.temporary import Spool

MARK = "<image>"
"""What stands for a picture in the text of many data sets, whatever the model's own word is."""

_ENDING = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?)$", re.IGNORECASE)

LARGEST_ROW = 4 * LARGEST_BYTES
"""Bytes of all the pictures that one row holds itself, which a database has to keep."""


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


class Known:
    """What was found out about images when they were first read, which is what counts.

    So none is fetched or decoded a second time; one that has changed since is noticed by its hash
    when its pixels are needed.
    """

    def __init__(self) -> None:
        self._sizes: dict[str, tuple[int, int]] = {}  # by hash, of those that came in their row
        self._files: dict[str, Picture] = {}  # by path
        self._failed: dict[str, str] = {}  # URL -> why it was not fetched
        self._fetched: Spool | None = None  # by URL

    def embedded(self, data: bytes, path: str | None, source: str) -> Picture:
        """Returns the picture in `data`, which its row keeps."""
        require_size(len(data), path, source)
        digest = digest_of(data)
        if digest not in self._sizes:
            self._sizes[digest] = Picture.of(data, path, source, embedded=True).size
        return Picture(digest, self._sizes[digest], path, data)

    def file(self, path: Path, source: str) -> Picture:
        """Returns the picture in a file."""
        name = str(path)
        if name not in self._files:
            self._files[name] = Picture.of(read(path, source), name, source, embedded=False)
        return self._files[name]

    def remote(self, url: str, source: str) -> Picture:
        """Returns the picture at a URL, which its row keeps."""
        if url in self._failed:
            raise RowError(source, self._failed[url])
        self._fetched = self._fetched or Spool("what was fetched")
        if url not in self._fetched:
            try:
                self._fetched.put(url, fetch(url, source))
            except RowError as error:
                self._failed[url] = error.reason
                raise
        return self.embedded(self._fetched.get(url), url, source)


class ImageRows(Rows):
    """Rows whose images are settled, as they were when they were first read."""

    def __init__(self, rows: Rows, config: FormatConfig) -> None:
        self._rows = rows
        self._config = config
        self._known = Known()

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
                        known=self._known,
                        allow_remote=self._rows.allow_remote,
                    ),
                )
            except RowError as error:
                yield place, error


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
        picture = _picture(value, source, images, allow_remote)
        n_bytes += len(picture.data or b"")
        if n_bytes > LARGEST_ROW:
            raise RowError(source, f"its images are larger than {LARGEST_ROW >> 20} MiB together")
        return picture.to_json()

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
        # A template sees that there is an image, and needs nothing of it.
        content = [
            part | {"image": part["image"].get(HASH)}
            if isinstance(part.get("image"), dict)
            else part
            for part in content
        ]
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
    try:
        texts = [vision.expansion(picture.size) for picture in pictures]
    except Exception as error:  # the code of a model's processor raises nearly anything
        sizes = ", ".join(f"{width} x {height}" for width, height in (p.size for p in pictures))
        raise RowError(
            source, f"the model's processor takes no image of {sizes} ({brief(error)})"
        ) from None
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
            isinstance(value.get(HASH), str)
            or isinstance(value.get("bytes"), str | bytes)
            or (isinstance(value.get("path"), str) and looks_like_image(value["path"]))
        )
    if isinstance(value, str):
        return value.startswith("data:image/") or _ENDING.search(value) is not None
    return isinstance(value, bytes) or _is_decoded(value)


def _is_decoded(value: Any) -> bool:
    """Returns whether a value is an image of Pillow."""
    return hasattr(value, "save") and hasattr(value, "getbands")


def _picture(value: Any, source: str, known: Known, allow_remote: bool) -> Picture:
    """Returns an image in any of its forms as a picture."""
    if isinstance(value, dict):
        return _of_object(value, source, known, allow_remote)
    if isinstance(value, str):
        return _of_text(value, source, known, allow_remote)
    if isinstance(value, bytes | bytearray | memoryview):
        return known.embedded(bytes(value), None, source)
    if _is_decoded(value):
        return known.embedded(_as_png(value, source), None, source)
    raise RowError(source, f"an image must be a path, bytes or base64, not {type(value).__name__}")


def _as_png(image: Any, source: str) -> bytes:
    """Returns an image of Pillow as a file."""
    width, height = image.size
    if width * height > LARGEST_PIXELS:
        raise RowError(
            source, f"an image of {width} x {height} pixels has more than {LARGEST_PIXELS:,}"
        )
    buffer = io.BytesIO()
    try:
        image.save(buffer, "PNG")
    except Exception as error:  # Pillow's encoders raise nearly anything
        raise RowError(source, f"an image cannot be stored as PNG ({brief(error)})") from None
    return buffer.getvalue()


def _of_object(value: dict[str, Any], source: str, known: Known, allow_remote: bool) -> Picture:
    path = value.get("path")
    if value.get("bytes") is not None:
        data = _of_bytes(value["bytes"], source)
        return known.embedded(data, path if isinstance(path, str) else None, source)
    place = path if path is not None else value.get("url")
    if not isinstance(place, str):
        raise RowError(source, 'an image object has neither "bytes" nor "path"')
    picture = _of_text(place, source, known, allow_remote)
    if value.get(HASH, picture.digest) != picture.digest:
        raise RowError(
            source,
            f"image {brief(place)} is not the image of the row: its hash differs; restore it",
        )
    return picture


def _of_bytes(value: Any, source: str) -> bytes:
    """Returns what stands under "bytes": itself, base64, or a list of the numbers of bytes."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        data = _base64(value, source)
        if data is None:
            raise RowError(source, 'the "bytes" of an image are text, but not base64')
        return data
    if isinstance(value, list):
        require_size(len(value), None, source)
        if all(type(number) is int and 0 <= number < 256 for number in value):
            return bytes(value)
        raise RowError(source, 'the "bytes" of an image are a list, but not of numbers below 256')
    raise RowError(source, f'the "bytes" of an image are {type(value).__name__}, not base64')


def _of_text(value: str, source: str, known: Known, allow_remote: bool) -> Picture:
    if value.startswith("data:"):
        data = _base64(value.partition(",")[2], source) if ";base64," in value[:200] else None
        if data is None:
            raise RowError(source, "the data: URI of an image holds no base64")
        return known.embedded(data, None, source)
    if re.match(r"https?://", value):
        if not allow_remote:
            raise RowError(
                source,
                f"image {brief(value)} is a URL: pass --allow-remote to fetch images, or save it",
            )
        return known.remote(value, source)
    path = _found(value.removeprefix("file://"), source)
    if path is not None:
        return known.file(path, source)
    data = _base64(value, source) if len(value) >= 64 else None
    if data is not None:
        return known.embedded(data, None, source)
    if value.startswith("/"):
        raise RowError(source, f"image {brief(value)} does not exist")
    raise RowError(
        source,
        f"image {brief(value)} is not in the data file's folder, nor in the working directory",
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


def _base64(text: str, source: str) -> bytes | None:
    require_size(len(text) * 3 // 4 - 2, None, source)  # before it is unpacked; it may be padded
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None

"""The forms in which a row may hold an image: a path, bytes, base64, a URL, an object, Pillow's."""

from __future__ import annotations

import base64
import binascii
import io
import re
from pathlib import Path
from typing import Any

from forvalue_index.errors import RowError, brief
from forvalue_index.picture import (
    HASH,
    LARGEST_PIXELS,
    Picture,
    digest_of,
    read,
    require_named,
    require_size,
)
from forvalue_index.system.image_folders import name_folder
from forvalue_index.system.temporary import Spool

_ENDING = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?)$", re.IGNORECASE)

_ELSEWHERE = ("http://", "https://", "data:")


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
        from forvalue_index.data.remote import fetch  # nothing else needs a network's libraries

        self._fetched = self._fetched or Spool("what was fetched")
        if url not in self._fetched:
            try:
                self._fetched.put(url, fetch(url, source))
            except RowError as error:
                self._failed[url] = error.reason
                raise
        return self.embedded(self._fetched.get(url), url, source)


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


def picture(value: Any, source: str, known: Known, allow_remote: bool) -> Picture:
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
            source,
            f"an image of {width} x {height} pixels has more than {LARGEST_PIXELS:,}: "
            "make it smaller",
        )
    buffer = io.BytesIO()
    try:
        storable = image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "HSV") else image
        storable.save(buffer, "PNG")
    except Exception as error:  # Pillow's encoders raise nearly anything
        raise RowError(
            source, f"an image cannot be stored as PNG ({brief(error)}): convert it to RGB"
        ) from None
    return buffer.getvalue()


def _of_object(value: dict[str, Any], source: str, known: Known, allow_remote: bool) -> Picture:
    path = value.get("path")
    if value.get("bytes") is not None:
        data = _of_bytes(value["bytes"], source)
        return known.embedded(data, path if isinstance(path, str) else None, source)
    place = path if path is not None else value.get("url")
    if not isinstance(place, str):
        raise RowError(source, 'an image object has neither "bytes" nor "path"')
    if HASH in value and not place.startswith(_ELSEWHERE):  # it has been in an index
        require_named(place, source)
        picture = known.file(Path(place).resolve(), source)
    else:
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
        found = known.file(path, source)
        name_folder(path.parent)
        return found
    data = _base64(value, source) if len(value) >= 64 else None
    if data is not None:
        return known.embedded(data, None, source)
    if value.startswith("/"):
        raise RowError(
            source, f"image {brief(value)} does not exist: put it there, or correct the path"
        )
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

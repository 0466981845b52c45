"""A picture of a row: what its row keeps of it, its bytes as they came, and its pixels.

A row keeps a picture as JSON: `image_blake2b`, the hash of its bytes, by which it counts; `size`,
width and height; and `path`, where its file is, or `bytes`, in base64, if it came inside the row.
"""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forvalue_index.errors import DependencyError, RowError
from forvalue_index.files import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

HASH = "image_blake2b"
"""The field by which a picture is told from other objects in a row."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, compressed as it came. With `path` alone, its bytes are read when needed."""

    digest: str  # of the bytes, 32 hex digits
    size: tuple[int, int]  # width, height, in pixels
    path: str | None
    data: bytes | None

    @classmethod
    def of(cls, data: bytes, path: str | None, source: str, *, embedded: bool) -> Picture:
        """Returns the picture in `data`; `embedded`: not to be read from `path` again.

        Raises:
            RowError: it is no picture.
        """
        image = _open(data, _name(path), source)
        return cls(_digest(data), _turned(image), path, data if embedded else None)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Picture:
        """Returns the picture that `to_json` wrote."""
        data = value.get("bytes")
        return cls(
            digest=value[HASH],
            size=(value["size"][0], value["size"][1]),
            path=value.get("path"),
            data=None if data is None else base64.b64decode(data),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns what a row keeps of it."""
        value: dict[str, Any] = {HASH: self.digest, "size": list(self.size)}
        if self.path is not None:
            value["path"] = self.path
        if self.data is not None:
            value["bytes"] = base64.b64encode(self.data).decode()
        return value

    def pixels(self, source: str) -> Image:
        """Returns the decoded picture, upright, in RGB.

        Raises:
            RowError: its file is gone or was changed, or cannot be decoded.
        """
        from PIL import ImageOps

        data = self.data
        if data is None:
            data = read(Path(str(self.path)), source)
            if _digest(data) != self.digest:
                raise RowError(
                    source,
                    f"image {self.path} has changed since it was indexed (its hash is "
                    f"{_digest(data)}, was {self.digest}): restore it, or replace the row",
                )
        image = _open(data, _name(self.path), source)
        try:
            image = ImageOps.exif_transpose(image)
            # A palette with transparency has no straight way to RGB.
            return image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")
        except Exception as error:  # Pillow's decoders raise nearly anything
            raise _undecodable(_name(self.path), source, error) from None


def read(path: Path, source: str) -> bytes:
    """Returns the bytes of a picture's file.

    Raises:
        RowError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise RowError(source, f"image {path} cannot be read ({error.strerror})") from None


def bare(value: Any) -> Any:
    """Returns a JSON value with nothing but the hash of its pictures: wherever they are now."""
    if isinstance(value, dict):
        if HASH in value:
            return {HASH: value[HASH]}
        return {name: bare(item) for name, item in value.items()}
    return [bare(item) for item in value] if isinstance(value, list) else value


def pictures_in(value: Any) -> list[Picture]:
    """Returns the pictures in a JSON value, in its order."""
    if isinstance(value, dict):
        if HASH in value:
            return [Picture.from_json(value)]
        value = list(value.values())
    return [p for item in value for p in pictures_in(item)] if isinstance(value, list) else []


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _name(path: str | None) -> str:
    return "of the row" if path is None else path


def _open(data: bytes, name: str, source: str) -> Image:
    try:
        import PIL.Image
    except ImportError:
        raise DependencyError('images need Pillow: pip install "forvalue-index[vision]"') from None
    try:
        return PIL.Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow's decoders raise nearly anything
        raise _undecodable(name, source, error) from None


def _turned(image: Image) -> tuple[int, int]:
    """Returns width and height as they are once the picture is upright."""
    width, height = image.size
    try:
        turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 lie on their side
    except Exception:  # damaged metadata are no reason to refuse a picture
        turned = False
    return (height, width) if turned else (width, height)


def _undecodable(name: str, source: str, error: Exception) -> RowError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return RowError(source, f"image {name} cannot be decoded ({first})")

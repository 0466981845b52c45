"""A picture of a row: what its row keeps of it, its bytes as they came, and its pixels.

A row keeps a picture as JSON: `image_blake2b`, the hash of its bytes, by which it counts; `size`,
width and height; and `path`, where its file is, or `bytes`, in base64, if it came inside the row.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forvalue_index.errors import CorruptIndexError, DependencyError, RowError, brief
from forvalue_index.system.files import open_regular
from forvalue_index.system.image_folders import VARIABLE, is_named

if TYPE_CHECKING:
    from PIL.Image import Image

HASH = "image_blake2b"
"""The field of a picture's hash. An object that has it is a picture only where the format has one
(`data/images.py`); anywhere else it is data like any other."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded: kinds of pixels, none that another program draws (EPS starts Ghostscript)."""

LARGEST_BYTES = 64 << 20  # of one picture, compressed
LARGEST_PIXELS = (1 << 28) // 3  # 256 MiB in RGB; above it, Pillow warns as well


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, compressed as it came. With `path` alone, its bytes are read when needed."""

    digest: str  # of the bytes, 32 hex digits
    size: tuple[int, int]  # width, height, in pixels
    path: str | None
    data: bytes | None

    @classmethod
    def of(cls, data: bytes, path: str | None, source: str, *, embedded: bool) -> Picture:
        """Returns the picture in `data`, decoded once; `embedded`: not to be read from `path`.

        Raises:
            RowError: it is no picture, or too large a one.
        """
        pixels = _decoded(data, _name(path), source)
        return cls(digest_of(data), pixels.size, path, data if embedded else None)

    @classmethod
    def from_json(cls, value: Any) -> Picture:
        """Returns the picture that `to_json` wrote.

        Raises:
            CorruptIndexError: it wrote something else.
        """
        try:
            digest, (width, height) = value[HASH], value["size"]
            path, data = value.get("path"), value.get("bytes")
            if not (
                type(digest) is str
                and type(width) is type(height) is int
                and min(width, height) > 0
                and width * height <= LARGEST_PIXELS
                and isinstance(path, str | None)
            ):
                raise ValueError
            data = None if data is None else base64.b64decode(data)
        except (AttributeError, KeyError, TypeError, ValueError, binascii.Error):
            raise CorruptIndexError(
                "an image of a row is not kept as it was: restore the catalogue from a copy, or "
                "build again"
            ) from None
        return cls(digest, (width, height), path, data)

    def to_json(self) -> dict[str, Any]:
        """Returns what a row keeps of it."""
        value: dict[str, Any] = {HASH: self.digest, "size": list(self.size)}
        if self.path is not None:
            value["path"] = self.path
        if self.data is not None:
            value["bytes"] = base64.b64encode(self.data).decode()
        return value

    def require_named(self, source: str) -> None:
        """Checks that its bytes may be read: they are in its row, or in a folder that is named.

        Comes before `pixels`: a row of an index may name any file.

        Raises:
            RowError: they may not.
        """
        if self.data is None:
            require_named(str(self.path), source)

    def pixels(self, source: str) -> Image:
        """Returns the decoded picture, upright, in RGB.

        Raises:
            RowError: its file is gone or was changed, or cannot be decoded.
        """
        data = self.data
        if data is None:
            data = read(Path(str(self.path)), source)
            if digest_of(data) != self.digest:
                raise RowError(
                    source,
                    f"image {_name(self.path)} has changed since its row was first read (its hash "
                    f"is {digest_of(data)}, was {self.digest}): restore it, or replace the row",
                )
        return _decoded(data, _name(self.path), source)


def require_named(path: str, source: str) -> None:
    """Checks that a file which an index names as an image may be read.

    Raises:
        RowError: it is in no folder that this user has named.
    """
    if not is_named(Path(path)):
        raise RowError(
            source,
            f"image {brief(path)} is outside of the index, and no data that you gave on this "
            f"machine had images in its folder, so it was not read: if you know the folder, set "
            f"{VARIABLE} to it",
        )


def read(path: Path, source: str) -> bytes:
    """Returns the bytes of a picture's file.

    Raises:
        RowError: it cannot be read, is no file, or is too large.
    """
    try:
        with open_regular(path) as file:
            data = file.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RowError(source, f"image {brief(path)} cannot be read ({brief(reason)})") from None
    require_size(len(data), str(path), source)
    return data


def require_size(n_bytes: int, path: str | None, source: str) -> None:
    """Checks how many bytes a picture has, before they are unpacked.

    Raises:
        RowError: too many.
    """
    if n_bytes > LARGEST_BYTES:
        raise RowError(source, f"image {_name(path)} is larger than {LARGEST_BYTES >> 20} MiB")


def digest_of(data: bytes) -> str:
    """Returns the hash by which a picture counts, 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _name(path: str | None) -> str:
    return "of the row" if path is None else brief(path)


def _decoded(data: bytes, name: str, source: str) -> Image:
    """Returns the picture in `data`, upright, in RGB.

    Raises:
        RowError: it is none, or too large a one.
    """
    try:
        import PIL.Image
        from PIL import ImageOps
    except ImportError:
        raise DependencyError('images need Pillow: pip install "forvalue-index[vision]"') from None
    try:
        image: Image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header
        width, height = image.size
        if width * height > LARGEST_PIXELS:
            raise ValueError(f"{width} x {height} pixels are more than {LARGEST_PIXELS:,}")
        image = ImageOps.exif_transpose(image)
        # A palette with transparency has no straight way to RGB.
        return image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")
    except PIL.UnidentifiedImageError:
        reason = f"it is damaged, or none of {', '.join(FORMATS)}"
    except Exception as error:  # Pillow's decoders raise nearly anything
        reason = brief(error)
    raise RowError(source, f"image {name} cannot be decoded ({reason})")

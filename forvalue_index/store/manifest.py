"""A sharded index on disk: what says how many shards there are, and which one a key belongs to.

    DIR/shards.json               the manifest: shards, those attached, settings, fingerprint
    DIR/vectoriser-*.safetensors  what was learned, once for all shards
    DIR/shards/0003/              shard 3, an ordinary index
    DIR/shards-1/                 the same, after the rows were dealt out anew once (`reshard`)

No path stands in the manifest: those of the shards follow from numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forvalue_index.errors import CorruptIndexError, InputError, brief
from forvalue_index.system.files import atomic_write, foreign, open_own

MANIFEST = "shards.json"
SHARDS = "shards"
SHARD = "shard"
"""The entry of a shard's fingerprint that says which one it is, such as "3/64"."""

MOST = 4096  # shards
_LARGEST = 2**24  # bytes of a manifest that are read
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """What all shards of an index share."""

    shards: int
    attached: tuple[int, ...]  # shards that hold rows of the index, ascending
    config: dict[str, Any]
    fingerprint: dict[str, Any]
    dealt: int = 0  # how often the rows were dealt out anew

    @property
    def missing(self) -> list[int]:
        """The shards that are not attached."""
        return sorted(set(range(self.shards)) - set(self.attached))


def is_sharded(directory: Path) -> bool:
    """Returns whether a sharded index is in `directory`."""
    return (directory / MANIFEST).is_file()


def read_manifest(directory: Path) -> Manifest:
    """Returns the manifest of a sharded index.

    Raises:
        CorruptIndexError: it cannot be read, or is not what was written.
    """
    path = directory / MANIFEST
    try:
        with open_own(path) as file:
            found = json.loads(file.read(_LARGEST))
        if found["format"] != _FORMAT:
            raise ValueError(f"its format is {found['format']}, this version reads {_FORMAT}")
        checksum = found.pop("checksum")
        if checksum != _checksum(found):
            raise ValueError(f"its checksum is {_checksum(found)}, but {checksum} was written")
        manifest = Manifest(
            found["shards"],
            tuple(found["attached"]),
            found["config"],
            found["fingerprint"],
            int(found["dealt"]),
        )
        wanted = range(manifest.shards)
        if (
            not 1 <= manifest.shards <= MOST
            or any(n not in wanted for n in manifest.attached)
            or manifest.dealt < 0
        ):
            raise ValueError(f"it names shards {manifest.attached} of {manifest.shards}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptIndexError(
            f"{path} cannot be used ({brief(error)}): restore it from a copy, or build again"
        ) from error
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest, in place of an older one.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
    """
    values = {"format": _FORMAT, **asdict(manifest)}
    values = json.loads(json.dumps(values))  # as it is read again
    with atomic_write(directory / MANIFEST, text=True) as file:
        json.dump(values | {"checksum": _checksum(values)}, file, indent=1)


def shards_folder(directory: Path, dealt: int) -> Path:
    """Returns the folder of the shards, after the rows were dealt out anew so often.

    Raises:
        CorruptIndexError: a link is in its place.
    """
    return _folder(directory / (f"{SHARDS}-{dealt}" if dealt else SHARDS))


def shard_directory(directory: Path, manifest: Manifest, number: int) -> Path:
    """Returns where a shard is.

    Raises:
        CorruptIndexError: a link is in its place.
    """
    return _folder(shards_folder(directory, manifest.dealt) / f"{number:04d}")


def _folder(path: Path) -> Path:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise CorruptIndexError(foreign(path, "folder"))
    return path


def shard_of(key: str, shards: int) -> int:
    """Returns the shard that a key belongs to: the same on every machine, at any time."""
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shards


def parse_shard(text: str) -> tuple[int, int]:
    """Returns the number of a shard and how many there are, from a text such as "3/64".

    Raises:
        InputError: it is none.
    """
    number, _, shards = text.partition("/")
    if not (number.isdecimal() and shards.isdecimal() and int(number) < int(shards) <= MOST):
        raise InputError(
            f"{text!r} is no shard: give its number, from 0, and how many there are, such as 3/64"
        )
    return int(number), int(shards)


def require_own(fingerprint: dict[str, Any], keys: Iterable[str]) -> None:
    """Checks that an index may hold rows with these keys: a shard only those that hash to it.

    Raises:
        InputError: it may not.
    """
    if SHARD not in fingerprint:
        return
    number, shards = parse_shard(fingerprint[SHARD])
    for key in keys:
        if (other := shard_of(key, shards)) != number:
            raise InputError(
                f"key {key!r} belongs to shard {other} of {shards}, and this is shard {number}: "
                "add rows to the sharded index as a whole"
            )


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

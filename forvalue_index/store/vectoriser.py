"""What the first rows taught, on disk: a file, and its hash in the fingerprint.

Knows nothing of what is in the file, which is handed over as bytes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.errors import CorruptIndexError, IndexMissingError
from forvalue_index.store.layout import storing
from forvalue_index.system.files import atomic_write, open_own, path_in


def is_fitted(catalog: Catalog) -> bool:
    """Returns whether there is a vectoriser."""
    return "vectoriser" in catalog.fingerprint


def dim_of(catalog: Catalog) -> int:
    """Returns the length of a stored vector; 0 as long as nothing was added."""
    return int(catalog.fingerprint.get("dim", 0))


def vectoriser_file(directory: Path, catalog: Catalog) -> Path:
    """Returns the file of the vectoriser that counts.

    Raises:
        CorruptIndexError: it is no file of `directory`.
    """
    return _file(directory, catalog.fingerprint["vectoriser"])


def write_vectoriser(
    directory: Path, catalog: Catalog, data: bytes, figures: dict[str, Any]
) -> None:
    """Keeps what the first rows taught: a file, then its hash and `figures` in the fingerprint.

    Until the second step the file counts for nothing, and the next attempt replaces it.

    Raises:
        StorageError: the disk is full.
        FingerprintError: there are vectors already, made with another one.
    """
    name = _hash(data)
    with storing(directory), atomic_write(_file(directory, name)) as file:
        file.write(data)
    catalog.set_fingerprint(catalog.fingerprint | {"vectoriser": name} | figures)


def read_vectoriser(directory: Path, catalog: Catalog) -> bytes:
    """Returns what was handed to `write_vectoriser`.

    Raises:
        IndexMissingError: nothing was: the index is empty.
        CorruptIndexError: the file is not what was committed.
    """
    if not is_fitted(catalog):
        catalog.reload()  # another process may have added the first rows
    if not is_fitted(catalog):
        raise IndexMissingError(f"{directory} is empty: add rows with forvalue add")
    path = vectoriser_file(directory, catalog)
    try:
        with open_own(path) as file:
            data = file.read()
    except OSError:
        data = b""
    if _hash(data) != catalog.fingerprint["vectoriser"]:
        raise CorruptIndexError(
            f"{path} is {'not what was committed' if data else 'missing'}: "
            "restore it from a copy, or build again"
        )
    return data


def digest(value: dict[str, Any]) -> str:
    """Returns 64 bits of the SHA-256 of JSON values, in hex."""
    return _hash(json.dumps(value, sort_keys=True).encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _file(directory: Path, name: str) -> Path:
    return path_in(directory, f"vectoriser-{name}.safetensors", ".safetensors")

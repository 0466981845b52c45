"""Data files from elsewhere: what fsspec opens by a URL, copied to a temporary file first.

A file is read twice, and may be larger than the memory. Only who asked for it is connected.
"""

from __future__ import annotations

import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from forvalue_index.data.remote import open_url
from forvalue_index.errors import DependencyError, InputError, StorageError, brief
from forvalue_index.system.temporary import keeping

HERE = "file", "local", "memory"
"""Kinds of places that are on this machine."""

_PIECE = 2**20


def is_url(name: str) -> bool:
    """Returns whether a name is a URL such as s3://bucket/rows.jsonl, and no path."""
    kind, found, rest = name.partition("://")
    return bool(found and rest) and kind.replace("+", "").replace("-", "").isalnum()


def expand(url: str, allow_remote: bool) -> list[str]:
    """Returns the URLs of the files that a pattern stands for, sorted; the URL if it is none.

    Raises:
        InputError: no file matches, it cannot be reached, or it is remote and may not be.
        DependencyError: what reaches it is not installed.
    """
    kind = _kind(url, allow_remote)
    if kind in ("http", "https") or not any(sign in url for sign in "*?["):
        return [url]
    system, path = system_of(url)
    try:
        found = sorted(str(name) for name in system.glob(path))
    except Exception as error:  # each system has errors of its own
        raise _unreachable(url, error) from None
    if not found:
        raise InputError(f"no file matches {brief(url)}: correct the pattern")
    return [str(system.unstrip_protocol(name)) for name in found]


def fetched(url: str, allow_remote: bool, keeper: object) -> Path:
    """Returns a temporary file with what is at a URL; it is gone with `keeper`.

    Its name ends as the URL's does, which tells what kind of file it is.

    Raises:
        InputError: it cannot be read, or is remote and may not be.
        StorageError: there is no room for it.
        DependencyError: what reaches it is not installed.
    """
    kind = _kind(url, allow_remote)
    ending = "".join(Path(url.partition("?")[0]).suffixes[-2:])
    with keeping(url):
        spool = tempfile.NamedTemporaryFile(suffix=ending)  # noqa: SIM115 (as long as keeper)
    weakref.finalize(keeper, _close, spool)
    try:
        with _opened(url, kind) as source:
            while piece := source.read(_PIECE):
                with keeping(url):
                    spool.write(piece)
            if getattr(source, "length", None):  # of what a server announced
                raise ValueError("it ended too early")
    except (StorageError, DependencyError, InputError):
        raise
    except Exception as error:  # each system has errors of its own
        raise _unreachable(url, error) from None
    with keeping(url):
        spool.flush()
    return Path(spool.name)


def fetched_text(url: str, allow_remote: bool) -> str:
    """Returns the text at a URL.

    Raises:
        InputError: it cannot be read, is not UTF-8, or is remote and may not be.
        StorageError: there is no room for it.
        DependencyError: what reaches it is not installed.
    """
    keeper = _Keeper()
    try:
        return fetched(url, allow_remote, keeper).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise _unreachable(url, error) from None


class _Keeper:
    """What a temporary file is kept for."""


def _kind(url: str, allow_remote: bool) -> str:
    kind = url.partition("://")[0]
    if kind not in HERE and not allow_remote:
        raise InputError(
            f"{brief(url)} is not on this machine: give --allow-remote to fetch it (in Python, "
            "open_rows(..., allow_remote=True))"
        )
    return kind


def _opened(url: str, kind: str) -> Any:
    if kind in ("http", "https"):
        return open_url(url)
    system, path = system_of(url)
    return system.open(path, "rb")


def system_of(url: str) -> tuple[Any, str]:
    """Returns the file system of fsspec that a URL is of, and the path in it.

    Raises:
        InputError: there is none.
        DependencyError: it is not installed.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DependencyError(f"{brief(url)} needs another package: {error}") from None
    except Exception as error:  # each system has errors of its own
        raise _unreachable(url, error) from None
    return system, path


def _unreachable(url: str, error: Exception) -> InputError:
    reason = brief(error) or type(error).__name__
    return InputError(
        f"{brief(url)} cannot be read ({type(error).__name__}: {reason}): correct the address, or "
        "make sure that you may read it"
    )


def _close(file: IO[bytes]) -> None:
    """Lets go of a temporary file, also where what is left to write finds no room."""
    with suppress(OSError):
        file.close()

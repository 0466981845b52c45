"""Files: written whole or not at all, opened only where they are what they should be.

A directory, and any name in it, may come from somebody else: a link or a name must not lead out of
it, and a pipe or a device must not hang its reader. Knows nothing of what the files hold.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from forvalue_index.errors import CorruptIndexError

TEMPORARY = ".tmp"
NO_ROOM = errno.ENOSPC, errno.EDQUOT, errno.EFBIG  # what a full disk says
PIPE_SECONDS = 10  # how long a pipe that nobody has opened for writing is waited for


@contextmanager
def atomic_write(
    path: Path,
    *,
    text: bool = False,
    mode: int = 0o666,
    named: Callable[[], Path] | None = None,
) -> Iterator[IO[Any]]:
    """Yields a file to write. After the block it is at `path`, complete and safe on disk.

    If anything fails, what was at `path` stays, and nothing else is left.

    Args:
        path: a regular file, which is replaced, or not there.
        text: UTF-8, in which half a surrogate pair becomes a question mark; default: bytes.
        mode: permissions, before the umask.
        named: the path in the same folder, if it depends on what was written.

    Raises:
        OSError: the disk is full, the folder cannot be written, or `path` is a link, a folder, a
            pipe or a device.
    """
    with suppress(FileNotFoundError):
        _require_regular(path.lstat().st_mode, path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, mode)

    encoding: dict[str, Any] = {"encoding": "utf-8", "errors": "replace", "newline": ""}
    how = "x" if text else "xb"  # O_EXCL: nothing that is there is written to
    try:
        with open(temporary, how, opener=opened, **encoding if text else {}) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path if named is None else named())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` safe on disk; a new file's name is not before that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_own(path: Path) -> BufferedReader:
    """Returns a regular file of an index, opened to read.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be read, or is a link, a folder, a pipe or a device.
    """
    return _opened(path, os.O_RDONLY | os.O_NOFOLLOW)


def open_regular(path: Path) -> BufferedReader:
    """Returns a regular file, or the one that a link leads to, opened to read.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be read, or is a folder, a pipe or a device.
    """
    return _opened(path, os.O_RDONLY)


def open_input(path: Path) -> BufferedReader:
    """Returns a file that a person named, opened to read: a regular file, or a pipe.

    Raises:
        OSError: it cannot be read, is a folder or a device, or a pipe into which nobody writes.
    """
    return _open_pipe(path) if path.is_fifo() else open_regular(path)


def read_text(path: Path) -> str:
    """Returns the text of a file or pipe that a person named.

    Raises:
        OSError: as `open_input`.
        UnicodeDecodeError: it is not UTF-8.
    """
    with io.TextIOWrapper(open_input(path), encoding="utf-8") as file:
        return file.read()


def require_no_special(folder: Path) -> None:
    """Checks that reading what is in a folder cannot hang.

    Hidden folders, such as `.git` with a socket of git's in it, are passed over.

    Raises:
        OSError: a pipe, a socket or a device is in it.
    """
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names):
            with suppress(FileNotFoundError):  # a link that leads nowhere
                _require_regular(path.stat().st_mode, path)


def path_in(folder: str | Path, name: object, suffix: str) -> Path:
    """Returns the path of a file of an index that the index itself names.

    Raises:
        CorruptIndexError: it is not the plain name of a file in `folder`, or is a link, a folder,
            a pipe or a device there.
    """
    plain = isinstance(name, str) and "/" not in name and "\0" not in name
    if not plain or name in ("", ".", "..") or not str(name).endswith(suffix):
        raise CorruptIndexError(
            f"the index names {name!r} as a file in {folder}: a name must end in {suffix} and have "
            "no folder in it; restore the index from a copy, or build again"
        )
    path = Path(folder) / str(name)
    with suppress(OSError):  # not there, or too long to be: whoever opens it says so
        if not stat.S_ISREG(path.lstat().st_mode):
            raise CorruptIndexError(foreign(path))
    return path


def own_files(folder: Path, subfolders: Iterable[str] = ()) -> list[Path]:
    """Returns the files in an index's folder and in those of its subfolders that are there.

    Other folders are passed over: nothing in them is ever read.

    Raises:
        CorruptIndexError: a link, a pipe or a device is among them, or a subfolder is none.
        OSError: a folder cannot be read.
    """
    found, subfolders = [], set(subfolders)
    with os.scandir(folder) as entries:
        listed = list(entries)
    for entry in listed:
        path = Path(entry.path)
        if entry.name in subfolders:
            if not entry.is_dir(follow_symlinks=False):
                raise CorruptIndexError(foreign(path, "folder"))
            found += own_files(path)
        elif entry.is_file(follow_symlinks=False):
            found.append(path)
        elif not entry.is_dir(follow_symlinks=False) and os.path.lexists(path):
            raise CorruptIndexError(foreign(path))
    return found


def foreign(path: Path, wanted: str = "file") -> str:
    """Returns the message about something in an index that is no plain file."""
    what = "a symbolic link" if path.is_symlink() else f"not a regular {wanted}"
    return (
        f"{path} is {what}, and an index holds only files of its own: put a copy of the {wanted} "
        "there, or remove it"
    )


def _opened(path: Path, flags: int) -> BufferedReader:
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # a pipe must not hang the check
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _open_pipe(path: Path) -> BufferedReader:
    """Returns a pipe, once somebody has opened its other end: the system waits for that."""
    opened: list[int] = []
    waiting = threading.Thread(
        target=lambda: opened.append(os.open(path, os.O_RDONLY)), daemon=True
    )
    waiting.start()
    waiting.join(PIPE_SECONDS)
    if not opened:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # lets go of the thread
        waiting.join()
        os.close(opened[0])
        raise OSError(errno.EPIPE, "nothing writes to this pipe", str(path))
    return os.fdopen(opened[0], "rb")


def _require_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))

"""Who may write to an index: one process at a time.

The lock is the kernel's (flock), so it ends with its holder, however that dies. The file's text
names the holder in the message to another writer. A holder that ends normally empties it: text
without a lock means that the last holder was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from forvalue_index.errors import CorruptIndexError, LockedError
from forvalue_index.system.files import foreign, open_own

FILE = "write.lock"
_PAUSE = 0.01  # seconds between two looks at a lock that somebody has


class WriterLock:
    """The right to write to the index in a directory, from `with` to its end."""

    def __init__(self, directory: str | Path, command: str | None = None) -> None:
        """`command` is shown to whoever is refused; default: the program's name.

        Not its arguments: a URL with a password may be among them.
        """
        self._path = Path(directory) / FILE
        self._command = command or _command()
        self._file: int | None = None
        self.interrupted = False  # whether the last holder was killed; known once it is taken

    def acquire(self, patience: float = 0) -> None:
        """Takes the lock; waits up to `patience` seconds for it.

        Raises:
            LockedError: another one holds it; the message says who and since when.
            OSError: the file cannot be written.
        """
        assert self._file is None, "a lock is taken once"
        # Never removed: whoever opened a file that is then replaced would lock another one.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(self._path, flags, 0o666)  # a folder of a group has writers of several users
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise CorruptIndexError(foreign(self._path))
            until = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise
                    time.sleep(_PAUSE)
        except BlockingIOError as error:
            holder = _holder(os.read(file, 10_000))
            os.close(file)
            raise LockedError(
                f"{self._path.parent} is being written to by {holder}: "
                "wait until it has finished, or stop it"
            ) from error
        except BaseException:
            os.close(file)
            raise
        self._file = file
        self.interrupted = bool(os.pread(file, 1, 0))
        text = json.dumps(
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "command": self._command[:1000],
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, text.encode(), 0)
        except BaseException:  # a full disk, say
            self.release()
            raise

    def release(self) -> None:
        """Gives the lock back; nothing if it is not held."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            os.ftruncate(file, 0)
        finally:
            os.close(file)

    def __enter__(self) -> Self:
        """Takes the lock, as `acquire` does."""
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Gives it back."""
        self.release()


def may_be_interrupted(directory: str | Path) -> bool:
    """Returns whether the last writer was killed, and no other has written since.

    Also if somebody writes now, or may: this user cannot look at the lock of another one.
    """
    try:
        with open_own(Path(directory) / FILE) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return bool(file.read(1))
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True


def _command() -> str:
    """Returns the name of this program, with forvalue's command."""
    program = Path(sys.argv[0]).name
    return " ".join([program, *sys.argv[1:2]]) if program == "forvalue" else program


def _holder(text: bytes) -> str:
    try:
        found = json.loads(text)
        return (
            f"process {found['pid']} on {found['host']} "
            f"({found['command']}, since {found['since']})"
        )
    except (ValueError, KeyError, TypeError):  # it has taken the lock and not yet said so
        return "another process"

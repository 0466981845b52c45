"""A process that may reach nothing but its own folder, and what became of it.

Python tells of every file that it opens, moves or deletes, and of connections and programs; what
native code does is seen only by what comes of it: a tree beside the index that must stay as it is,
and a port that listens.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import resource
import select
import signal
import socket
import sys
import sysconfig
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from forvalue_index import rendering

MEMORY = 4 << 30  # bytes that a trial may take more than it began with
FORBIDDEN = (  # events that nothing may raise
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.bind",
    "socket.sendto",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "pickle.find_class",
)
CHANGES = {  # event -> how many of its first arguments are paths that it changes
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.utime": 1,
    "shutil.rmtree": 1,
    "shutil.move": 2,
}
NAMES = (
    "os.remove",
    "os.rename",
    "os.link",
    "os.symlink",
)  # of links themselves, not of their targets
WITHIN = "os.remove", "os.rename", "os.rmdir", "os.mkdir"  # whose last arguments are open folders
LOOKS = {"os.listdir": 1, "os.scandir": 1, "glob.glob": 1}
RENDERER = [sys.executable, "-I", "-B", str(Path(rendering.__file__).with_name("child.py"))]
"""The one program that the package starts: templates are rendered in it, within limits."""

SYSTEM = "/proc", "/sys", "/dev/urandom", "/usr/share/zoneinfo", "/etc/localtime"


@dataclass(frozen=True)
class End:
    """What became of a process."""

    result: Any = None  # what its work returned
    outside: tuple[str, ...] = ()  # what it reached that it may not
    crash: str = ""  # how it died, if it did not end by itself


class Hook:
    """Notes what leaves the folders that a process may read and write in."""

    def __init__(self, readable: tuple[str, ...], writable: tuple[str, ...]) -> None:
        self._readable = tuple(map(os.path.realpath, readable + writable))
        self._writable = tuple(map(os.path.realpath, writable))
        self._busy = False
        self.on = True
        self.outside: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """What `sys.addaudithook` calls."""
        if self._busy or not self.on:
            return
        self._busy = True
        try:
            self._look(event, arguments)
        finally:
            self._busy = False

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and arguments[1] == RENDERER:
            return
        if event in FORBIDDEN:
            self._note(f"{event}: {arguments[1:] if 'socket' in event else arguments}")
        elif event == "open":
            path, mode, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            if isinstance(mode, str) and not set(mode) & set("wax+"):
                writes = False
            self._path("open to write" if writes else "open", path, writes)
        elif event == "sqlite3.connect":
            name = os.fsdecode(arguments[0])
            if name.startswith("file:"):
                name = unquote(name.removeprefix("file:").split("?")[0])
            self._path(event, name, writes=True)
        elif event in CHANGES:
            paths = CHANGES[event]
            within = arguments[-paths:] if event in WITHIN else ()
            for path, folder in zip_longest(arguments[:paths], within):
                if not isinstance(path, int) and folder not in (None, -1):
                    path = f"/proc/self/fd/{folder}/{os.fsdecode(path)}"
                self._path(event, path, writes=True)
        elif event in LOOKS:
            self._path(event, arguments[0], writes=False)

    def _path(self, event: str, path: Any, writes: bool) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor that is open already
        name = os.fsdecode(path)
        if event not in CHANGES and os.sep not in name:
            return  # of a folder that is open: what walks a tree, and was seen at its top
        own = Path(name)
        real = str(own.parent.resolve() / own.name) if event in NAMES else os.path.realpath(name)
        if real == os.devnull:
            return
        allowed = self._writable if writes else self._readable
        if not any(real == folder or real.startswith(folder + os.sep) for folder in allowed):
            self._note(f"{event}: {name}")

    def _note(self, text: str) -> None:
        if text not in self.outside and len(self.outside) < 20:
            self.outside.append(text)


def code_folders() -> tuple[str, ...]:
    """Where the code is that a process may load as it goes on."""
    paths = {*sys.path, *sysconfig.get_paths().values(), sys.prefix, sys.base_prefix}
    return (*(path for path in paths if path), *SYSTEM)


def confined(work: Callable[[], Any], folder: Path, seconds: float) -> End:
    """Returns what became of `work` in a process that may write to `folder` alone."""
    log = folder.with_suffix(".log")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _live(work, folder, log, writer)
    os.close(writer)
    data, late = _received(reader, time.monotonic() + seconds)
    os.close(reader)
    if late:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if late:
        return End(crash=f"did not end within {seconds:g} s: {_last(log)}")
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return End(crash=f"{name}: {_last(log)}")
    if not data:
        return End(crash=f"ended with status {os.WEXITSTATUS(status)}: {_last(log)}")
    end: End = pickle.loads(data)  # from our own child
    return end


def _received(reader: int, deadline: float) -> tuple[bytes, bool]:
    """All that comes through a pipe, and whether it did not end in time."""
    data = bytearray()
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([reader], [], [], left)[0]:
            break
        piece = os.read(reader, 1 << 20)
        if not piece:
            return bytes(data), False
        data += piece
    return bytes(data), True


def _live(work: Callable[[], Any], folder: Path, log: Path, writer: int) -> None:
    """The whole life of the child."""
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        faulthandler.enable(os.fdopen(out, "w"))
        faulthandler.register(signal.SIGTERM)
        warnings.simplefilter("ignore")
        tempfile.tempdir = os.environ["XDG_CONFIG_HOME"] = str(folder / "tmp")
        os.chdir(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        own = (str(folder / name) for name in ("index", "new", "tmp"))
        hook = Hook((*code_folders(), str(folder / "data")), tuple(own))
        sys.addaudithook(hook)
        result = work()
        hook.on = False
        data = pickle.dumps(End(result, tuple(hook.outside)))
        while data:
            data = data[os.write(writer, data) :]
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _last(log: Path) -> str:
    """What a process wrote before its end, in a line."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    shown = [line.strip() for line in lines if "/forvalue_index/" in line or "rror" in line]
    return " | ".join(shown[-3:])[:400]


def visitors(listener: socket.socket) -> int:
    """How many connections were made to a port since the last time."""
    count = 0
    while select.select([listener], [], [], 0)[0]:
        listener.accept()[0].close()
        count += 1
    return count


def content(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What a tree holds, with times and modes."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (state.st_mode, state.st_mtime_ns, data)
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Which files of a tree are others than before."""
    names = sorted({*before, *after})
    return [name for name in names if before.get(name) != after.get(name)]

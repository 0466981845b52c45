"""Sockets of this user's servers: in a folder that only this user may enter.

    $XDG_RUNTIME_DIR/forvalue/NAME.sock, or in the folder for temporary files, forvalue-UID/

The name tells which index is served: it is the hash of the index's real path and of its catalogue's
file, so that another index that is made in its place has another name.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path

from forvalue_index.errors import StorageError

LONGEST = 100  # bytes of the path of a socket, which systems limit to 104 or 108
CATALOGS = ("catalog.db", "catalog.url", "shards.json")


def runtime_folder() -> Path:
    """Returns the folder of this user's sockets, which may not be there."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and Path(base).is_dir():
        return Path(base) / "forvalue"
    return Path(tempfile.gettempdir()) / f"forvalue-{os.getuid()}"


def make_runtime_folder() -> Path:
    """Returns the folder of this user's sockets, made if it is not there.

    Raises:
        StorageError: it cannot be made, or others may enter it.
    """
    folder = runtime_folder()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be made ({error.strerror or error}): set XDG_RUNTIME_DIR to a folder "
            "of yours"
        ) from error
    if not _is_private(folder):
        raise StorageError(
            f"{folder} is not a folder that only you may enter: remove it, or set XDG_RUNTIME_DIR "
            "to a folder of yours"
        )
    return folder


def socket_name(directory: str | Path) -> str:
    """Returns the name of the socket of a server of the index in `directory`.

    Raises:
        OSError: there is no index.
    """
    place = Path(directory).resolve()
    for name in CATALOGS:
        try:
            state = (place / name).stat()
        except FileNotFoundError:
            continue
        made = f"{place}\0{state.st_dev}\0{state.st_ino}"
        return f"{hashlib.sha256(os.fsencode(made)).hexdigest()[:16]}.sock"
    raise FileNotFoundError(f"{place} is not an index")


def running_socket(directory: str | Path) -> Path | None:
    """Returns the socket of a server of an index that this user runs; None: there seems none."""
    folder = runtime_folder()
    try:
        path = folder / socket_name(directory)
        state = path.lstat()
    except OSError:
        return None
    own = stat.S_ISSOCK(state.st_mode) and state.st_uid == os.getuid()
    return path if own and _is_private(folder) else None


def listen(directory: str | Path) -> tuple[socket.socket, Path]:
    """Returns a socket that listens for this user's commands, and its path.

    Raises:
        StorageError: it cannot be made, or another server of this index has it.
    """
    path = make_runtime_folder() / socket_name(directory)
    if len(os.fsencode(path)) > LONGEST:
        raise StorageError(f"{path} is too long for a socket: set XDG_RUNTIME_DIR to a short one")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _answers(path):
            path.unlink()  # of a server that was killed
        listener.bind(str(path))  # in a folder that nobody else may enter
        path.chmod(0o600)
        listener.listen(128)
    except OSError as error:
        listener.close()
        why = "another server of this index has it" if path.is_socket() else error
        raise StorageError(
            f"{path} cannot be listened at ({why}): stop that server, or remove the file"
        ) from error
    return listener, path


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True


def _is_private(folder: Path) -> bool:
    """Returns whether a folder is this user's, and nobody else may enter it."""
    try:
        state = folder.lstat()
    except OSError:
        return False
    ours = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid()
    return ours and stat.S_IMODE(state.st_mode) & 0o077 == 0

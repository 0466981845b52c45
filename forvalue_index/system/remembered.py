"""What this user has named on this machine, a line each, in CONFIG/forvalue/NAME.

An index directory may come from somebody else; what it may reach outside of itself does not stand
in it, but here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from forvalue_index.system.files import atomic_write, open_regular


def remembered(name: str) -> list[str]:
    """Returns the lines of a list; none if it cannot be read."""
    try:
        with open_regular(_file(name)) as file:
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def remember(name: str, lines: Iterable[str]) -> None:
    """Adds lines to a list, for its user only; those that are there stay.

    Raises:
        OSError: it cannot be written.
    """
    known = remembered(name)
    new = [line for line in dict.fromkeys(lines) if line not in {*known}]
    if not new:
        return
    file = _file(name)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with atomic_write(file, text=True, mode=0o600) as out:
        out.write("".join(f"{line}\n" for line in [*known, *new]))


def _file(name: str) -> Path:
    """Returns the file of a list.

    Raises:
        FileNotFoundError: this user has no home directory, as in some containers.
    """
    try:
        config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    except RuntimeError:
        raise FileNotFoundError(errno.ENOENT, "there is no home directory") from None
    return Path(config) / "forvalue" / name

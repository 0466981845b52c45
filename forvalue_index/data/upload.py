"""Results to elsewhere: what fsspec writes by a URL, from a temporary file that is complete.

Nothing is under the URL before all of it is. Only who asked for it is connected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

from forvalue_index.data.fetch import HERE, is_url, system_of
from forvalue_index.errors import InputError, StorageError, brief
from forvalue_index.system.temporary import keeping

Destination: TypeAlias = Path | str
"""Where a result goes: a file of this machine, or a URL."""


def destination_of(name: str) -> Destination:
    """Returns where a result goes that a person named; file:///a/b is the file /a/b."""
    if not is_url(name):
        return Path(name)
    kind, _, rest = name.partition("://")
    return Path(rest) if kind in ("file", "local") else name


def suffix_of(place: Destination) -> str:
    """Returns how the name of a file or URL ends, such as ".jsonl"."""
    return Path(str(place)).suffix


def require_writable(places: Iterable[Destination | None], allow_remote: bool) -> None:
    """Makes sure, before the work, that results may be written to places.

    Raises:
        InputError: one is remote and may not be, or of a kind that takes no files.
        DependencyError: what reaches it is not installed.
    """
    for place in places:
        if isinstance(place, str):
            kind = place.partition("://")[0]
            if kind in ("http", "https"):
                raise InputError(f"{brief(place)}: nothing can be written to a web address")
            if kind not in HERE and not allow_remote:
                raise InputError(
                    f"{brief(place)} is not on this machine: give --allow-remote to write there "
                    "(in Python, allow_remote=True)"
                )
            system_of(place)


@contextmanager
def written(place: Destination, allow_remote: bool = False) -> Iterator[Path]:
    """Yields the file to write; what is in it after the block is at `place`, whole or not at all.

    Raises:
        InputError: as in `require_writable`.
        StorageError: the place takes no file; what was written stays here, in a temporary file.
    """
    if isinstance(place, Path):
        yield place
        return
    require_writable([place], allow_remote)
    with keeping(place):
        folder = Path(tempfile.mkdtemp(prefix="forvalue-"))
    file = folder / f"result{suffix_of(place)}"
    try:
        yield file
    except BaseException:
        file.unlink(missing_ok=True)
        folder.rmdir()
        raise
    system, path = system_of(place)
    try:
        with _transaction(system):
            system.put_file(str(file), path)
    except Exception as error:  # each system has errors of its own
        reason = brief(error) or type(error).__name__
        raise StorageError(
            f"{brief(place)} cannot be written ({type(error).__name__}: {reason}): what belongs "
            f"there is in {file}"
        ) from None
    file.unlink()
    folder.rmdir()


def _transaction(system: Any) -> AbstractContextManager[Any]:
    """Returns what makes a file appear whole; where there is no such thing, one is sent whole."""
    try:
        made: AbstractContextManager[Any] = system.transaction
    except NotImplementedError:  # of the hub, where a file is one commit
        return nullcontext()
    return made

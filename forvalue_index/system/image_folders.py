"""From which folders images of an index are read.

An index directory may come from somebody else, and so may the paths of images in its rows. They are
read from folders alone in which data that this user gave had images (to `build`, `add` or a query),
which CONFIG/forvalue/images keeps, and from those inside a folder of the variable FORVALUE_IMAGES.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from forvalue_index.system.remembered import remember, remembered

VARIABLE = "FORVALUE_IMAGES"
LIST = "images"

_given: set[str] = set()  # in this process
_listed: set[str] = set()  # of those that are remembered


def name_folder(folder: Path) -> None:
    """Notes a folder, with no link in its path, in which data of this user have an image."""
    _given.add(str(folder))


def keep_folders() -> None:
    """Remembers what `name_folder` noted, if it can be: else it counts in this process alone."""
    if new := {folder for folder in _given - _listed if folder.isprintable()}:
        _listed.update(new)
        with suppress(OSError):
            remember(LIST, sorted(new))


def is_named(file: Path) -> bool:
    """Returns whether an image's file is in a folder that this user named, wherever links lead."""
    try:
        folder = file.resolve().parent
    except (OSError, ValueError, RuntimeError):  # no file has this name, or links go round
        return False
    if str(folder) in _given or str(folder) in _listed:
        return True
    roots = [Path(root) for root in os.environ.get(VARIABLE, "").split(os.pathsep) if root]
    if any(folder.is_relative_to(root.resolve()) for root in roots):
        return True
    _listed.update(remembered(LIST))  # another process may have added to it
    return str(folder) in _listed

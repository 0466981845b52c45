"""What a case finds: packages, the environment, the input, and the disk."""

from __future__ import annotations

import io
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from error_cases.case import Case

ROOM = 4096  # bytes that a file may have where the disk is full


@contextmanager
def of(case: Case, folder: Path) -> Iterator[None]:
    """Gives the process what a case says, for a `with` block."""
    with _without(case.lacking), _told(case), _temporary(folder):
        yield


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Makes a package one that cannot be imported."""
    if not package:
        yield
        return
    known = {name: sys.modules.pop(name) for name in [*sys.modules] if _within(name, package)}
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules |= known


@contextmanager
def _told(case: Case) -> Iterator[None]:
    """Gives the process the environment, the input and the disk of a case."""
    environment, typed = {**os.environ}, sys.stdin
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    os.environ |= case.environment
    sys.stdin = io.StringIO(case.typed)
    if case.full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.stdin = typed
        os.environ.clear()
        os.environ |= environment


@contextmanager
def _temporary(folder: Path) -> Iterator[None]:
    """Has temporary files made in a folder, where those that are left go with it."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")

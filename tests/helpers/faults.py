"""What goes wrong on a machine: a full disk, a killed process, something that never ends."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import Any

import pytest


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes meanwhile, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def no_hang(seconds: int = 60) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Killed(BaseException):
    """The end of a process, in a test that goes on after it."""


def die_at(patch: pytest.MonkeyPatch, name: str, nth: int, after: bool) -> None:
    """The n-th call of a function or method is the last."""
    place, _, attribute = name.rpartition(".")
    original, calls = resolve_name(name), 0

    def patched(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != nth:
            return original(*arguments, **options)
        try:
            if after:
                original(*arguments, **options)
        finally:
            raise Killed

    patch.setattr(resolve_name(place), attribute, patched)

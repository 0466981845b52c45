"""Memory that one batch leaves to the next, on a CPU."""

from __future__ import annotations

import ctypes
import os
from functools import cache

SETTINGS = "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)
_BLOCK = 2**25  # the largest that glibc itself would come to take from what it keeps
_KEPT = 2**29


@cache
def keep_freed_memory() -> None:
    """Has the C library keep up to 512 MiB of what a forward pass frees, for the next one.

    glibc gives it back at once and asks for it again, and the system clears every page anew, which
    took a quarter of the time of a small model (tools/EXPERIMENTS.md). Whoever has set one of
    SETTINGS in the environment has decided already; other C libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name in os.environ for name in SETTINGS):
        mallopt(_MMAP_THRESHOLD, _BLOCK)
        mallopt(_TRIM_THRESHOLD, _KEPT)

"""The memory and the cores that this process may use, as its container limits them."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")  # of the file system that says what the limits are


def memory() -> int:
    """Returns the bytes of memory that this process may take.

    The least of what the machine has, what the limits of its control groups (a container's memory,
    version 1 or 2) allow, and RLIMIT_AS and RLIMIT_DATA.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            found += _numbers(group / name)[:1]
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            found.append(soft)
    return min(found)


def cores() -> int:
    """Returns how many cores this process may keep busy, 1 or more.

    The least of those that it may run on and the share of time that its control groups allow.
    """
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS
    found = [float(len(allowed(0)) if allowed is not None else os.cpu_count() or 1)]
    for group in _groups("cpu"):
        quota = _numbers(group / "cpu.max")  # version 2: both in one file
        if not quota:
            quota = _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        if len(quota) == 2 and min(quota) > 0:  # -1: no limit
            found.append(quota[0] / quota[1])
    return max(1, math.ceil(min(found)))


def _groups(controller: str) -> Iterator[Path]:
    """Yields the folders of this process's control groups, from its own to the root.

    In a container its own may be named as the host sees it, and not be there: then the root is the
    container's.
    """
    try:
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, place = line.partition(":")
        names, _, path = place.partition(":")
        if names and controller not in names.split(","):
            continue
        mount = ROOT / "sys/fs/cgroup" / (controller if names else "")  # version 2 has no names
        group = mount / path.lstrip("/")
        yield from (group, *(parent for parent in group.parents if parent.is_relative_to(mount)))


def _numbers(path: Path) -> list[int]:
    """Returns the whole numbers in a file; none if it is not there, or begins with "max"."""
    try:
        words = path.read_text().split()
        return [int(word) for word in words]
    except (OSError, ValueError):
        return []

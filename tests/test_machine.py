"""What the process may take, with the files of control groups as systems have them."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from forvalue_index import InfluenceIndex
from forvalue_index.system import machine

ALL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
ONE = {"proc/self/cgroup": "9:name=systemd:/a\n4:memory:/a/b\n3:cpu,cpuacct:/a/b\n"}
TWO = {"proc/self/cgroup": "0::/a/b\n"}


@pytest.fixture()
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty file system, for a process that is limited by nothing and may use 8 cores."""
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


CG = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ALL),
        (TWO | {f"{CG}/a/b/memory.max": "max\n", f"{CG}/a/b/memory.high": "max\n"}, ALL),
        (TWO | {f"{CG}/a/b/memory.max": "5000\n", f"{CG}/a/memory.max": "7000\n"}, 5000),
        (TWO | {f"{CG}/a/b/memory.max": "5000\n", f"{CG}/a/memory.max": "3000\n"}, 3000),
        (TWO | {f"{CG}/a/b/memory.max": "5000\n", f"{CG}/a/b/memory.high": "4000\n"}, 4000),
        (TWO | {f"{CG}/memory.max": "6000\n"}, 6000),  # a container
        (TWO | {f"{CG}/a/c/memory.max": "6000\n", "memory.max": "1\n"}, ALL),  # not its own
        (ONE | {f"{CG}/memory/a/b/memory.limit_in_bytes": "5000\n"}, 5000),
        (ONE | {f"{CG}/memory/memory.limit_in_bytes": "5000\n"}, 5000),
        (ONE | {f"{CG}/memory/a/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, ALL),
    ],
)
def test_memory_is_what_the_control_groups_leave(
    root: Path, files: dict[str, str], expected: int
) -> None:
    write(root, files)
    assert machine.memory() == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        (TWO | {f"{CG}/a/b/cpu.max": "max 100000\n"}, 8),
        (TWO | {f"{CG}/a/b/cpu.max": "150000 100000\n"}, 2),
        (TWO | {f"{CG}/cpu.max": "300000 100000\n", f"{CG}/a/b/cpu.max": "9900000 100000\n"}, 3),
        (TWO | {f"{CG}/a/b/cpu.max": "1000 100000\n"}, 1),
        (
            ONE
            | {
                f"{CG}/cpu/a/b/cpu.cfs_quota_us": "400000\n",
                f"{CG}/cpu/a/b/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            ONE
            | {
                f"{CG}/cpu/a/b/cpu.cfs_quota_us": "-1\n",
                f"{CG}/cpu/a/b/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_cores_are_those_that_the_process_gets(
    root: Path, files: dict[str, str], expected: int
) -> None:
    write(root, files)
    assert machine.cores() == expected


@pytest.mark.parametrize("limit", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_limits_of_the_process_count(
    root: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {limit: (2**20, resource.RLIM_INFINITY)}
    unlimited = (resource.RLIM_INFINITY,) * 2
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits.get(which, unlimited))
    assert machine.memory() == 2**20


def test_a_derived_index_is_chosen_for_half_of_it(
    root: Path, index: InfluenceIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def chosen(n: int, dim: int, memory: int) -> tuple[str, str]:
        asked.append(memory)
        return "Flat", "as this test has it"

    write(root, TWO | {f"{CG}/memory.max": "6000\n"})
    monkeypatch.setattr("forvalue_index.store.derived.auto_factory", chosen)
    assert index.optimize() == (None, "as this test has it")
    index.optimize(memory=5)
    assert asked == [3000, 5]

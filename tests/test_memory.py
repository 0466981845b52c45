"""Freed memory is kept for the next batch, unless the environment says otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from forvalue_index.forward import memory

FAULTS = """
import resource, sys
import torch
from forvalue_index.forward.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for turn in range(14):
    if turn == 4:  # by then there is as much as is needed
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.empty(6_000_000).fill_(1) for _ in range(4)]  # 24 MB each
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **settings: str) -> int:
    """The pages that the system had to make for ten rounds of 96 MB."""
    plain = {name: value for name, value in os.environ.items() if name not in memory.SETTINGS}
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.check_output(command, env=plain | settings))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_batch_gets_the_memory_of_the_last() -> None:
    given_back, kept = faults("given back"), faults("kept")
    assert kept < given_back / 5
    assert faults("kept", MALLOC_MMAP_THRESHOLD_="4096") > 5 * kept

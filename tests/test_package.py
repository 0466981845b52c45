"""The package as a whole: its public names, and where it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import forvalue_index


def test_public_names_are_there_and_documented() -> None:
    assert sorted(forvalue_index.__all__) == sorted(forvalue_index._HOMES)
    for name in forvalue_index.__all__:
        assert getattr(forvalue_index, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        forvalue_index.nothing  # noqa: B018


def test_another_kind_of_system_is_refused_at_once() -> None:
    code = "import os; os.name = 'nt'; import forvalue_index"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 1
    last = found.stderr.splitlines()[-1]
    assert last.startswith("ImportError: forvalue_index runs on POSIX systems") and "WSL" in last

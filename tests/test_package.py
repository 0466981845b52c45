"""The package as a whole: its public names, and where it runs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

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


def test_analysis_reaches_into_no_other_layer() -> None:
    """What it imports is for import-linter; this is about what it takes from an index."""
    inner = {"catalog", "flat", "session", "store"}
    files = list((Path(forvalue_index.__file__).parent / "analysis").rglob("*.py"))
    assert len(files) > 20
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in inner, f"{path}:{node.lineno}: .{node.attr}"

"""The package as a whole: its public names, and where it runs."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import forvalue_index

ROOT = Path(__file__).parents[1]


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


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])


@pytest.mark.slow  # it installs the build's requirements
def test_the_package_is_built_with_all_that_it_needs(tmp_path: Path) -> None:
    pytest.importorskip("twine")
    module = [sys.executable, "-m"]
    subprocess.run([*module, "build", "--outdir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    subprocess.run([*module, "twine", "check", "--strict", wheel, source], check=True)
    packed = set(zipfile.ZipFile(wheel).namelist())
    package = Path(forvalue_index.__file__).parent
    files = [
        path for path in package.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    ]
    wanted = {str(path.relative_to(package.parent)) for path in files}
    scripts = (ROOT / "migrations").rglob("*.py")
    wanted |= {str("forvalue_index" / path.relative_to(ROOT)) for path in scripts}
    assert wanted <= packed
    assert {
        "forvalue_index/py.typed",
        "forvalue_index/assets/demo/model/model.safetensors",
    } <= packed

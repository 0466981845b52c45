"""The package as a whole: its public names, and where it runs."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
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


def test_the_oldest_versions_are_those_that_the_package_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in allowed)  # type: ignore[union-attr]
    lines = (ROOT / "tools" / "versions" / "oldest.txt").read_text().splitlines()
    pins = [line.partition("; python_version < ")[0] for line in lines if not line.startswith("#")]
    later = [pin for pin in pins if "; python_version >= " in pin]
    pinned = dict(pin.split("==") for pin in pins if pin not in later)
    assert {pin.split("==")[0] for pin in later} < pinned.keys()
    assert {name: _padded(text) for name, text in pinned.items()} == {
        name: _padded(text) for name, text in bounds.items()
    }


def _padded(version: str) -> list[int]:
    return [*map(int, version.split(".")), 0, 0][:3]


def test_the_newest_section_of_the_changes_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "Unreleased" or sections[0].startswith(project["version"])


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A user's project, and an environment with the package as pip leaves it."""
    shutil.copy(ROOT / "tests" / "assets" / "user_project" / "use.py", tmp_path)
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    [packages] = (tmp_path / "env" / "lib").glob("python*/site-packages")
    shutil.copytree(ROOT / "forvalue_index", packages / "forvalue_index")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return tmp_path


def _checked(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Runs a type checker in a folder, with nothing of this checkout on its path."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-m", *map(str, command)]
    return subprocess.run(words, cwd=folder, env=own, capture_output=True, text=True)


@pytest.mark.slow  # mypy reads torch anew
def test_a_strict_mypy_knows_the_types_of_the_package(user: Path) -> None:
    (user / "wrong.py").write_text(
        "from forvalue_index import InfluenceIndex, nothing\n"
        "def count(index: InfluenceIndex) -> str:\n"
        "    return len(index)\n"
    )
    mypy = ["mypy", "--strict", "--python-executable", user / "env" / "bin" / "python"]
    done = _checked(user, *mypy, "use.py", "wrong.py")
    assert "use.py" not in done.stdout, done.stdout
    assert 'has no attribute "nothing"' in done.stdout
    assert "Incompatible return value" in done.stdout


@pytest.mark.slow  # it may fetch pyright's own program
def test_pyright_knows_the_types_of_the_package(user: Path) -> None:
    pytest.importorskip("pyright")
    (user / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    done = _checked(user, "pyright", "--pythonpath", user / "env" / "bin" / "python", "use.py")
    assert done.returncode == 0, done.stdout


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

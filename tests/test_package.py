"""The package as a whole: its public names, and the README's example as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import forvalue_index
from forvalue_index.records import Row

README = Path(__file__).parent.parent / "README.md"


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


def test_the_example_of_the_readme_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    rows: list[Row],
) -> None:
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert example is not None
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = example[1].replace("path/to/finetuned-model", str(model_dir))
    exec(compile(code, "README.md", "exec"), {})
    assert len(re.findall(r"^\d\. [+-]", capsys.readouterr().out, re.MULTILINE)) == 5
    with forvalue_index.InfluenceIndex.open("my.index") as index:
        assert len(index) == 31

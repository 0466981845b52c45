"""What a command imports: none of the libraries that take seconds, unless it needs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.indexes import SETTINGS

from forvalue_index import InfluenceIndex
from forvalue_index.__main__ import BETWEEN
from forvalue_index.catalog import migrations, schema
from forvalue_index.cli import main
from forvalue_index.cli.commands import SUMMARIES
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.vectors.scale import scale_of
from forvalue_index.vectors.vectoriser import Vectoriser

_HEAVY = {"torch", "transformers", "faiss", "sqlalchemy", "alembic", "rich", "numpy"}

_COMMAND = """
import json, sys
from forvalue_index.cli import main
try:
    main(sys.argv[1:])
except SystemExit as error:
    if error.code:
        raise
print("\\n" + json.dumps([name for name in sys.modules]))
"""


def _imported(code: str, arguments: Sequence[object] = ()) -> set[str]:
    """Returns the heavy modules in a process that ran `code`, which prints all as its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return _HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> Path:
    """A folder with an index."""
    path = tmp_path_factory.mktemp("start")
    rows = [{"id": f"row{i}", "prompt": f"word{i}", "response": " and more"} for i in range(30)]
    InfluenceIndex.build(path / "my.index", rows, lm, **SETTINGS)[0].close()
    return path


@pytest.mark.parametrize("arguments", ["--help", "--version"])
def test_the_help_imports_no_library_but_click(arguments: str) -> None:
    assert _imported(_COMMAND, [arguments]) == set()


@pytest.mark.parametrize("name", sorted(SUMMARIES))
def test_the_help_of_a_command_imports_no_model_and_no_catalogue(name: str) -> None:
    assert _imported(_COMMAND, [name, "--help"]) <= {"rich", "numpy"}


@pytest.mark.parametrize(
    "arguments", [["info"], ["list"], ["show", "row3"], ["remove", "--key", "row4"]]
)
def test_what_asks_for_rows_imports_the_catalogue_only(folder: Path, arguments: list[str]) -> None:
    imported = _imported(_COMMAND, [*arguments, "--index", folder / "my.index"])
    assert imported == {"sqlalchemy", "rich", "numpy"}


@pytest.mark.parametrize("name", ["search", "export", "verify", "compact"])
def test_what_opens_segments_imports_faiss_and_no_model(folder: Path, name: str) -> None:
    files = ["--vectors", folder / "v.npy", "--rows", folder / "rows.jsonl"]
    more = {"search": ["word7"], "export": files}.get(name, [])
    imported = _imported(_COMMAND, [name, "--index", folder / "my.index", *more])
    assert imported == {"faiss", "sqlalchemy", "rich", "numpy"}


def test_what_runs_the_model_imports_it(folder: Path) -> None:
    query = ["query", "--index", folder / "my.index", "--prompt", "word1", "--response", " and"]
    assert {"torch", "transformers", "faiss"} <= _imported(_COMMAND, query)


def test_opening_an_index_in_python_imports_no_model() -> None:
    code = (
        "import json, sys\nfrom forvalue_index import InfluenceIndex\n"
        "print(json.dumps(list(sys.modules)))"
    )
    assert _imported(code) == {"sqlalchemy", "numpy"}


OTHERS = {"__init__", "answers", "commands", "highlight", "progress", "render"}
"""Modules of `cli` that are no command."""


def test_every_command_is_in_the_module_of_its_name_with_a_line_that_fits() -> None:
    assert {name: main.commands[name].name for name in SUMMARIES} == {n: n for n in SUMMARIES}
    assert all(len(line) <= 60 and line.endswith(".") for line in SUMMARIES.values())
    files = {path.stem for path in (Path(__file__).parents[1] / "forvalue_index/cli").glob("*.py")}
    assert files - set(SUMMARIES) == OTHERS


def test_the_scale_is_read_without_torch_as_with_it(folder: Path) -> None:
    with InfluenceIndex.open(folder / "my.index") as index:
        data = index.store.vectoriser_bytes()
        made = Vectoriser.from_bytes(data, index.config.vector, torch.device("cpu"))
    assert scale_of(data) == made.scale
    other = Vectoriser(made.parts, made.projection, 2.0**-3)
    assert scale_of(other.to_bytes()) == 2.0**-3


def test_the_revision_of_the_tables_is_that_of_the_newest_migration() -> None:
    assert migrations.head() == schema.REVISION


def test_a_process_of_a_command_hardly_searches_for_cycles() -> None:
    code = """
import atexit, gc
from forvalue_index import __main__ as own
atexit.register(lambda: print(gc.get_freeze_count() > 0))
own.main = lambda prog_name: print(gc.get_threshold()[0])
own.run()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(BETWEEN), "True"]

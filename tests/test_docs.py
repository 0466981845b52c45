"""README.md and docs/: their examples run as they stand there, and what they name is there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click
import pytest
from helpers.pages import (
    PAGES,
    ROOT,
    assert_printed,
    code_blocks,
    console_examples,
    make_folder,
    run_example,
    words,
)

from forvalue_index import InfluenceIndex
from forvalue_index.cli import main

PYTHON = [page for page in PAGES if list(code_blocks(page, "python"))]
CONSOLE = [page for page in PAGES if list(code_blocks(page, "console"))]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("examples"))


@pytest.fixture
def folder(tmp_path: Path, pristine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in which one page's examples run, one after the other."""
    path = tmp_path / "folder"
    shutil.copytree(pristine, path, symlinks=True)
    monkeypatch.chdir(path)
    return path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", CONSOLE, ids=lambda page: page.name)
def test_console_examples_run_and_print_what_the_page_says(page: Path) -> None:
    for example in console_examples(page):
        program, *rest = words(example.command)
        if program == "forvalue":
            assert_printed(example, run_example(example))
        else:
            assert program in ("make", "pip")
            assert program == "pip" or rest[0] in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
def test_python_examples_run(page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "my.index")  # the example makes it
    names: dict[str, object] = {}
    for line, block in code_blocks(page, "python"):
        exec(compile(block, f"{page.name}:{line}", "exec"), names)
    assert len(re.findall(r"^\d\. [+-]", capsys.readouterr().out, re.MULTILINE)) == 5
    with InfluenceIndex.open("my.index") as index:
        assert len(index) == 161


def mentioned(page: Path) -> list[list[str]]:
    """The commands of this package in `sh` blocks and between backticks, as words."""
    text = page.read_text()
    quoted = re.findall(r"(?<!`)`(forvalue [^`]+)`", text)
    blocks = "".join(block for _, block in code_blocks(page, "sh"))
    lines = blocks.replace("\\\n", "").splitlines()
    commands = [words(command.replace("\n", " ")) for command in [*quoted, *lines]]
    return [command for command in commands if command and command[0] == "forvalue"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_that_a_page_mentions_are_there(page: Path) -> None:
    for _, *arguments in mentioned(page):
        command: click.Command = main
        while isinstance(command, click.Group) and arguments and arguments[0] in command.commands:
            command = command.commands[arguments.pop(0)]
        known = {option for p in command.params for option in p.opts + p.secondary_opts}
        used = {word for word in arguments if re.match(r"--?[a-z]", word)}
        assert used <= known | {"--help"}, (page.name, command.name, used - known)


def test_every_option_of_the_package_that_a_page_names_is_of_some_command_or_tool() -> None:
    texts = "".join(path.read_text() for path in (ROOT / "forvalue_index" / "cli").rglob("*.py"))
    texts += "".join(path.read_text() for path in (ROOT / "tools").glob("*.py"))
    texts += "".join(path.read_text() for path in (ROOT / "tests").glob("conftest.py"))
    for page in PAGES:
        for option in re.findall(r"`(--[a-z][a-z-]+)", page.read_text()):
            assert f'"{option}' in texts or f"/{option}" in texts, (page.name, option)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_and_pages_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"\b(?:tools|tests)/[\w/]+(?:\.\w+)?", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_of_a_page_was_printed(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name in ("cli.md", "errors.md"):
        pytest.skip("it is made from the code")
    monkeypatch.syspath_prepend(ROOT / "tools")
    from check_figures import unprinted

    assert unprinted(page) == []


def test_every_command_is_in_the_pages() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in main.commands if f"forvalue {name}" not in text] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250

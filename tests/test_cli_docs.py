"""docs/cli.md is what tools/make_cli_docs.py makes of the commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import get_completion_class

from forvalue_index.cli import main

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cli.md"


def test_the_page_of_the_commands_is_current(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_cli_docs

    monkeypatch.setattr(make_cli_docs, "PAGE", tmp_path / "cli.md")
    make_cli_docs.main([], standalone_mode=False)
    assert (tmp_path / "cli.md").read_text() == PAGE.read_text(), "python tools/make_cli_docs.py"


def test_the_page_has_every_option_in_the_section_of_its_command() -> None:
    sections = dict(part.split("\n", 1) for part in PAGE.read_text().split("\n## ")[1:])

    def check(name: str, command: click.Command) -> None:
        for option in (o for p in command.params if isinstance(p, click.Option) for o in p.opts):
            assert option in sections[name], (name, option)
        if isinstance(command, click.Group):
            for own, below in command.commands.items():
                check(f"{name} {own}", below)

    for name in main.commands:
        check(f"forvalue {name}", main.commands[name])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_a_shell_is_there_under_the_name_in_the_page(shell: str) -> None:
    assert f"_FORVALUE_COMPLETE={shell}_source forvalue" in PAGE.read_text()
    made = get_completion_class(shell)
    assert made is not None
    script = made(main, {}, "forvalue", "_FORVALUE_COMPLETE").source()
    assert f"_FORVALUE_COMPLETE={shell}_complete" in script


def test_what_is_completed_is_commands_and_options() -> None:
    def completed(*words: str) -> list[str]:
        line = " ".join(("forvalue", *words))
        told = {"COMP_WORDS": line, "COMP_CWORD": str(len(words))}
        code = "from forvalue_index.cli import main; main(prog_name='forvalue')"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"_FORVALUE_COMPLETE": "bash_complete"} | told,
            capture_output=True,
            text=True,
            check=True,
        )
        return [line.split(",")[1] for line in done.stdout.splitlines()]

    assert completed("se") == ["search", "select", "serve"]
    assert completed("search", "--wh") == ["--where"]

"""Writes docs/cli.md: every command with its help, its example and its options, as click has them.

python tools/make_cli_docs.py
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from forvalue_index.cli import main as forvalue

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
WIDTH = 120

TOP = """\
# Command line

`forvalue COMMAND --help` shows what is here about a command; `forvalue --version` shows the
version. Results go to standard output, progress and notes to standard error. An error is one line
and exit code 1, a wrong use exit code 2; `forvalue --debug COMMAND` shows the traceback of an
error. `python -m forvalue_index` is the same program.

## Completion

The shell completes commands and options after one of these lines in its start-up file:

```sh
eval "$(_FORVALUE_COMPLETE=bash_source forvalue)"   # bash: ~/.bashrc
eval "$(_FORVALUE_COMPLETE=zsh_source forvalue)"    # zsh: ~/.zshrc
_FORVALUE_COMPLETE=fish_source forvalue | source    # fish: ~/.config/fish/completions/forvalue.fish
```
"""


def page() -> str:
    """Returns the page."""
    parts = [TOP]
    for name, command in forvalue.commands.items():
        parts += _command(f"forvalue {name}", command)
        if isinstance(command, click.Group):
            for own, below in command.commands.items():
                parts += _command(f"forvalue {name} {own}", below)
    return "\n".join(parts)


def _command(name: str, command: click.Command) -> Iterator[str]:
    """Yields the blocks of a command, each with a line end."""
    yield f"## {name}\n"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        verbatim = paragraph.strip().removeprefix("\b").strip("\n")
        if verbatim == paragraph.strip():
            yield _filled(paragraph) + "\n"
        elif verbatim.startswith("Example:\n"):
            example = textwrap.dedent(verbatim.removeprefix("Example:\n"))
            yield f"```sh\n{example}\n```\n"
        else:
            yield f"```text\n{verbatim}\n```\n"
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    options = [p for p in command.params if isinstance(p, click.Option)]
    if arguments:
        names = " ".join(_argument(argument) for argument in arguments)
        yield f"Arguments: `{names}`\n"
    if options:
        yield "\n".join(_filled(_option(o), "  ") for o in options) + "\n"


def _argument(argument: click.Argument) -> str:
    many = "..." if argument.nargs == -1 else ""
    name = argument.metavar or f"{(argument.name or '').upper()}{many}"
    return name if argument.required else f"[{name}]"


def _option(option: click.Option) -> str:
    """Returns the line of an option: its names and value, what it does, its default."""
    names = ", ".join(option.opts) + "".join(f" / {name}" for name in option.secondary_opts)
    notes = ""
    if option.required:
        notes = " Required."
    elif option.show_default:
        notes = f" Default: {option.default}."
    text = " ".join((option.help or "").split()).replace("  ", " ")
    return f"- `{f'{names} {_value(option)}'.strip()}`: {text}{notes}"


def _value(option: click.Option) -> str:
    """Returns what stands for the value of an option; nothing for a flag."""
    if option.is_flag:
        return ""
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    return option.type.name.upper().removesuffix(" RANGE")


def _filled(text: str, indent: str = "") -> str:
    """Returns a paragraph in lines, in which no sign of Markdown means more than itself."""
    plain = re.sub(r"([*<])", r"\\\1", " ".join(text.split()))
    return textwrap.fill(
        plain, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


@click.command()
def main() -> None:
    """Write docs/cli.md."""
    PAGE.write_text(page())
    click.echo(PAGE)


if __name__ == "__main__":
    main()

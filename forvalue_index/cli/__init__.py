"""The command line: a file for each command, which parses, calls one method, and renders.

Only this package prints or exits. Results go to stdout, progress and notes to stderr. A
command is imported when it is called, and imports what it needs when it runs, so that starting is
fast.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from forvalue_index.cli.commands import SUMMARIES, Commands
from forvalue_index.errors import ForvalueError, RowError, one_line, out_of_memory
from forvalue_index.system.files import NO_ROOM

_GOES_ON = "what was committed is kept, and the same command continues from there"
_INTERRUPTED = {
    "build": _GOES_ON,
    "add": _GOES_ON,
    "compact": "segments that were rewritten are kept, and the same command continues from there",
    "remove": "either all of the rows were removed or none",
    "optimize": "queries use what they used before",
    "verify": "only derived indexes and stray files may have been changed",
    "migrate": "either the whole upgrade was done or nothing: run the same command again",
    "evaluate": "no index was changed, and of lds, the runs that finished are kept in --work",
    "demo": "run the same command again, with --index in another directory if it was given",
}
"""What Ctrl-C leaves, by command; the commands that are not here change no index."""


class _Group(click.Group):
    """Turns this package's errors into one line on stderr and exit code 1."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands in the help."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(SUMMARIES.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:  # it may quote the name of a file, or a URL
            error.message = one_line(error.message or "")  # type: ignore[misc]
            raise
        except ForvalueError as error:
            if ctx.params.get("debug"):
                raise
            said = str(error)
            if isinstance(error, RowError) and ctx.invoked_subcommand in ("build", "add"):
                said += " (--on-error skip passes over rows that cannot be used)"
            raise click.ClickException(said) from error
        except (MemoryError, RuntimeError) as error:
            if ctx.params.get("debug") or not out_of_memory(error):
                raise
            raise click.ClickException(
                "there is not enough memory; what was committed is kept: free some and run the "
                "same command again"
            ) from error
        except OSError as error:
            if ctx.params.get("debug") or error.errno not in NO_ROOM:
                raise
            raise click.ClickException(
                f"what is printed cannot be written ({error.strerror}): make room and run the "
                "command again"
            ) from error
        except KeyboardInterrupt:
            name = ctx.invoked_subcommand or ""
            after = _INTERRUPTED.get(name, "the index was not changed")
            raise click.ClickException(f"interrupted; {after}") from None


@click.group(
    cls=_Group, commands=Commands(), context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="forvalue-index")
def main(debug: bool) -> None:
    """Which training data drove this output?

    Build an index of a fine-tuning set once, then query it in milliseconds.

    \b
    Example:
      forvalue build train.jsonl --index my.index --model path/to/model
      forvalue query --index my.index --prompt "Who wrote it?" --response " Ada."
    """
    from forvalue_index.cli.render import show_warnings

    show_warnings()
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars are for terminals

"""`forvalue shell`: question after question, with the model loaded once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forvalue_index.cli import highlight, render
from forvalue_index.cli.ask import Said
from forvalue_index.cli.options.data import index_option
from forvalue_index.cli.options.model import OpenOptions, opening_options
from forvalue_index.cli.options.output import k_option
from forvalue_index.cli.options.query import SearchOptions
from forvalue_index.errors import ForvalueError, InputError
from forvalue_index.metric import METRICS, metric_of

if TYPE_CHECKING:
    from forvalue_index.index import InfluenceIndex
    from forvalue_index.records import Sample

PROMPT = "? "
HELP = """\
PROMPT              ask the model, and see what its answer comes from
:part TEXT          which rows a part of the last answer comes from
:response TEXT      which rows another answer to the last prompt comes from
:k N                hits to show
:metric NAME        {metrics}
:where CONDITION    only rows that meet it, such as source=math; alone: all rows
:opponents          rows that made the answer less likely, or again those that made it more likely
:help               this
:quit               end (or Ctrl-D)"""


@click.command()
@index_option
@k_option(10, "Hits to show.")
@opening_options
def shell(directory: Path, k: int, opening: OpenOptions) -> None:
    """Ask the model again and again, and see what each answer comes from.

    The model is loaded once. Each line is a prompt; a line that begins with a colon is a command,
    and :help lists them. Lines may come from a file or a pipe.

    \b
    Example:
      forvalue shell --index my.index
      forvalue shell --index my.index -k 3 < prompts.txt
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory, **opening) as index:
        talk = Talk(index, k)
        if sys.stdin.isatty():
            index.lm  # noqa: B018 (before the first question)
            render.notes.print("A prompt, or :help. Ctrl-D ends.")
        for line in _lines():
            try:
                if not talk.take(line):
                    return
            except ForvalueError as error:
                if not sys.stdin.isatty():
                    raise
                render.notes.print(f"Error: {render.one_line(str(error))}", markup=False)
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                render.notes.print("\nStopped; Ctrl-D ends.")


@dataclass
class Talk:
    """What was asked last, and what is shown of answers."""

    index: InfluenceIndex
    k: int
    metric: str = "dot"
    where: tuple[str, ...] = ()
    opponents: bool = False
    last: Sample | None = None  # the last prompt with its answer

    def take(self, line: str) -> bool:
        """Does what a line says; returns whether there may be another one.

        Raises:
            InputError: it is no command, or its value is of no use.
        """
        text = line.strip()
        if not text.startswith(":"):
            if text:
                self._ask(text)
            return True
        name, _, value = text[1:].partition(" ")
        if name in ("quit", "q", "exit"):
            return False
        commands: dict[str, Callable[[str], None]] = {
            "part": self._part,
            "response": self._response,
            "k": self._set_k,
            "metric": self._set_metric,
            "where": self._set_where,
            "opponents": self._turn,
            "help": lambda _: render.console().print(
                HELP.format(metrics=", ".join(METRICS)), markup=False, highlight=False
            ),
        }
        if name not in commands:
            raise InputError(f"there is no command :{name}; :help lists those there are")
        commands[name](value.strip())
        return True

    def _ask(self, prompt: str) -> None:
        from forvalue_index.model.generation import Sampling

        format = self.index.config.format.of_kind("prompt_field")
        sampling = Sampling()
        said = Said(sampling, silent=False)
        row = {format.prompt_field: prompt}
        said.begin(row, format)
        self.last = self.index.respond(row, sampling, format=format, report=said.word)
        said.end(self.last.n_scored == sampling.max_new_tokens)
        self._show(self.last)

    def _part(self, text: str) -> None:
        self._show(self.index.part(self._answered(), text))

    def _response(self, text: str) -> None:
        format = self.index.config.format.of_kind("prompt_field")
        row = self._answered().row | {format.response_field: text}
        [sample] = self.index.samples(row, format)
        self._show(sample)

    def _answered(self) -> Sample:
        if self.last is None:
            raise InputError("nothing was asked yet: write a prompt first")
        return self.last

    def _show(self, query: Sample) -> None:
        search = SearchOptions(self.opponents, self.metric, self.where, False, None, False)
        hits = search(self.index, [query], self.k)
        texts = [*map(highlight.snippet, self.index.contributions(query, hits))]
        format = self.index.config.format
        render.console().print(render.hits_table(hits, format, self.metric, texts=texts))
        render.console().print()

    def _set_k(self, text: str) -> None:
        if not (text.isdecimal() and int(text) > 0):
            raise InputError(f":k {text!r} is not a number of hits: write, for instance, :k 5")
        self.k = int(text)

    def _set_metric(self, text: str) -> None:
        metric_of(text, linear=self.opponents)
        self.metric = text

    def _set_where(self, text: str) -> None:
        self.where = (*self.where, text) if text else ()

    def _turn(self, _: str) -> None:
        metric_of(self.metric, linear=not self.opponents)
        self.opponents = not self.opponents
        side = "less" if self.opponents else "more"
        render.notes.print(f"Rows that made the answer {side} likely.")


def _lines() -> Iterator[str]:
    """Yields what is typed, with the lines before at hand, or the lines of a file or a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401 (input then edits lines; they are written to no file)
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            render.notes.print()
            return
        except KeyboardInterrupt:
            render.notes.print("\nCtrl-D ends.")

"""`forvalue ask`: the model answers, and the answer is attributed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click
from rich.text import Text

from forvalue_index.analysis.as_json import hit_json
from forvalue_index.cli import highlight, render
from forvalue_index.cli.answers import Answers, Asked, Found
from forvalue_index.cli.options.data import DataOptions, data_options, seed_option
from forvalue_index.cli.options.model import OpenOptions, opening_options, ray_option
from forvalue_index.cli.options.number import FiniteRange
from forvalue_index.cli.options.output import json_option, k_option
from forvalue_index.cli.options.query import (
    PartOptions,
    SearchOptions,
    part_options,
    search_options,
)
from forvalue_index.cli.options.server import Place, place_options
from forvalue_index.errors import InputError

if TYPE_CHECKING:
    from forvalue_index.config import FormatConfig
    from forvalue_index.model.generation import Sampling
    from forvalue_index.records import Row


@click.command()
@place_options
@click.option("--prompt", metavar="TEXT", help="What to ask the model.")
@click.option(
    "--data",
    metavar="FILE",
    help="Or a file with one row without an answer, such as a conversation (- is stdin).",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="FILE",
    help="An image that the prompt is about; repeatable.",
)
@data_options
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Longest answer, in tokens.",
)
@click.option(
    "--temperature",
    type=FiniteRange(min=0),
    default=0.0,
    show_default=True,
    help="How random the answer is; 0: always the most likely token.",
)
@click.option(
    "--top-p",
    type=FiniteRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Draw only from the most likely tokens, up to this total probability.",
)
@seed_option
@click.option(
    "--instead",
    metavar="TEXT",
    help="Ask why this answer and not another one, TEXT: the difference of both influences.",
)
@part_options
@k_option(10, "Hits to show.")
@search_options
@json_option
@opening_options
@ray_option
def ask(
    place: Place,
    prompt: str | None,
    data: str | None,
    images: tuple[str, ...],
    source: DataOptions,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    instead: str | None,
    part: PartOptions,
    k: int,
    search: SearchOptions,
    as_json: bool,
    opening: OpenOptions,
    ray: str | None,
) -> None:
    """Ask the model, and see which training samples its answer comes from.

    The model gets the prompt in the form of the index's rows (through the chat template, if they
    went through it). In each hit, the tokens that carried the influence are coloured: green where
    they raised the likelihood of the answer, red where they lowered it. These shares are exact,
    from one more forward pass of the hits.

    \b
    Example:
      forvalue ask --index my.index --prompt "Who wrote the Notes?" -k 5
      forvalue ask --index my.index --prompt "Who wrote the Notes?" --span "Ada"
      forvalue ask --index my.index --prompt "Who wrote the Notes?" --instead "Menabrea"
      forvalue ask --index my.index --prompt "Tell a story." --temperature 0.8 --seed 1 --json
    """
    from forvalue_index.model.generation import Sampling

    if (prompt is None) == (data is None):
        raise click.UsageError("give --prompt or --data FILE")
    if images and data is not None:
        raise click.UsageError("--image goes with --prompt; a row of --data has its own images")
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    wanted = Asked(part, search, k, instead, highlight=True)
    said = Said(sampling, silent=as_json)

    def asked(answers: Answers) -> tuple[Found, FormatConfig]:
        row, format = _asked(answers.format, prompt, data, images, source)
        said.begin(row, format)
        report = None if as_json else said.word
        return answers.ask(row, format, sampling, wanted, report, said.end), answers.format

    found, format = place.ask(
        opening,
        asked,
        ray=ray,
        plain=prompt is not None and not images,
        again=lambda: not said.begun,
    )
    texts = found.passages or []
    if as_json:
        named = [hit_json(hit, text) for hit, text in zip(found.hits, texts, strict=True)]
        render.json_line({"row": found.row, "hits": named})
        return
    if not found.hits:
        render.nothing(search.where)
        return
    shown = [*map(highlight.snippet, texts)]
    render.console().print(render.hits_table(found.hits, format, search.metric, texts=shown))


def _asked(
    format: FormatConfig,
    prompt: str | None,
    data: str | None,
    images: tuple[str, ...],
    source: DataOptions,
) -> tuple[Row, FormatConfig]:
    """Returns the row to answer and its format, given that of the index."""
    if data is not None:
        from forvalue_index.data.images import with_images

        rows = [row for _, row in with_images(source.rows(data), format)]
        if len(rows) != 1:
            raise InputError(f"{data} holds {len(rows)} rows: ask takes one at a time; give one")
        return rows[0], format
    format = format.of_kind("prompt_field")
    row: Row = {format.prompt_field: prompt}
    if images:
        format = replace(format, image_field=format.image_field or "image")
        row[format.image_field or ""] = list(images)
    return row, format


class Said:
    """Prints an answer word by word, after its prompt."""

    def __init__(self, sampling: Sampling, *, silent: bool) -> None:
        self._sampling = sampling
        self._silent = silent
        self._title = Text()
        self.begun = False

    def begin(self, row: Row, format: FormatConfig) -> None:
        """Notes the prompt, which is printed when the answer begins."""
        title = render.one_line(str(row.get(format.prompt_field, "")))
        if format.is_chat and title:
            title += "\n"
        self._title = Text.assemble(("? ", "yellow"), (title, "dim"))

    def word(self, word: str) -> None:
        """Prints a word of the answer."""
        lines = [render.one_line(line) for line in word.split("\n")]
        text = Text("\n".join(lines), style="bold")
        if not self.begun:
            text = self._title + text
        self.begun = True
        render.console().print(text, end="", soft_wrap=True)

    def end(self, cut_off: bool) -> None:
        """Ends the answer, and says if it was cut off."""
        if self._silent:
            return
        render.console().print("\n")
        if cut_off:
            most = self._sampling.max_new_tokens
            render.notes.print(f"The answer was cut off at --max-new-tokens {most}.")

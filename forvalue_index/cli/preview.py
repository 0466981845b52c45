"""`forvalue preview`: rows as the model will see them."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from forvalue_index.cli import render
from forvalue_index.cli.options.data import DataOptions, data_options
from forvalue_index.cli.options.format import format_for, format_of, format_options
from forvalue_index.cli.options.model import optional_model_options
from forvalue_index.cli.options.output import json_option
from forvalue_index.config import ModelConfig
from forvalue_index.errors import RowError

if TYPE_CHECKING:
    from forvalue_index.pipeline.preview import Preview

OPEN, CLOSE = "⟦", "⟧"
"""Around scored text, if there are no colours."""


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@optional_model_options
@click.option(
    "--index",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Or read rows as this index does, with its model and settings.",
)
@click.option("-n", default=3, show_default=True, type=click.IntRange(min=1), help="Rows to show.")
@data_options
@format_options
@json_option
def preview(
    data: tuple[str, ...],
    model: ModelConfig,
    directory: Path | None,
    n: int,
    source: DataOptions,
    fields: dict[str, Any],
    as_json: bool,
) -> None:
    """Show the first rows as the model will see them: special tokens, and what is scored.

    What is scored is highlighted, or put between ⟦ and ⟧ where there are no colours. Only the
    model's tokenizer is loaded; the options are those of build.

    \b
    Example:
      forvalue preview train.jsonl --model path/to/model
      forvalue preview chats.parquet --model path/to/model --last-turn -n 10
      forvalue preview questions.jsonl --index my.index
    """
    from forvalue_index.model.load import on_this_machine
    from forvalue_index.pipeline.preview import preview

    if bool(model.name) == (directory is not None):
        raise click.UsageError("give --model or --index")
    rows = source.rows(data)
    if directory is not None:
        from forvalue_index.index import InfluenceIndex

        trusted = model.trust_remote_code
        with InfluenceIndex.open(directory, trust_remote_code=trusted) as index:
            model = on_this_machine(index.config.model)
            format = format_of(index.config.format, fields)
    else:
        format = format_for(rows, fields)
    console, usable, said = render.console(), 0, list[str]()
    colour = console.color_system is not None and not console.no_color
    for shown in preview(rows, model, n=n, format=format):
        if isinstance(shown, RowError):
            render.notes.print(str(shown), style="red", markup=False, soft_wrap=True)
            continue
        usable += 1
        for note in (*shown.notes, _fields(shown)):
            if note not in said:
                said.append(note)
                render.notes.print(note, markup=False, soft_wrap=True)
        if as_json:
            render.json_line(asdict(shown))
        else:
            body = _body(shown, colour)
            body.rstrip()
            console.print(_head(shown), body, "", sep="\n", soft_wrap=True)
    if not usable:
        raise click.ClickException("none of these rows can be used")


def _fields(shown: Preview) -> str:
    """Returns which fields of a row are read as what, and which are not."""
    read = "; ".join(f"{name} as {use}" for name, use in shown.read.items())
    unused = f"; not read by the model: {', '.join(shown.unused)}" if shown.unused else ""
    return render.one_line(f"Fields: {read}{unused}")


def _head(shown: Preview) -> Text:
    cut = f", {shown.cut:,} more cut off" if shown.cut else ""
    counts = f"{len(shown.ids):,} tokens, {sum(shown.scored):,} scored{cut}"
    return Text.assemble((shown.source, "cyan"), (f"  {counts}", "dim"))


def _body(shown: Preview, colour: bool) -> Text:
    text = Text()
    if shown.rejected is not None:
        chosen, rejected = slice(0, shown.rejected), slice(shown.rejected, None)
        for title, own in (("chosen", chosen), ("rejected", rejected)):
            one = replace(shown, tokens=shown.tokens[own], scored=shown.scored[own], rejected=None)
            if one.tokens:
                text.append("\n" if text else "").append(f"{title}: ", style="cyan")
                text.append(_body(one, colour))
        return text
    tokens = zip(shown.scored, shown.tokens, strict=True)
    for scored, run in groupby(tokens, key=lambda token: token[0]):
        part = render.one_line("".join(token for _, token in run)).replace("⏎", "⏎\n")
        if scored and not colour:
            part = f"{OPEN}{part}{CLOSE}"
        text.append(part, style="bold black on green" if scored else "")
    return text

"""`forvalue search`: rows by their words."""

from __future__ import annotations

import click
from rich.text import Text

from forvalue_index.analysis.as_json import hit_json
from forvalue_index.cli import render
from forvalue_index.cli.options.data import where_option
from forvalue_index.cli.options.model import NOT_OPENED
from forvalue_index.cli.options.output import json_option, k_option
from forvalue_index.cli.options.server import Place, place_options


@click.command()
@place_options
@click.argument("words", nargs=-1, required=True)
@k_option(10, "Hits to show.")
@where_option
@json_option
def search(
    place: Place, words: tuple[str, ...], k: int, where: tuple[str, ...], as_json: bool
) -> None:
    """Show the training samples that have these words, the best first (BM25).

    Loads no model. To find where an answer came from, words and influence together do better:
    forvalue query --metric hybrid.

    \b
    Example:
      forvalue search --index my.index capital of France
      forvalue search --index my.index "refund policy" --where source=faq --json
    """
    text = " ".join(words)
    hits, format = place.ask(
        NOT_OPENED, lambda answers: (answers.search(text, k, where), answers.format)
    )
    if as_json:
        for hit in hits:
            render.json_line(hit_json(hit))
        return
    if not hits:
        such = " that meets the conditions" if where else ""
        render.notes.print(f"No sample{such} has any of these words: see `forvalue list`")
        return
    title = Text("? ", style="yellow") + Text(render.one_line(text))
    render.console().print(render.hits_table(hits, format, "lexical", title))

"""`forvalue query`: which samples drove an output."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from forvalue_index.analysis.as_json import hit_json
from forvalue_index.cli import highlight, render
from forvalue_index.cli.answers import Asked, Found
from forvalue_index.cli.options.format import field_options
from forvalue_index.cli.options.model import OpenOptions, opening_options, ray_option
from forvalue_index.cli.options.output import json_option, k_option
from forvalue_index.cli.options.query import (
    PartOptions,
    QueryOptions,
    SearchOptions,
    part_options,
    query_options,
    search_options,
)
from forvalue_index.cli.options.server import Place, place_options
from forvalue_index.config import FormatConfig


@click.command()
@place_options
@query_options
@field_options
@part_options
@k_option(10, "Hits per query.")
@search_options
@click.option(
    "--highlight",
    "highlighted",
    is_flag=True,
    help="Show which tokens of the hits carried the influence; runs query and hits again.",
)
@json_option
@opening_options
@ray_option
def query(
    place: Place,
    asked: QueryOptions,
    fields: dict[str, Any],
    part: PartOptions,
    k: int,
    search: SearchOptions,
    highlighted: bool,
    as_json: bool,
    opening: OpenOptions,
    ray: str | None,
) -> None:
    """Show the training samples that made a response more (or less) likely.

    The score is the influence: positive where training on the sample raised the log-likelihood of
    the response. With --data, the fields are those of the index unless they are named.

    \b
    Example:
      forvalue query --index my.index --prompt "Who wrote it?" --response " Ada." -k 5
      forvalue query --index my.index --prompt "Who?" --response " Ada." --instead " Bob."
      forvalue query --index my.index --data questions.jsonl --json > hits.jsonl
      forvalue query --index my.index --text "Once upon" --where source=web --exact
    """
    wanted = Asked(part, search, k, highlight=highlighted)
    plain = not fields and not asked.images and asked.data is None
    found, format = place.ask(
        opening,
        lambda answers: (answers.query(asked, fields, wanted), answers.format),
        ray=ray,
        plain=plain,
    )
    console = render.console()
    for one in found:
        if asked.response is not None:
            _note(one, format)
        if as_json:
            for rank, hit in enumerate(one.hits):
                render.json_line(hit_json(hit, one.passages[rank] if one.passages else None))
            continue
        title = Text("? ", style="yellow") + render.sample_text(one.row, one.format)
        if not one.hits:
            console.print(title)
            render.nothing(search.where)
            continue
        shown = None if one.passages is None else [*map(highlight.snippet, one.passages)]
        console.print(render.hits_table(one.hits, format, search.metric, title, shown))
        console.print()


def _note(found: Found, format: FormatConfig) -> None:
    """Says where a typed response lacks the space that the rows have before theirs."""
    from forvalue_index.data.notes import query_note

    note = query_note(found.row, found.format, [hit.sample for hit in found.hits], format)
    if note is not None:
        render.notes.print(note, markup=False, soft_wrap=True)

"""`forvalue explain`: through which tokens a training sample drove an output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.rule import Rule
from rich.text import Text

from forvalue_index.analysis.as_json import explanation_json
from forvalue_index.cli import highlight, render
from forvalue_index.cli.answers import Asked
from forvalue_index.cli.options.format import field_options
from forvalue_index.cli.options.model import OpenOptions, opening_options
from forvalue_index.cli.options.output import html_option, json_option
from forvalue_index.cli.options.query import (
    PartOptions,
    QueryOptions,
    SearchOptions,
    part_options,
    query_options,
    search_options,
)
from forvalue_index.cli.options.server import Place, place_options

if TYPE_CHECKING:
    from forvalue_index.data.upload import Destination
    from forvalue_index.records import Explanation


@click.command()
@place_options
@click.option("--key", metavar="KEY", help="Key of the training sample.")
@click.option(
    "--hit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Or the rank of the sample among the hits.  [default: 1]",
)
@query_options
@click.option(
    "--query",
    "number",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Which query of the file, counted from 0.",
)
@field_options
@part_options
@search_options
@click.option(
    "--pairs", default=10, show_default=True, type=click.IntRange(min=0), help="Pairs to list."
)
@html_option("Write a page with both texts and the heat map of all pairs.")
@json_option
@opening_options
def explain(
    place: Place,
    key: str | None,
    hit: int | None,
    asked: QueryOptions,
    number: int,
    fields: dict[str, Any],
    part: PartOptions,
    search: SearchOptions,
    pairs: int,
    html: Destination | None,
    as_json: bool,
    opening: OpenOptions,
) -> None:
    """Show through which tokens a training sample drove an output.

    The influence is a sum with a term for each pair of scored tokens, one of the query and one of
    the sample. These terms are exact: both are run forward again, and no stored vector is used.
    Green tokens raised the likelihood of the response, red ones lowered it, dim ones are not
    scored.

    \b
    Example:
      forvalue explain --index my.index --prompt "Who wrote it?" --response " Ada." --key row-17
      forvalue explain --index my.index --data questions.jsonl --hit 2 --html why.html
      forvalue explain --index my.index --prompt "Who?" --response " Ada Byron." --span Byron
    """
    from forvalue_index.data.upload import require_writable

    if key is not None and hit is not None:
        raise click.UsageError("give --key or --hit, not both")
    require_writable((html,), asked.allow_remote)
    wanted = Asked(part, search, hit or 1)
    plain = not fields and not asked.images and asked.data is None
    explanation = place.ask(
        opening, lambda answers: answers.explain(asked, fields, wanted, number, key), plain=plain
    )
    if html is not None:
        _write(html, explanation, asked.allow_remote)
    if as_json:
        render.json_line(explanation_json(explanation))
    else:
        _show(explanation, pairs)


def _write(html: Destination, explanation: Explanation, allow_remote: bool) -> None:
    from forvalue_index.analysis.heatmap import heatmap
    from forvalue_index.data.upload import written
    from forvalue_index.data.writers import write_text

    with written(html, allow_remote) as file:
        write_text(file, heatmap(explanation))
    render.notes.print(f"{escape(str(html))} written: open it in a browser")


def _show(explanation: Explanation, pairs: int) -> None:
    console = render.console()
    score = explanation.score
    console.print(
        Text.assemble(
            "influence ",
            (f"{score:+.4g}", "bold green" if score >= 0 else "bold red"),
            (f" (exact) of {render.one_line(explanation.key)}", ""),
        )
    )
    for title, passage in (("query", explanation.query), ("sample", explanation.sample)):
        console.print(Rule(title, align="left", style="dim"))
        console.print(highlight.whole(passage))
    if pairs:
        console.print(Rule("the pairs of tokens that count most", align="left", style="dim"))
        console.print(highlight.pairs(explanation, pairs))

"""`forvalue query`: which samples drove an output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from forvalue_index.analysis.as_json import hit_json
from forvalue_index.cli import highlight, render
from forvalue_index.cli.options.data import index_option
from forvalue_index.cli.options.format import field_options, format_of
from forvalue_index.cli.options.model import OpenOptions, opening_options
from forvalue_index.cli.options.output import json_option, k_option
from forvalue_index.cli.options.query import (
    PartOptions,
    QueryOptions,
    SearchOptions,
    part_options,
    query_options,
    search_options,
)

if TYPE_CHECKING:
    from forvalue_index.records import Hit


@click.command()
@index_option
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
def query(
    directory: Path,
    asked: QueryOptions,
    fields: dict[str, Any],
    part: PartOptions,
    k: int,
    search: SearchOptions,
    highlighted: bool,
    as_json: bool,
    opening: OpenOptions,
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
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory, **opening) as index:
        queries, format = asked.rows(format_of(index.config.format, fields))
        samples = [part(index, sample) for sample in index.samples(queries, format)]
        hits = search(index, samples, k)
        console = render.console()
        by_query: dict[int, list[Hit]] = {}
        for hit in hits:
            by_query.setdefault(hit.query, []).append(hit)
        for number, sample in enumerate(samples):
            own = by_query.get(number, [])
            texts = index.contributions(sample, own) if highlighted else None
            if as_json:
                for place, hit in enumerate(own):
                    render.json_line(hit_json(hit, texts[place] if texts else None))
                continue
            title = Text("? ", style="yellow") + render.sample_text(sample.row, format)
            shown = None if texts is None else [highlight.snippet(passage) for passage in texts]
            console.print(render.hits_table(own, index.config.format, search.metric, title, shown))
            console.print()

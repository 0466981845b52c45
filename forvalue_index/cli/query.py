"""`forvalue query`: which samples drove an output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from forvalue_index.cli import passages, render
from forvalue_index.cli.asked import (
    Asked,
    Part,
    Search,
    part_options,
    query_options,
    search_options,
)
from forvalue_index.cli.options import (
    Opening,
    field_options,
    format_of,
    index_option,
    json_option,
    opening_options,
)


@click.command()
@index_option
@query_options
@field_options
@part_options
@click.option(
    "-k", default=10, show_default=True, type=click.IntRange(min=1), help="Hits per query."
)
@search_options
@click.option(
    "--highlight",
    is_flag=True,
    help="Show which tokens of the hits carried the influence; runs query and hits again.",
)
@json_option
@opening_options
def query(
    directory: Path,
    asked: Asked,
    fields: dict[str, Any],
    part: Part,
    k: int,
    search: Search,
    highlight: bool,
    as_json: bool,
    opening: Opening,
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
        for number, sample in enumerate(samples):
            own = [hit for hit in hits if hit.query == number]
            texts = index.contributions(sample, own) if highlight else None
            if as_json:
                for place, hit in enumerate(own):
                    named = passages.hit_json(hit, texts[place]) if texts else render.hit_json(hit)
                    render.json_line(named)
                continue
            title = Text("? ", style="yellow") + render.sample_text(sample.row, format)
            shown = None if texts is None else [passages.snippet(passage) for passage in texts]
            console.print(render.hits_table(own, index.config.format, search.metric, title, shown))
            console.print()

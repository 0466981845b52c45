"""`forvalue query`: which samples drove an output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from rich.text import Text

from forvalue_index.cli import render
from forvalue_index.cli.options import (
    device_option,
    field_options,
    format_of,
    index_option,
    json_option,
    model_option,
    trust_option,
    where_option,
)
from forvalue_index.config import RANKS


@click.command()
@index_option
@click.option("--prompt", metavar="TEXT", help="What the model was asked.")
@click.option("--response", metavar="TEXT", help="What it answered, or should have.")
@click.option("--text", metavar="TEXT", help="Plain text instead of the two.")
@click.option("--data", metavar="FILE", help="A JSON Lines file of queries (- is standard input).")
@field_options
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="Hits a query.")
@click.option("--opponents", is_flag=True, help="Those that made the response less likely.")
@click.option(
    "--rank",
    type=click.Choice(RANKS),
    default="dot",
    show_default=True,
    help="dot: the influence; cosine: free of both lengths; per-token: per scored token of both.",
)
@where_option
@click.option("--exact", is_flag=True, help="Run the best candidates again for exact scores.")
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many of them.  [default: 10 k]",
)
@click.option("--flat", is_flag=True, help="Compare every vector, without a derived index.")
@json_option
@model_option
@device_option
@trust_option
def query(
    directory: Path,
    prompt: str | None,
    response: str | None,
    text: str | None,
    data: str | None,
    prompt_field: str | None,
    response_field: str | None,
    text_field: str | None,
    k: int,
    opponents: bool,
    rank: str,
    where: tuple[str, ...],
    exact: bool,
    candidates: int | None,
    flat: bool,
    as_json: bool,
    model: str | None,
    device: str | None,
    trust_remote_code: bool,
) -> None:
    """Show the training samples that made a response more (or less) likely.

    The score is the influence: positive where training on the sample raised the log-likelihood of
    the response. With --data, the fields are those of the index unless they are named.

    \b
    Example:
      forvalue query --index my.index --prompt "Who wrote it?" --response " Ada." -k 5
      forvalue query --index my.index --data questions.jsonl --json > hits.jsonl
      forvalue query --index my.index --text "Once upon" --where source=web --exact
    """
    from forvalue_index.data.readers import open_rows
    from forvalue_index.index import InfluenceIndex

    given = [response is not None or prompt is not None, text is not None, data is not None]
    if sum(given) != 1 or (prompt is not None and response is None):
        raise click.UsageError("give --prompt and --response, or --text, or --data FILE")
    with InfluenceIndex.open(
        directory, model=model, device=device, trust_remote_code=trust_remote_code
    ) as index:
        format = format_of(index.config.format, prompt_field, response_field, text_field)
        if data is not None:
            queries = open_rows(data)
        elif text is not None:
            format = replace(format, text_field=format.text_field or "text")
            queries = open_rows({format.text_field or "": text})
        else:
            format = replace(format, text_field=None)
            queries = open_rows(
                {format.prompt_field: prompt or "", format.response_field: response}
            )
        hits = index.query(
            queries,
            k,
            opponents=opponents,
            rank=rank,
            where=where,
            exact=exact,
            candidates=candidates,
            flat=flat,
            format=format,
        )
        if as_json:
            render.hits_json(hits)
            return
        console = render.console()
        for number, (_, row) in enumerate(queries):
            title = Text("? ", style="yellow") + render.sample_text(row, format)
            own = [hit for hit in hits if hit.query == number]
            console.print(render.hits_table(own, index.config.format, title))
            console.print()

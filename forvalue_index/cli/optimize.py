"""`forvalue optimize`: a derived FAISS index, for large indexes."""

from __future__ import annotations

from pathlib import Path

import click

from forvalue_index.cli import render
from forvalue_index.cli.options.data import index_option
from forvalue_index.cli.options.number import FiniteRange
from forvalue_index.cli.options.output import json_option
from forvalue_index.cli.progress import progress_bar
from forvalue_index.metric import DERIVED


@click.command()
@index_option
@click.option(
    "--factory",
    metavar="STRING",
    help="A FAISS factory string, such as IVF1024,SQ8.  [default: by the number and size of the "
    "vectors, and the memory]",
)
@click.option(
    "--metric",
    type=click.Choice(DERIVED),
    default="dot",
    show_default=True,
    help="Metric of the queries that it serves; dot also serves decorrelated.",
)
@click.option(
    "--memory",
    type=FiniteRange(min=0, min_open=True),
    metavar="GB",
    help="Memory it may take.  [default: half of all that this process may take]",
)
@json_option
def optimize(
    directory: Path,
    factory: str | None,
    metric: str,
    memory: float | None,
    as_json: bool,
) -> None:
    """Make a derived FAISS index, which queries use from then on.

    It proposes candidates, which are scored with the stored vectors, so scores stay the same; its
    recall against comparing every vector is measured when it is made. add, remove and compact keep
    it current. It can be rebuilt at any time, and `query --flat` searches without it.

    \b
    Example:
      forvalue optimize --index my.index
      forvalue optimize --index my.index --factory IVF1024,SQ8 --metric cosine
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory) as index, progress_bar() as progress:
        made, reason = index.optimize(
            factory,
            metric=metric,
            memory=None if memory is None else int(memory * 2**30),
            progress=lambda stage, done, total: progress(stage, done, total, 0),
        )
    if as_json:
        render.json_line({"reason": reason, "derived": made and made.to_json()})
        return
    if made is None:
        render.notes.print(f"No derived index: {reason}.", markup=False)
        return
    render.notes.print(f"{made.factory}: {reason}.", markup=False)
    render.console().print(render.derived(made))

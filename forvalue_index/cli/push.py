"""`forvalue push`: an index on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click

from forvalue_index.cli import render


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="INDEX")
@click.argument("repo", metavar="ORG/NAME")
@click.option("--no-rows", is_flag=True, help="Leave the rows out: keys, figures and vectors only.")
@click.option(
    "--license",
    default="unknown",
    show_default=True,
    metavar="ID",
    help="Licence of the rows, as the hub names them, such as apache-2.0.",
)
@click.option(
    "--base-model",
    metavar="ID",
    help="Hub id of the model, if the index names a folder of this machine.",
)
@click.option("--public", is_flag=True, help="Make a repository that everybody can read.")
def push(
    directory: Path, repo: str, no_rows: bool, license: str, base_model: str | None, public: bool
) -> None:
    """Put a copy of an index on the Hugging Face hub, with a card that says what is in it.

    It becomes a dataset repository, private if it is new and not --public. The rows are in it,
    unless --no-rows; vectors, losses and lengths still tell something of them. What was removed is
    left out. Files that are on the hub already are not sent again: a push that was interrupted
    continues.

    \b
    Example:
      forvalue push my.index me/my-index --license apache-2.0 --base-model me/my-model
      forvalue push my.index me/my-index --no-rows --public
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory) as index:
        done = index.push(
            repo, rows=not no_rows, license=license, base_model=base_model, public=public
        )
    rows = "with" if done.rows else "without"
    render.notes.print(f"{done.samples:,} samples, {rows} their rows: {done.url}", markup=False)

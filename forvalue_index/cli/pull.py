"""`forvalue pull`: an index from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click

from forvalue_index.cli import render


@click.command()
@click.argument("repo", metavar="ORG/NAME")
@click.argument("directory", type=click.Path(path_type=Path), metavar="INDEX")
@click.option("--commit", metavar="REVISION", help="Branch, tag or commit.  [default: the newest]")
def pull(repo: str, directory: Path, commit: str | None) -> None:
    """Fetch an index from the Hugging Face hub into a new directory.

    An interrupted pull, run again, continues. The index is not trusted: nothing that it names is
    run or fetched, and its model is what you give as --model.

    \b
    Example:
      forvalue pull me/my-index my.index
      forvalue query --index my.index --model me/my-model --prompt "Who?" --response " Ada."
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(InfluenceIndex.pull(repo, directory, revision=commit)) as index:
        render.notes.print(f"{len(index):,} samples in {directory}", markup=False)

"""Options of data: which rows are read, and which samples of an index."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forvalue_index.cli.options.group import F, Option, grouped
from forvalue_index.config import ON_ERROR
from forvalue_index.metric import METRICS
from forvalue_index.system.files import read_text

if TYPE_CHECKING:
    from forvalue_index.data.rows import Rows

index_option = click.option(
    "--index",
    "directory",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory of the index.",
)
where_option = click.option(
    "--where",
    multiple=True,
    metavar="CONDITION",
    help='Only samples that meet this condition: "source=math", "year>2020", "lang in de,fr".',
)
metric_option = click.option(
    "--metric",
    type=click.Choice(list(METRICS)),
    default="dot",
    show_default=True,
    help="dot: the influence; cosine: without the size of the two gradients, best for finding "
    "sources; per-token: per scored token of both texts; decorrelated: what many samples share "
    "counts less, best for predicting what training on a choice of rows does; lexical: shared "
    "words; hybrid: words, cosine and state, best for finding where something came from.",
)


def combine_option(default: str) -> Option:
    """Returns the option of how scores for all targets become one value."""
    return click.option(
        "--combine",
        type=click.Choice(["mean", "max", "each"]),
        default=default,
        show_default=True,
        help="How the scores for all targets become one value; each: the highest share of a "
        "target's best score, so that every target counts the same.",
    )


targets_option = click.option(
    "--data",
    required=True,
    metavar="TARGETS",
    help="What the model should do well: a file of rows (- is stdin), or anything build reads.",
)
seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the random draws."
)
on_error_option = click.option(
    "--on-error",
    type=click.Choice(ON_ERROR),
    default="stop",
    show_default=True,
    help="What to do at an unusable row; skipped rows are listed in DIR/rejects.jsonl.",
)
remote_option = click.option(
    "--allow-remote",
    is_flag=True,
    help="Let URLs lead to other machines: those of data files, of images (which are kept in the "
    "index with their training rows) and of results.",
)

DATA: list[Option] = [
    click.option("--split", metavar="NAME", help="Split of the data set, such as train."),
    click.option("--subset", metavar="NAME", help="Configuration of a data set on the hub."),
    remote_option,
]


@dataclass(frozen=True)
class DataOptions:
    """Which part of a data set is read, and whether other machines may be reached."""

    split: str | None
    subset: str | None
    allow_remote: bool

    def rows(self, data: str | Sequence[str]) -> Rows:
        """Returns the rows of files, patterns, a data set folder or a hub id."""
        from forvalue_index.data.sources import open_rows

        places = data if isinstance(data, str) else list(data)
        return open_rows(
            places, split=self.split, subset=self.subset, allow_remote=self.allow_remote
        )


def data_options(command: F) -> F:
    """Adds the options of how data are read; the command gets `DataOptions` as `source`."""
    return grouped(command, DATA, "source", DataOptions)


def content(context: click.Context, param: click.Parameter, path: Path | None) -> str | None:
    """Returns the text of the file that an option names; - is standard input."""
    return None if path is None else _text(path, param.get_error_hint(context))


def content_at(name: str, option: str, allow_remote: bool) -> str:
    """Returns the text of the file, or at the URL, that an option names; - is standard input."""
    from forvalue_index.data.fetch import fetched_text, is_url

    return fetched_text(name, allow_remote) if is_url(name) else _text(Path(name), f"'{option}'")


def _text(path: Path, hint: str) -> str:
    if path == Path("-"):
        return sys.stdin.read()
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise click.BadParameter(f"cannot read {path}: {reason}", param_hint=hint) from None

"""Options of a query: what it is, which part of its response counts, and which hits are wanted."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import click

from forvalue_index.cli.options.data import DATA, DataOptions, metric_option, where_option
from forvalue_index.cli.options.group import F, Option, grouped
from forvalue_index.config import FormatConfig
from forvalue_index.data.preferences import INSTEAD, with_rejected
from forvalue_index.metric import metric_of

if TYPE_CHECKING:
    from forvalue_index.data.rows import Rows
    from forvalue_index.index import InfluenceIndex
    from forvalue_index.records import Hit, Row, Sample


def _slice(_: click.Context, __: click.Parameter, value: str | None) -> slice | None:
    if value is None:
        return None
    start, colon, stop = value.partition(":")
    try:
        if not colon:
            raise ValueError
        return slice(int(start) if start else 0, int(stop) if stop else None)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a range such as 0:5, 3: or -4:") from None


_QUERY: list[Option] = [
    click.option("--prompt", metavar="TEXT", help="What the model was asked."),
    click.option("--response", metavar="TEXT", help="What it answered, or should have."),
    click.option("--text", metavar="TEXT", help="Plain text instead of prompt and response."),
    click.option(
        "--instead",
        metavar="TEXT",
        help="Ask why this answer and not another one, TEXT: the difference of both influences.",
    ),
    click.option(
        "--image",
        "images",
        multiple=True,
        metavar="FILE",
        help="An image that goes with the prompt (repeatable).",
    ),
    click.option("--label", metavar="NAME", help="Class of the text, for a sequence classifier."),
    click.option(
        "--data", metavar="FILE", help="Queries: a file that `build` can read, or - (stdin)."
    ),
    *DATA,
]
_PART: list[Option] = [
    click.option("--span", metavar="TEXT", help="Ask about this part of the response only."),
    click.option(
        "--tokens",
        metavar="A:B",
        callback=_slice,
        help="Ask only about tokens A to B of the response, counted from 0, without B.",
    ),
]
_SEARCH: list[Option] = [
    click.option(
        "--opponents", is_flag=True, help="Show samples that made the response less likely."
    ),
    metric_option,
    where_option,
    click.option("--exact", is_flag=True, help="Run the best candidates again, for exact scores."),
    click.option(
        "--candidates",
        type=click.IntRange(min=1),
        metavar="N",
        help="How many candidates --exact runs.  [default: as many as needed]",
    ),
    click.option("--flat", is_flag=True, help="Compare every vector, without a derived index."),
]


@dataclass(frozen=True)
class QueryOptions:
    """The queries of a command: one that was typed, or a file of them."""

    prompt: str | None
    response: str | None
    text: str | None
    instead: str | None
    images: tuple[str, ...]
    label: str | None
    data: str | None
    split: str | None
    subset: str | None
    allow_remote: bool

    def __post_init__(self) -> None:
        typed = self.response is not None or self.prompt is not None
        given = [typed, self.text is not None, self.data is not None]
        if self.prompt is not None and self.response is None:
            raise click.UsageError(
                "give --response too: what is asked about; the model's own answer is what "
                "forvalue ask is about"
            )
        if sum(given) != 1:
            raise click.UsageError("give --prompt and --response, or --text, or --data FILE")
        if self.response == "" or self.text == "":
            raise click.UsageError("the text that is asked about is empty: write some")
        if self.instead is not None and (self.data is not None or self.label is not None):
            raise click.UsageError(
                "--instead goes with --response or --text; name --rejected-field for rows of --data"
            )
        if self.data is not None and self.label is not None:
            raise click.UsageError(
                "--label goes with --text or --prompt; a row of --data has its own"
            )
        if self.images and self.data is not None:
            raise click.UsageError(
                "--image goes with --prompt or --text; a row of --data has its own"
            )

    def rows(self, format: FormatConfig) -> tuple[Rows, FormatConfig]:
        """Returns the queries as rows, and their format, given that of the index."""
        from forvalue_index.data.sources import open_rows
        from forvalue_index.data.token_rows import query_format

        if self.data is not None:
            rows = DataOptions(self.split, self.subset, self.allow_remote).rows(self.data)
            first = next((row for _, row in rows.outcomes() if isinstance(row, dict)), {})
            return rows, query_format(first, format)
        if (self.label is None) != (format.label_field is None):
            wanted = "give --label too" if self.label is None else "leave out --label"
            kind = "a classifier's" if self.label is None else "not a classifier's"
            raise click.UsageError(f"the index is {kind}: {wanted}")
        more: Row = {} if format.label_field is None else {format.label_field: self.label}
        if self.images:
            format = replace(format, image_field=format.image_field or "image")
            more[format.image_field or ""] = list(self.images)
        if self.instead is not None:
            more[INSTEAD] = self.instead
        if self.text is not None:
            field = format.text_field or "text"
            format = self._contrasted(replace(format.of_kind("text_field"), text_field=field))
            return open_rows({field: self.text} | more, allow_remote=self.allow_remote), format
        row: Row = {format.prompt_field: self.prompt or "", format.response_field: self.response}
        typed = open_rows(row | more, allow_remote=self.allow_remote)
        return typed, self._contrasted(format.of_kind("prompt_field"))

    def _contrasted(self, format: FormatConfig) -> FormatConfig:
        return format if self.instead is None else with_rejected(format)


@dataclass(frozen=True)
class SearchOptions:
    """Which samples are hits: keywords of `InfluenceIndex.query`."""

    opponents: bool
    metric: str
    where: tuple[str, ...]
    exact: bool
    candidates: int | None
    flat: bool

    def __post_init__(self) -> None:
        metric_of(self.metric, exact=self.exact, linear=self.opponents)  # before a model is loaded

    def __call__(self, index: InfluenceIndex, queries: list[Sample], k: int) -> list[Hit]:
        """Returns the hits of queries."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        return index.query(queries, k, **options)


@dataclass(frozen=True)
class PartOptions:
    """Which part of a response counts."""

    span: str | None
    tokens: slice | None

    def __post_init__(self) -> None:
        if self.span is not None and self.tokens is not None:
            raise click.UsageError("give --span or --tokens, not both")

    def __call__(self, index: InfluenceIndex, sample: Sample) -> Sample:
        """Returns the query with that part scored; as it is, if no part was named."""
        if self.span is None and self.tokens is None:
            return sample
        return index.part(sample, self.span, tokens=self.tokens)


def query_options(command: F) -> F:
    """Adds the options that give a query; the command gets `QueryOptions` as `asked`."""
    return grouped(command, _QUERY, "asked", QueryOptions)


def search_options(command: F) -> F:
    """Adds the options of which samples are hits; the command gets them as `search`."""
    return grouped(command, _SEARCH, "search", SearchOptions)


def part_options(command: F) -> F:
    """Adds the options that name a part of a response; the command gets them as `part`."""
    return grouped(command, _PART, "part", PartOptions)

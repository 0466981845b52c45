"""What query, ask, explain and search find: by an index that is open here, or by a server of it.

Both answer the same. A server on this machine finds, and what is shown of rows is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from forvalue_index.cli.options.format import format_of
from forvalue_index.config import FormatConfig, IndexConfig
from forvalue_index.errors import ForvalueError, InputError
from forvalue_index.records import Hit, Passage, Row, Sample

if TYPE_CHECKING:
    from forvalue_index.cli.options.query import PartOptions, QueryOptions, SearchOptions
    from forvalue_index.client import InfluenceClient
    from forvalue_index.index import InfluenceIndex
    from forvalue_index.model.generation import Sampling
    from forvalue_index.records import Explanation


@dataclass(frozen=True)
class Found:
    """A query with its hits."""

    row: Row
    format: FormatConfig  # of the query
    hits: list[Hit]
    passages: list[Passage] | None  # of the hits, if they were wanted


@dataclass(frozen=True)
class Asked:
    """What is wanted of a query: which part of it counts, and which hits."""

    part: PartOptions
    search: SearchOptions
    k: int
    instead: str | None = None
    highlight: bool = False


class Answers(Protocol):
    """An index that answers."""

    format: FormatConfig  # of the index

    def query(self, asked: QueryOptions, fields: dict[str, Any], wanted: Asked) -> list[Found]:
        """Returns the queries with their hits."""

    def explain(
        self,
        asked: QueryOptions,
        fields: dict[str, Any],
        wanted: Asked,
        number: int,
        key: str | None,
    ) -> Explanation:
        """Returns how a sample, or the hit of rank `wanted.k`, drove query `number`."""

    def ask(
        self,
        row: Row,
        format: FormatConfig,
        sampling: Sampling,
        wanted: Asked,
        report: Callable[[str], None] | None,
        answered: Callable[[bool], None],
    ) -> Found:
        """Returns the answered row with its hits; `answered` is called in between."""

    def search(self, words: str, k: int, where: Sequence[str]) -> list[Hit]:
        """Returns the rows that share most with a text."""


class LocalAnswers:
    """An index that is open in this process."""

    def __init__(self, index: InfluenceIndex) -> None:
        self._index = index
        self.format = index.config.format

    def query(self, asked: QueryOptions, fields: dict[str, Any], wanted: Asked) -> list[Found]:
        """Returns the queries with their hits."""
        rows, format = asked.rows(format_of(self.format, fields))
        samples = [wanted.part(self._index, sample) for sample in self._index.samples(rows, format)]
        by_query: dict[int, list[Hit]] = {}
        for hit in wanted.search(self._index, samples, wanted.k):
            by_query.setdefault(hit.query, []).append(hit)
        return [
            self._found(sample, format, by_query.get(number, []), wanted)
            for number, sample in enumerate(samples)
        ]

    def explain(
        self,
        asked: QueryOptions,
        fields: dict[str, Any],
        wanted: Asked,
        number: int,
        key: str | None,
    ) -> Explanation:
        """Returns how a sample, or the hit of rank `wanted.k`, drove query `number`."""
        rows, format = asked.rows(format_of(self.format, fields))
        queries = self._index.samples(rows, format)
        query = wanted.part(self._index, _numbered(queries, number))
        if key is None:
            key = _ranked(wanted.search(self._index, [query], wanted.k), wanted.k)
        return self._index.explain(query, key)

    def ask(
        self,
        row: Row,
        format: FormatConfig,
        sampling: Sampling,
        wanted: Asked,
        report: Callable[[str], None] | None,
        answered: Callable[[bool], None],
    ) -> Found:
        """Returns the answered row with its hits; `answered` is called in between."""
        sample = self._index.respond(row, sampling, format=format, report=report)
        answered(sample.n_scored == sampling.max_new_tokens)
        query = sample
        if wanted.instead is not None:
            query = self._index.instead(query, wanted.instead, format=format)
        query = wanted.part(self._index, query)
        hits = wanted.search(self._index, [query], wanted.k)
        return replace(self._found(query, format, hits, wanted), row=sample.row)

    def search(self, words: str, k: int, where: Sequence[str]) -> list[Hit]:
        """Returns the rows that share most with a text."""
        return self._index.search(words, k, where=where)

    def _found(self, sample: Sample, format: FormatConfig, hits: list[Hit], wanted: Asked) -> Found:
        passages = self._index.contributions(sample, hits) if wanted.highlight else None
        return Found(sample.row, format, hits, passages)


class ServerAnswers:
    """An index behind a server; with `index`, which is open here too, rows are read from it."""

    def __init__(self, client: InfluenceClient, index: InfluenceIndex | None = None) -> None:
        self._client = client
        self._index = index
        if index is None:
            self.format = IndexConfig.from_json(client.info()["config"]).format
        else:
            self.format = index.config.format

    def query(self, asked: QueryOptions, fields: dict[str, Any], wanted: Asked) -> list[Found]:
        """Returns the queries with their hits."""
        found = []
        for number, (body, row, format) in enumerate(self._queries(asked, fields)):
            answer = self._client.call("POST", "query", body | _options(wanted))
            hits, passages = self._hits(answer["hits"], wanted.highlight)
            hits = [replace(hit, query=number) for hit in hits]
            found.append(Found(row, format, hits, passages))
        if not found:
            raise InputError("there are no queries in the data: give rows to ask about")
        return found

    def explain(
        self,
        asked: QueryOptions,
        fields: dict[str, Any],
        wanted: Asked,
        number: int,
        key: str | None,
    ) -> Explanation:
        """Returns how a sample, or the hit of rank `wanted.k`, drove query `number`."""
        from forvalue_index.analysis.as_json import explanation_of, hit_of

        body, _, _ = _numbered([*self._queries(asked, fields)], number)
        if key is None:
            answer = self._client.call("POST", "query", body | _options(wanted))
            key = _ranked([*map(hit_of, answer["hits"])], wanted.k)
        part = _part(wanted.part)
        return explanation_of(self._client.call("POST", "explain", body | part | {"key": key}))

    def ask(
        self,
        row: Row,
        format: FormatConfig,
        sampling: Sampling,
        wanted: Asked,
        report: Callable[[str], None] | None,
        answered: Callable[[bool], None],
    ) -> Found:
        """Returns the answered row with its hits; `answered` is called in between."""
        asked = {name: value for name, value in _options(wanted).items() if name != "highlight"}
        k = asked.pop("k")
        prompt: Row | str = sendable_row(row, format)
        if set(row) == {format.prompt_field}:
            prompt = row[format.prompt_field]
        answer = self._client.ask(
            prompt, k, report=report, answered=answered, **asked, **asdict(sampling)
        )
        return Found(answer.row, format, self._own(answer.hits), answer.passages)

    def search(self, words: str, k: int, where: Sequence[str]) -> list[Hit]:
        """Returns the rows that share most with a text."""
        return self._own(self._client.search(words, k, where=where))

    def _queries(
        self, asked: QueryOptions, fields: dict[str, Any]
    ) -> Iterator[tuple[dict[str, Any], Row, FormatConfig]]:
        """Yields the queries as the API takes them, as rows, and the formats of these."""
        if fields:
            raise click.UsageError("the fields of queries to a server are those of its index")
        rows, format = asked.rows(self.format)
        names = ("prompt", "response", "text", "label", "instead")
        given = {name: getattr(asked, name) for name in names}
        typed = {name: value for name, value in given.items() if value is not None}
        for _, row in rows:
            body: dict[str, Any] = {
                name: value for name, value in typed.items() if value is not None
            }
            if asked.data is not None:
                body = {"row": sendable_row(row, format)}
            elif asked.images:
                sent = sendable_row(row, format)
                body["images"] = sent[format.image_field or ""]
            yield body, row, format

    def _hits(
        self, found: list[dict[str, Any]], highlight: bool
    ) -> tuple[list[Hit], list[Passage] | None]:
        from forvalue_index.analysis.as_json import hit_of, passage_of

        passages = [*map(passage_of, found)] if highlight else None
        return self._own([*map(hit_of, found)]), passages

    def _own(self, hits: list[Hit]) -> list[Hit]:
        """Returns hits with their rows as they are here; of one that is gone, as it came."""
        if self._index is None:
            return hits
        try:
            rows = {stored.id: stored.row for stored in self._index.stored(hit.id for hit in hits)}
        except ForvalueError:
            return hits
        return [replace(hit, sample=rows.get(hit.id, hit.sample)) for hit in hits]


def sendable_row(row: Row, format: FormatConfig) -> Row:
    """Returns a row with its images in it, and not where they are.

    Raises:
        RowError: an image cannot be read.
    """
    from forvalue_index.data.images import of_pictures, settle
    from forvalue_index.picture import Picture, read

    def sent(value: dict[str, Any]) -> bytes:
        picture = Picture.from_json(value)
        return picture.data or read(Path(str(picture.path)), "the query")

    return of_pictures(settle(row, "the query", format), format, sent)


def _options(wanted: Asked) -> dict[str, Any]:
    """Returns what is wanted as fields of a request."""
    more = {} if wanted.instead is None else {"instead": wanted.instead}
    return (
        {"k": wanted.k, "highlight": wanted.highlight}
        | asdict(wanted.search)
        | more
        | _part(wanted.part)
    )


def _part(part: PartOptions) -> dict[str, Any]:
    found: dict[str, Any] = {} if part.span is None else {"span": part.span}
    return found if part.tokens is None else found | {"tokens": part.tokens}


def _numbered(queries: Sequence[Any], number: int) -> Any:
    if number >= len(queries):
        raise InputError(
            f"no query {number}: the data hold {len(queries)}, counted from 0; name one of them"
        )
    return queries[number]


def _ranked(hits: Sequence[Hit], rank: int) -> str:
    if len(hits) < rank:
        raise InputError(
            f"the query has {len(hits)} hits, so there is no hit {rank}: name one of them"
        )
    return hits[rank - 1].key

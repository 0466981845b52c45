"""An index that a server serves, with the methods of an open one.

It needs no model, and neither torch nor faiss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from forvalue_index.analysis.as_json import explanation_of, hit_of, passage_of
from forvalue_index.connection import Connection
from forvalue_index.errors import InputError, ServerError
from forvalue_index.records import (
    Explanation,
    Hit,
    Hits,
    Passage,
    Progress,
    Row,
    StoredSample,
    listed,
)

PAGE = 200  # rows of one request
POLL = 0.3  # seconds between two looks at a job


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model answered, and the training samples behind it."""

    row: Row  # with the answer
    response: str
    cut_off: bool  # at `max_new_tokens`
    hits: list[Hit]
    passages: list[Passage]  # of the hits: their tokens, and what each contributed


class InfluenceClient:
    """An index behind `forvalue serve`. Use it in a `with` block or close it.

    A query is a row in the form of the index's rows. Images in it are bytes, base64 or data: URIs:
    the server reads no files. Threads need a client each.

    Args:
        url: such as "http://localhost:8765", or "unix:/path/of/a.sock".
        token: that the server was started with, if it needs one and the address does not have it.
        timeout: seconds that an answer may take to begin, or a part of it to come.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 300) -> None:
        address, _, given = url.partition("#token=")  # as `forvalue serve` prints it
        self._connection = Connection(address, given or token, timeout)
        self.call = self._connection.call

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> InfluenceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.info()["samples"])

    def health(self) -> dict[str, Any]:
        """Returns whether the server works, and whether its model is loaded."""
        return self.call("GET", "health")

    def info(self) -> dict[str, Any]:
        """Returns what the index holds and what it was made with."""
        return self.call("GET", "info")

    def rows(
        self, where: str | Iterable[str] = (), *, after: int = -1, limit: int | None = None
    ) -> Iterator[StoredSample]:
        """Yields the samples that meet all conditions, by id: `limit` of those `after` an id."""
        left = limit
        while left is None or left > 0:
            n = PAGE if left is None else min(left, PAGE)
            page = self.call("GET", "rows", where=listed(where), after=after, limit=n)
            for row in page["rows"]:
                yield StoredSample(**row)
                after = row["id"]
            if not page["more"]:
                return
            left = None if left is None else left - n

    def get(self, key: str) -> StoredSample:
        """Returns the sample under a key; raises InputError if there is none."""
        return StoredSample(**self.call("GET", "row", key=key))

    def search(self, words: str, k: int = 10, *, where: str | Iterable[str] = ()) -> Hits:
        """Returns the k rows that share most with a text, by BM25."""
        found = self.call("GET", "search", words=words, k=k, where=listed(where))
        return Hits(map(hit_of, found["hits"]))

    @overload
    def query(
        self,
        data: Row | Sequence[Row],
        k: int = 10,
        *,
        highlight: Literal[False] = False,
        **options: Any,
    ) -> Hits: ...

    @overload
    def query(
        self, data: Row | Sequence[Row], k: int = 10, *, highlight: Literal[True], **options: Any
    ) -> list[tuple[Hit, Passage]]: ...

    def query(
        self,
        data: Row | Sequence[Row],
        k: int = 10,
        *,
        highlight: bool = False,
        **options: Any,
    ) -> Hits | list[tuple[Hit, Passage]]:
        """Returns the k samples that most raised the likelihood of each query's response.

        Args:
            data: a row, or rows.
            k: hits per query.
            highlight: return each hit with its tokens and what each contributed.
            options: `opponents`, `metric`, `where`, `exact`, `candidates` and `flat`, as in
                `InfluenceIndex.query`; `span` or `tokens` (a slice), the part of the response that
                counts; `instead`, another answer: the difference of both influences.
        """
        found: list[tuple[Hit, Passage]] = []
        for number, row in enumerate([data] if isinstance(data, dict) else data):
            asked = {"row": row, "k": k, "highlight": highlight} | _given(options)
            for hit in self.call("POST", "query", asked)["hits"]:
                one = hit_of(hit | {"query": number})
                found.append((one, passage_of(hit)))
        return found if highlight else Hits(hit for hit, _ in found)

    def explain(self, query: Row, key: str, **options: Any) -> Explanation:
        """Returns the exact influence of one training sample on a query, token by token.

        `options` are `span`, `tokens` and `instead`, as in `query`.
        """
        return explanation_of(self.call("POST", "explain", {"row": query, "key": key, **options}))

    def ask(
        self,
        prompt: str | Row,
        k: int = 10,
        *,
        report: Callable[[str], None] | None = None,
        answered: Callable[[bool], None] | None = None,
        **options: Any,
    ) -> Answer:
        """Returns what the model answers to a prompt, and the samples behind the answer.

        Args:
            prompt: a text, or a row without an answer.
            k: hits.
            report: called with each word as it comes.
            answered: called when the answer is complete, with whether it was cut off.
            options: `max_new_tokens`, `temperature`, `top_p` and `seed`; `images`; and those of
                `query`.
        """
        given = {"prompt": prompt} if isinstance(prompt, str) else {"row": prompt}
        said: dict[str, Any] = {}
        for event, data in self._connection.events("ask", given | {"k": k} | _given(options)):
            if event == "token" and report is not None:
                report(data["text"])
            elif event == "answer" and answered is not None:
                answered(data["cut_off"])
            elif event == "error":
                raise ServerError(data["error"])
            said[event] = data
        if "hits" not in said:
            raise ServerError("the server ended its answer before the hits: ask again")
        hits = said["hits"]["hits"]
        return Answer(
            row=said["answer"]["row"],
            response=said["answer"]["response"],
            cut_off=said["answer"]["cut_off"],
            hits=[*map(hit_of, hits)],
            passages=[*map(passage_of, hits)],
        )

    def score(
        self, targets: Sequence[Row], *, progress: Progress | None = None, **options: Any
    ) -> dict[str, Any]:
        """Returns what training samples are worth for targets, as `forvalue score --json` has it.

        `options` are those of `InfluenceIndex.score`: `k`, `combine`, `metric`, `target_group`,
        `group_by`, `where` and `exact`.
        """
        return self._job("score", {"targets": [*targets]} | _given(options), progress)

    def audit(
        self,
        *,
        trusted: Sequence[Row] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Returns the rows that are likely wrong, with the reasons, and an estimate of how many.

        `options` are those of `InfluenceIndex.audit`: `class_field`, `where`, `top`, `nearly`.
        """
        given = {} if trusted is None else {"trusted": [*trusted]}
        return self._job("audit", given | _given(options), progress)

    def add(
        self, rows: Sequence[Row], *, update: bool = False, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Adds rows, and returns what was done; the server must allow it (--allow-write)."""
        return self._job("rows", {"rows": [*rows], "update": update}, progress)

    def remove(self, keys: str | Iterable[str] = (), *, where: str | Iterable[str] = ()) -> int:
        """Removes samples, and returns how many; the server must allow it (--allow-write)."""
        found = self.call("POST", "remove", {"keys": listed(keys), "where": listed(where)})
        return int(found["removed"])

    def _job(self, path: str, body: dict[str, Any], progress: Progress | None) -> dict[str, Any]:
        job = self.call("POST", path, body)
        place = f"jobs/{job['id']}"
        try:
            while job["state"] in ("waiting", "running"):
                time.sleep(POLL)
                job = self.call("GET", place)
                if progress is not None and job["stage"]:
                    progress(job["stage"], job["done"], job["total"], 0)
        except BaseException:  # Ctrl-C, too
            self.call("DELETE", place)
            raise
        if job["state"] != "done":
            raise InputError(job["error"] or f"the job was {job['state']} on the server")
        return self.call("GET", f"{place}/result")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Returns options as fields of a request: conditions are a list there."""
    where = options.get("where")
    return options if where is None else options | {"where": listed(where)}

"""The plain records that travel between the layers. They know of no file, model or table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, NamedTuple, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from forvalue_index.errors import InputError
from forvalue_index.picture import Picture
from forvalue_index.rendering.frames import Tabular, with_fields

Row = dict[str, Any]
"""A row as it was read: field name -> JSON value."""

Progress = Callable[[str, int, int, int], None]
"""Called with a stage such as "encoding", the rows done, rows in all (0: unknown), tokens done."""

MISSING = object()
"""What `value_of` returns where a row lacks the field; JSON's null is a value."""


def value_of(row: Row, field: str) -> Any:
    """Returns the value of a field of a row, or MISSING.

    `meta.lang` is the field of that very name, or else the field `lang` of the object `meta`.
    """
    if field in row:
        return row[field]
    value: Any = row
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            return MISSING
        value = value[name]
    return value


@dataclass(frozen=True, slots=True)
class Sample:
    """A row made ready for the model.

    `scored[j]` says that the prediction of token j counts; token 0 is predicted by nothing and
    is never scored.
    """

    key: str
    content_hash: str
    row: Row
    input_ids: NDArray[np.int32]  # t
    scored: NDArray[np.bool_]  # t
    truncated: bool
    source: str  # "file:line", for messages
    label: int | None = None  # the class of a classifier's sample, of which no token is scored
    token_types: NDArray[np.int32] | None = None  # t; which of two texts, where a model asks for it
    images: tuple[Picture, ...] = ()  # in the order of their tokens, of which none is scored
    part: str | None = None  # the text of the scored tokens, where only some count (`narrow`)
    rejected: int | None = None
    """Where the tokens of a text begin whose influence is subtracted. It is read by itself, as are
    the tokens before it, if there are any; both have the images."""

    @property
    def texts(self) -> list[tuple[slice, int]]:
        """Where the tokens of each text are, and 1, or -1 if its influence is subtracted."""
        end = len(self.input_ids)
        if self.rejected is None:
            return [(slice(0, end), 1)]
        rejected = (slice(self.rejected, end), -1)
        return [(slice(0, self.rejected), 1), rejected] if self.rejected else [rejected]

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many tokens each text has."""
        return tuple(part.stop - part.start for part, _ in self.texts)

    @property
    def n_scored(self) -> int:
        """Number of predictions that count: tokens, or the one class."""
        return int(self.scored.sum()) if self.label is None else 1


@dataclass(frozen=True, slots=True)
class Encoded:
    """What one forward pass left of a sample: its vector and the figures stored beside it."""

    vector: NDArray[np.float32]  # D
    loss: float  # mean negative log-likelihood of the scored tokens, nats
    norm: float  # length of the vector
    retained: float  # share of the sketch's energy that the vector holds
    state: NDArray[np.float32] | None = None  # m, of length 1: the whitened mean of its states


@dataclass(frozen=True, slots=True)
class QueryVectors:
    """What one forward pass left of queries."""

    vectors: NDArray[np.float32]  # [q, dim]
    states: NDArray[np.float32] | None  # [q, m]; None: the index has none

    @classmethod
    def of(cls, vectors: NDArray[np.float32] | QueryVectors) -> QueryVectors:
        """Returns vectors alone as what a pass left."""
        return vectors if isinstance(vectors, cls) else cls(np.asarray(vectors), None)

    def __getitem__(self, part: slice) -> QueryVectors:
        """Returns those of some queries."""
        return QueryVectors(self.vectors[part], None if self.states is None else self.states[part])


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample as the catalogue keeps it. `id` is its FAISS id and is never used again."""

    id: int
    key: str
    content_hash: str
    row: Row
    n_tokens: int
    n_scored: int
    truncated: bool
    loss: float
    norm: float


def require_rows(samples: Iterable[StoredSample]) -> None:
    """Checks that rows are there to be read: an index can be copied without them.

    Raises:
        InputError: one is not.
    """
    for sample in samples:
        if not sample.row:
            raise InputError(
                f"the row of sample {sample.key!r} is not in this index (forvalue push --no-rows "
                "left rows out), so its words and its exact scores are not known: use a metric "
                "without words, without --exact, or ask the owner of the rows for them"
            )


@dataclass(frozen=True, slots=True)
class Segment:
    """One immutable file of vectors, as the catalogue knows it."""

    name: str  # file name in INDEX/segments
    ntotal: int  # vectors in the file, removed ones included
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Generation:
    """What a reader needs of a catalogue to search, all as it stood at one moment."""

    generation: int  # grows with every committed change
    segments: list[Segment]
    removed: NDArray[np.int64]  # ids of tombstones, ascending
    count: int  # live samples


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers kept beside the live samples, in the order of their ids; each [n]."""

    ids: NDArray[np.int64]
    norm: NDArray[np.float64]
    n_scored: NDArray[np.int64]
    loss: NDArray[np.float64]  # nats


@dataclass(frozen=True, slots=True)
class Hit:
    """One training sample that an index gives as an answer to a query.

    A positive score means that training on the sample raises the log-likelihood of the query's
    response, a negative one that it lowers it.
    """

    query: int  # position of the query in the call
    rank: int  # from 1
    id: int
    key: str
    score: float
    sample: Row
    exact: bool = False  # whether the score is the exact form's, not the stored vectors'
    parts: dict[str, float] | None = None
    """What a score that words take part in is made of: "lexical" (BM25), and where vectors do too,
    "cosine", "state" if the index has states, and "influence"."""
    shared: tuple[str, ...] | None = None
    """Of such a hit: the runs of four words or more that it has word for word from the query."""


class Hits(list[Hit], Tabular):
    """Hits, as a list; a notebook shows them as a table."""

    @overload
    def __getitem__(self, place: SupportsIndex) -> Hit: ...
    @overload
    def __getitem__(self, place: slice) -> Hits: ...
    def __getitem__(self, place: SupportsIndex | slice) -> Hit | Hits:
        """Returns one hit, or of a slice those that are in it."""
        if isinstance(place, slice):
            return Hits(super().__getitem__(place))
        return super().__getitem__(place)

    def table(self) -> list[Row]:
        """Returns a row for each hit; the fields of its sample are "sample.FIELD"."""
        rows = []
        for hit in self:
            named = {name: getattr(hit, name) for name in ("query", "rank", "id", "key", "score")}
            named |= {"exact": hit.exact} | (hit.parts or {})
            rows.append(with_fields(named, hit.sample))
        return rows

    def _repr_html_(self) -> str:
        from forvalue_index.rendering.html import hits_html

        return hits_html([asdict(hit) for hit in self])


def listed(values: str | Iterable[str]) -> list[str]:
    """Returns texts as a list; a text that comes alone is one of them, not its letters.

    Raises:
        InputError: one is no text; so a hit's number is not taken for its key.
    """
    if isinstance(values, str):
        return [values]
    found = list(values) if isinstance(values, Iterable) else [values]
    for value in found:
        if not isinstance(value, str):
            raise InputError(
                f"{value!r} is {type(value).__name__}, but keys, conditions and words are text"
            )
    return found


def require_count(value: Any, name: str, what: str) -> None:
    """Checks that a number of something is a whole number above 0.

    Raises:
        InputError: it is none.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 1:
        raise InputError(f"{name} is {value!r}, but it is a number of {what}: use 1 or more")


TOP = 10
"""Of the samples that a query is compared with: those that a `Fidelity` is about."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What is kept of the exact TOP of each query among samples that nothing was fitted to."""

    top_10: float  # mean share of them that is among the stored TOP
    error: float  # standard error of it
    queries: int
    rows: int  # samples that each query was compared with
    margin: float
    """How far below the last of the stored TOP 99 in 100 samples of an exact TOP score at most,
    times the lengths of both vectors."""

    def fallen_from(self, other: Fidelity) -> bool:
        """Returns whether this is less than `other`, by more than chance and by what matters."""
        error = float(np.hypot(self.error, other.error))
        return self.top_10 < other.top_10 - max(2 * error, 0.05)

    def __str__(self) -> str:
        return (
            f"{self.top_10:.1%} (±{self.error:.1%}) of the exact top {TOP}, "
            f"{self.queries} queries against {self.rows} rows"
        )


MARK = -2
"""The place of what is shown among tokens, but is none: "[rejected]", or the role of a turn."""
REPEATED = 4  # equal tokens in a row that are shown as one


class Turn(NamedTuple):
    """The tokens of a conversation that are one message's words."""

    start: int
    stop: int
    role: str


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """The tokens of a sample, and what each of them contributed to a score."""

    texts: list[str]  # t; joined, the text as the model read it
    scored: NDArray[np.bool_]  # t, whose predictions count
    values: NDArray[np.float64]  # t, the contributions, which sum to the score; 0 if not scored
    rejected: int | None = None  # where the rejected text begins, whose influence is subtracted
    turns: tuple[Turn, ...] = ()
    """Of a conversation: whose words which tokens are. The others are the chat template's."""

    def shown(self) -> list[tuple[str, int, float]]:
        """Returns each token's text, its place among the scored ones or -1, and its contribution.

        Many equal tokens in a row that are not scored, such as an image's, are shown as one. Before
        a rejected text, and before each turn of a conversation, stands a `MARK` that says so; what
        the chat template adds to the turns is left out.
        """
        places = np.where(self.scored, np.cumsum(self.scored) - 1, -1).tolist()
        tokens: list[tuple[str, int, float]] = []
        marks, words = self._marks()
        each = zip(marks, words, self.texts, places, self.values.tolist(), strict=True)
        for (mark, is_said, text, place, value), run in groupby(each):
            n = len(list(run))
            if mark:
                follows = bool(tokens) and tokens[-1][1] != MARK
                tokens.append((mark if follows else mark.lstrip(), MARK, 0.0))
            if place < 0 and not is_said:
                continue
            if n >= REPEATED and text.strip():
                tokens.append((f"{text} × {n} ", place, 0.0))
            else:
                tokens += [(text, place, value)] * n
        return tokens

    def _marks(self) -> tuple[list[str], list[bool]]:
        """Returns what is shown before each token, and whether it is not the chat template's."""
        marks, words = [""] * len(self.texts), [not self.turns] * len(self.texts)
        for start, stop, role in self.turns:
            marks[start] = f"\n[{role}] "
            words[start:stop] = [True] * (stop - start)
        if self.rejected is not None and self.rejected < len(marks):
            marks[self.rejected] = f"\n[rejected] {marks[self.rejected].lstrip()}"
        return marks, words


@dataclass(frozen=True, slots=True, eq=False)
class Explanation(Tabular):
    """The exact influence of a training sample on a query, token by token."""

    id: int  # of the training sample
    key: str
    query: Passage
    sample: Passage
    terms: NDArray[np.float64]  # [scored tokens of the query, scored tokens of the sample]

    @property
    def score(self) -> float:
        """The influence, the sum of all terms."""
        return float(self.terms.sum())

    def table(self) -> list[Row]:
        """Returns a row for each pair of scored tokens, with its term."""
        places = [np.flatnonzero(side.scored).tolist() for side in (self.query, self.sample)]
        return [
            {
                "query_place": i,
                "query_token": self.query.texts[i],
                "sample_place": j,
                "sample_token": self.sample.texts[j],
                "influence": value,
            }
            for i, line in zip(places[0], self.terms.tolist(), strict=True)
            for j, value in zip(places[1], line, strict=True)
        ]

    def _repr_html_(self) -> str:
        from forvalue_index.rendering.html import explanation_html

        sides = {
            name: {
                "tokens": [text for text, _, _ in side.shown()],
                "scored": [place >= 0 for _, place, _ in side.shown()],
                "contributions": [value for _, _, value in side.shown()],
            }
            for name, side in (("query", self.query), ("sample", self.sample))
        }
        named = {"key": self.key, "score": self.score, "terms": self.terms.tolist()}
        return explanation_html(named | sides)

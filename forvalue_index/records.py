"""The plain records that travel between the layers. They know of no file, model or table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.picture import Picture

Row = dict[str, Any]
"""A row as it was read: field name -> JSON value."""


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


@dataclass(frozen=True, slots=True)
class Segment:
    """One immutable file of vectors, as the catalogue knows it."""

    name: str  # file name in INDEX/segments
    ntotal: int  # vectors in the file, removed ones included
    bytes: int
    sha256: str


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


def listed(values: str | Iterable[str]) -> list[str]:
    """Returns texts as a list; a text that comes alone is one of them, not its letters."""
    return [values] if isinstance(values, str) else list(values)


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

"""What one forward pass of queries and samples tells exactly about their pairs.

The states of the queries are kept, and the errors of as many as fit in memory; those of the samples
are made a chunk at a time, once for each group of queries. Several forms of influence share the
passes, and the products of errors that they leave as they come.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.model.batching import Reading
from forvalue_index.model.embedding import similarity
from forvalue_index.model.head import Room
from forvalue_index.model.runner import require_finite
from forvalue_index.records import Sample
from forvalue_index.vectors.closed_form import (
    gradient_influence,
    gradients,
    gradients_pay,
    influence_by,
    self_influence,
)
from forvalue_index.vectors.error_products import ErrorProducts
from forvalue_index.vectors.tokens import TokenFactors, Transform, joined

if TYPE_CHECKING:
    from forvalue_index.model.encoder import Encoder

T = TypeVar("T")

FACTOR_BYTES = {"cpu": 512 << 20, "cuda": 4 << 30}
"""Of the errors of a group of queries, in float32."""

BLOCK = 1024  # samples whose states are kept for the next group of queries, or checkpoint


@dataclass(frozen=True)
class PairScores:
    """Of q queries and n samples, under one form of influence."""

    influence: NDArray[np.float32]  # [q, n]
    squares: NDArray[np.float32]  # [n], of each sample on itself: its squared length


@dataclass(frozen=True)
class PassScores:
    """All that a pass over n samples tells."""

    pairs: list[PairScores]  # under each form
    cosines: NDArray[np.float32]  # [q, n], of the means of the states that predict scored tokens


class ExactPass:
    """Queries that were run forward once, to be compared with any number of samples."""

    def __init__(
        self, encoder: Encoder, queries: Sequence[Sample], forms: Sequence[Sequence[Transform]]
    ) -> None:
        """Runs the queries forward.

        Args:
            encoder: of the model.
            queries: the q queries.
            forms: of influence; each has a transform for every checkpoint of the model.

        Raises:
            RowError: a query cannot be read, or the model gives NaN or infinity for it.
        """
        self._encoder, self._queries, self._forms = encoder, queries, forms
        self._groups = list(self._grouped(queries))
        self._states = np.zeros((len(queries), encoder.hidden), np.float32)
        for reading in itertools.chain(*self._groups):
            self._states[reading.batch.positions] = reading.means()
        self._last: tuple[tuple[int, int], _Group] | None = None
        self._room = Room()

    def scores(
        self, samples: Sequence[Sample], check: Callable[[], None] = lambda: None
    ) -> PassScores:
        """Returns the scores of samples under each form, in one forward pass of them.

        Args:
            samples: the n samples.
            check: called before each batch; what it raises ends the pass.

        Raises:
            RowError: a sample cannot be read, or the model gives NaN or infinity for it.
        """
        n, length = len(samples), sum(s.n_scored for s in samples) / max(1, len(samples))
        found = [
            PairScores(np.zeros((len(self._queries), n), np.float32), np.zeros(n, np.float32))
            for _ in self._forms
        ]
        states = np.zeros((n, self._encoder.hidden), np.float32)
        steps = [
            (place, number)
            for number in range(len(self._forms[0]))
            for place in range(len(self._groups))
        ]
        size = max(1, n) if len(steps) == 1 else BLOCK
        for start in range(0, n, size):
            part = range(start, n)[:size]
            readings = checked(self._encoder.readings([samples[i] for i in part]), check)
            # Of one step nothing is needed again: each batch goes before the next is read.
            kept = readings if len(steps) == 1 else list(readings)
            for place, number in steps:
                group = self._group(place, number, length)
                for reading in kept:
                    columns = [part[i] for i in reading.batch.positions]
                    sums, losses = self._compare(group, reading, number, squares=place == 0)
                    require_finite(samples, replace(reading.batch, positions=columns), losses)
                    states[columns] = reading.means()
                    for own, values in zip(found, sums, strict=True):
                        own.influence[np.ix_(group.rows, columns)] += values[:-1]
                        own.squares[columns] += values[-1]
        return PassScores(found, similarity(self._states, states))

    def query_squares(self) -> list[NDArray[np.float32]]:
        """Returns the influence of each query on itself under each form, [q]; runs none again."""
        return _squares(self._encoder, itertools.chain(*self._groups), self._queries, self._forms)

    def _compare(
        self, group: _Group, reading: Reading, number: int, *, squares: bool
    ) -> tuple[list[NDArray[np.float32]], NDArray[np.float64]]:
        """Returns a batch's scores [group + 1, b] for each form, and its losses [b].

        The last row has the squares, if they are wanted.
        """
        shape = len(group.rows) + 1, len(reading.batch.positions)
        sums = [torch.zeros(shape, device=self._encoder.device) for _ in self._forms]
        losses = self._encoder.no_losses(reading.batch)
        for tokens in self._encoder.whole_chunks(reading, number, losses, self._room):
            forms = [form[number](tokens) for form in self._forms]
            for own, scores in zip(sums, group.influence(tokens, forms), strict=True):
                own[:-1] += scores
            if squares:
                for own, values in zip(sums, self_influence(tokens, forms), strict=True):
                    own[-1] += values
        return [own.cpu().numpy() for own in sums], losses.cpu().numpy()

    def _grouped(self, queries: Sequence[Sample]) -> Iterator[list[Reading]]:
        """Yields groups of batches of queries whose errors fit in memory."""
        n_bytes = FACTOR_BYTES["cuda" if self._encoder.device.type == "cuda" else "cpu"]
        limit = max(1, n_bytes // (4 * self._encoder.vocabulary))
        group: list[Reading] = []
        taken = 0
        for reading in self._encoder.readings(queries, limit):
            if group and taken + len(reading.batch.targets) > limit:
                yield group
                group, taken = [], 0
            group.append(reading)
            taken += len(reading.batch.targets)
        if group:
            yield group

    def _group(self, place: int, number: int, length: float) -> _Group:
        """Returns a group of queries by one checkpoint; the last that was made is kept."""
        if self._last is None or self._last[0] != (place, number):
            self._last = None  # its memory is needed
            readings, parts = self._groups[place], [form[number] for form in self._forms]
            rows = [i for reading in readings for i in reading.batch.positions]
            losses = [self._encoder.no_losses(reading.batch) for reading in readings]
            chunks = [
                list(self._encoder.whole_chunks(reading, number, own))
                for reading, own in zip(readings, losses, strict=True)
            ]
            for reading, own in zip(readings, losses, strict=True):
                require_finite(self._queries, reading.batch, own.cpu().numpy())
            tokens = joined([joined(own, shared=True) for own in chunks])
            self._last = (place, number), _Group(rows, tokens, parts, length)
        return self._last[1]


class _Group:
    """Some queries by one checkpoint, prepared for any number of samples."""

    def __init__(
        self, rows: list[int], tokens: TokenFactors, parts: Sequence[Transform], length: float
    ) -> None:
        """Takes the tokens of the queries at `rows`; `length` is a sample's number of tokens."""
        self.rows = rows
        forms = [part(tokens) for part in parts]
        formed = gradients_pay(tokens, length)
        self._formed = [gradients(form) if formed else None for form in forms]
        # Without the errors, whose memory is needed.
        self._states = [replace(form, errors=form.errors.new_empty(0, 0)) for form in forms]
        self._common = None if formed else ErrorProducts(tokens.errors)
        self._products = [
            None if formed or form.errors is tokens.errors else ErrorProducts(form.errors)
            for form in forms
        ]

    def influence(self, tokens: TokenFactors, forms: Sequence[TokenFactors]) -> Iterator[Tensor]:
        """Yields the influence of samples on the queries for each form, [q, b].

        `tokens` are those of the samples as they come, `forms` what the transforms made of them.
        """
        common = None if self._common is None else self._common(tokens.errors)
        for formed, states, products, form in zip(
            self._formed, self._states, self._products, forms, strict=True
        ):
            if formed is not None:
                yield gradient_influence(formed, form)
            elif products is not None:
                yield influence_by(products(form.errors), states, form)
            else:
                assert common is not None
                yield influence_by(common, states, form)


def checked(items: Iterable[T], check: Callable[[], None]) -> Iterator[T]:
    """Yields items, and calls `check` before each is made."""
    check()
    for item in items:
        yield item
        check()


def self_influences(
    encoder: Encoder, samples: Sequence[Sample], forms: Sequence[Sequence[Transform]]
) -> list[NDArray[np.float32]]:
    """Returns the influence of each sample on itself under each form, [n]."""
    return _squares(encoder, encoder.readings(samples), samples, forms)


def _squares(
    encoder: Encoder,
    readings: Iterable[Reading],
    samples: Sequence[Sample],
    forms: Sequence[Sequence[Transform]],
) -> list[NDArray[np.float32]]:
    result, room = [np.zeros(len(samples), np.float32) for _ in forms], Room()
    for reading in readings:
        positions, losses = reading.batch.positions, encoder.no_losses(reading.batch)
        for number in range(len(reading.states)):
            for tokens in encoder.whole_chunks(reading, number, losses, room):
                changed = [form[number](tokens) for form in forms]
                for own, values in zip(result, self_influence(tokens, changed), strict=True):
                    own[positions] += values.cpu().numpy()
        require_finite(samples, reading.batch, losses.cpu().numpy())
    return result

"""Samples through the model: to vectors, or to the exact factors of their tokens.

The hidden states of a batch are computed once; the unembedding is applied to the scored positions
only, a chunk at a time, so that no batch x tokens x vocabulary tensor ever exists. A GPU is given
the next batch before the results of the last are fetched. `runner.py` makes the batches.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.model.batching import Batch, Reading
from forvalue_index.model.exact_pass import ExactPass, self_influences
from forvalue_index.model.head import Room
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.model.runner import Refused, Runner, refuse, require_finite
from forvalue_index.records import Encoded, Sample
from forvalue_index.system.allocator import keep_freed_memory
from forvalue_index.vectors.statistics import TokenStatistics
from forvalue_index.vectors.tokens import TokenFactors, Transform, joined
from forvalue_index.vectors.vectoriser import Vectoriser

FACTOR_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}  # of the errors of samples read together


class Witness(Protocol):
    """Sees the factors of the tokens from which vectors are made."""

    def begin(self, positions: Sequence[int]) -> None:
        """Gets the samples that are read now, from their start; they may be read again."""

    def add(self, positions: Sequence[int], tokens: TokenFactors, checkpoint: int) -> None:
        """Gets some tokens of the samples at `positions`, by one checkpoint."""


class _Fetch:
    """A result that is copied from the device meanwhile, [b, width] float32."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._done: Any = None
        if values.is_cuda:
            self._done = torch.cuda.current_stream(values.device).record_event()

    def get(self) -> NDArray[np.float32]:
        """Returns the result; waits for its copy, but not for later work of the device."""
        values: NDArray[np.float32] = self._values.numpy()
        if self._done is None:
            return values
        self._done.synchronize()
        return values.copy()  # the memory that a GPU writes to is for the next result


class Encoder:
    """Reads samples with one model. Threads may share one: their batches take turns."""

    def __init__(self, lm: LanguageModel, token_budget: int | None = None) -> None:
        if lm.device.type == "cpu":
            keep_freed_memory()
        self._lm = lm
        self.device, head = lm.device, lm.head
        self.vocabulary, self.hidden = head.vocabulary, head.hidden
        self.runner = Runner(lm, token_budget)

    def encode(
        self,
        samples: Sequence[Sample],
        vectoriser: Vectoriser,
        known: list[Reading] | None = None,
        refused: Refused = None,
        witness: Witness | None = None,
    ) -> Iterator[list[tuple[int, Encoded]]]:
        """Yields the vectors batch by batch, each with its sample's position in `samples`.

        A sample's vector depends on the sample alone, up to the rounding of the model's dtype.
        `known` are batches of `samples` that the model has read already; the list is emptied.
        `witness` gets the factors of all tokens.

        Raises:
            UnreadableRowError: the model gives NaN or infinity for a sample, or one alone is too
                long for the memory; not raised with `refused`.
            RowError: an image of a sample cannot be read, likewise.
        """
        room, again = Room(), list[int]()

        def work(batch: Batch, states: Iterable[Tensor] | None = None) -> _Fetch:
            state, losses = vectoriser.zeros(len(batch.positions)), self.no_losses(batch)
            if witness is not None:
                witness.begin(batch.positions)
            for number, hidden in enumerate(states or self._all_hidden(batch)):
                if number == 0:
                    own = vectoriser.states(batch.means(hidden))
                for tokens in self._chunks(batch, hidden, number, losses, room):
                    vectoriser.update(state, tokens, number)
                    if witness is not None:
                        witness.add(batch.positions, tokens, number)
            vectors, retained = vectoriser.finish(state)
            norms = torch.linalg.vector_norm(vectors, dim=1)
            figures = torch.stack([losses.float(), norms, retained], dim=1)  # [b, 3]
            return _Fetch(torch.cat([vectors, own.to(vectors.device), figures], dim=1))

        def each() -> Iterator[tuple[Batch, _Fetch]]:
            done: set[int] = set()
            while known:
                reading = known.pop()
                made = self.runner.attempt(partial(work, states=reading.states), reading.batch)
                if made is not None:
                    done.update(reading.batch.positions)
                    yield made
            yield from self.runner.each(samples, work, done=done, refused=refused)

        before: tuple[Batch, _Fetch] | None = None
        for made in each():
            if before is not None:
                yield self._finished(*before, vectoriser.dim, again)
            before = made
        if before is not None:
            yield self._finished(*before, vectoriser.dim, again)
        for batch, fetch in self.runner.alone(samples, again, work, refused):
            bad: list[int] = []
            yield self._finished(batch, fetch, vectoriser.dim, bad)
            for position in bad:
                refuse(samples, position, refused)

    def read(
        self, samples: Sequence[Sample], refused: Refused = None
    ) -> tuple[list[TokenStatistics], list[Reading]]:
        """Returns the statistics of all scored tokens, for each checkpoint, and what was read.

        Memory: the states of all scored tokens, [n, d] for each checkpoint, in the model's dtype;
        where there is no room for them, some are not returned. Nothing of the refused samples is
        in them.

        Raises:
            RowError: as in `encode`.
        """
        head, room = self._lm.head, Room()

        def none_yet() -> list[TokenStatistics]:
            some = head.vocabulary, head.hidden, self._lm.device
            return [TokenStatistics(*some) for _ in self._lm.checkpoints]

        def work(batch: Batch) -> tuple[list[TokenStatistics], Tensor, Reading]:
            found, losses, states = none_yet(), self.no_losses(batch), []
            for number, hidden in enumerate(self._all_hidden(batch)):
                for tokens in self._chunks(batch, hidden, number, losses, room):
                    found[number].update(tokens)
                states.append(hidden)
            return found, losses, Reading(replace(batch, inputs={}), states)

        total, readings, again = none_yet(), list[Reading](), list[int]()

        def taken(found: list[TokenStatistics], losses: Tensor, reading: Reading) -> bool:
            """Adds a batch's statistics if they are finite; returns whether they were."""
            if not (bool(losses.isfinite().all()) and all(part.finite for part in found)):
                return False
            for whole, part in zip(total, found, strict=True):
                whole.add(part)
            readings.append(reading)
            return True

        for batch, made in self.runner.each(samples, work, spare=readings, refused=refused):
            if not taken(*made):
                again += batch.positions
            del made
        for batch, made in self.runner.alone(samples, again, work, refused):
            if not taken(*made):
                refuse(samples, batch.positions[0], refused)
        return total, readings

    def readings(self, samples: Sequence[Sample], limit: int = sys.maxsize) -> Iterator[Reading]:
        """Yields batches of samples, of `limit` tokens at most, with their states.

        Raises:
            RowError: as in `encode`.
        """

        def work(batch: Batch) -> Reading:
            return Reading(replace(batch, inputs={}), list(self._all_hidden(batch)))

        return (reading for _, reading in self.runner.each(samples, work, limit))

    def whole_chunks(
        self, reading: Reading, checkpoint: int, losses: Tensor, room: Room | None = None
    ) -> Iterator[TokenFactors]:
        """Yields the factors of a batch that was read, a chunk of whole samples at a time.

        The losses of each sample's tokens are added to `losses` [b]. With `room` the next chunk
        overwrites the errors of the one before it.
        """
        for part in reading.batch.whole(self.runner.chunk):
            hidden = reading.states[checkpoint]
            yield self._factors(reading.batch, hidden, checkpoint, losses, part, room)

    def factors(
        self,
        samples: Sequence[Sample],
        part: Transform,
        checkpoint: int = 0,
    ) -> Iterator[tuple[list[int], TokenFactors]]:
        """Yields the exact factors of groups of samples, with their positions in `samples`.

        `part` is applied to them: a recipe, or a vectoriser's part for the checkpoint.
        Memory: a group's scored tokens times the vocabulary in float32, about FACTOR_BYTES.
        """

        def work(batch: Batch) -> tuple[TokenFactors, Tensor]:
            hidden, losses = self._hidden(batch, checkpoint), self.no_losses(batch)
            chunks = [part(tokens) for tokens in self._chunks(batch, hidden, checkpoint, losses)]
            tokens = replace(joined(chunks, shared=True), known_runs=batch.runs(slice(None)))
            return tokens, losses

        n_bytes = FACTOR_BYTES["cuda" if self._lm.device.type == "cuda" else "cpu"]
        limit = max(1, n_bytes // (4 * self._lm.head.vocabulary))
        for batch, (tokens, losses) in self.runner.each(samples, work, limit):
            require_finite(samples, batch, losses.cpu().numpy())
            yield batch.positions, tokens

    def influence(
        self, queries: Sequence[Sample], samples: Sequence[Sample], parts: Sequence[Transform]
    ) -> NDArray[np.float32]:
        """Returns the exact influence of every sample on every query, [queries, samples].

        It is the sum over the model's checkpoints, one of `parts` for each.
        """
        return ExactPass(self, queries, [parts]).scores(samples).pairs[0].influence

    def self_influence(
        self, samples: Sequence[Sample], parts: Sequence[Transform]
    ) -> NDArray[np.float32]:
        """Returns the exact influence of every sample on itself, [samples]."""
        return self_influences(self, samples, [parts])[0]

    def losses(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """Returns the mean negative log-likelihood of each sample's scored tokens, [n] nats.

        Those of rejected texts are subtracted.
        """

        def work(batch: Batch) -> Tensor:
            losses = self.no_losses(batch)
            for number in range(len(self._lm.checkpoints)):
                for _ in self._chunks(batch, self._hidden(batch, number), number, losses):
                    pass
            return losses

        result = np.zeros(len(samples))
        for batch, losses in self.runner.each(samples, work):
            result[batch.positions] = self._mean(batch, losses.cpu().numpy())
            require_finite(samples, batch, result[batch.positions])
        return result

    def states(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        """Returns the mean of the states that predict each sample's scored tokens, [n, hidden].

        The unembedding is not applied. Of several checkpoints the first one is read.
        """

        result = np.zeros((len(samples), self._lm.head.hidden), np.float32)
        for batch, hidden in self.runner.each(samples, lambda batch: self._hidden(batch, 0)):
            result[batch.positions] = Reading(batch, [hidden]).means()
        return result

    def _hidden(self, batch: Batch, checkpoint: int) -> Tensor:
        """Returns the states that the batch's targets are read from; see `predicting`."""
        return self._lm.predicting(batch, checkpoint)

    def _all_hidden(self, batch: Batch) -> Iterator[Tensor]:
        """Yields the states of `_hidden` for each checkpoint."""
        return (self._hidden(batch, number) for number in range(len(self._lm.checkpoints)))

    def _chunks(
        self,
        batch: Batch,
        hidden: Tensor,
        checkpoint: int,
        losses: Tensor,
        room: Room | None = None,
    ) -> Iterator[TokenFactors]:
        """Yields the factors of a batch's scored tokens, a chunk at a time.

        The losses of each sample's tokens are added to `losses` [b]. Tokens of rejected texts have
        the opposite error, and loss. With `room` the next chunk overwrites the errors of the one
        before it.
        """
        for start in range(0, len(hidden), self.runner.chunk):
            part = slice(start, start + self.runner.chunk)
            yield self._factors(batch, hidden, checkpoint, losses, part, room)

    def _factors(
        self,
        batch: Batch,
        hidden: Tensor,
        checkpoint: int,
        losses: Tensor,
        part: slice,
        room: Room | None = None,
    ) -> TokenFactors:
        head = self._lm.activate(checkpoint)  # an adapter may be the head's, too
        states, owner = hidden[part], batch.owner[part]
        with torch.no_grad():
            errors, own = head.errors(states, batch.targets[part], room)
        if batch.signs is not None:
            signs = batch.signs[part]
            errors, own = errors.mul_(signs[:, None]), own * signs
        losses.index_add_(0, owner, own.double())
        return TokenFactors(states.float(), errors, owner, len(batch.positions), batch.runs(part))

    def no_losses(self, batch: Batch) -> Tensor:
        """Returns the losses of a batch's samples before any token was read, [b] float64."""
        return torch.zeros(len(batch.positions), dtype=torch.float64, device=self._lm.device)

    def _mean(self, batch: Batch, losses: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the mean over each sample's tokens and checkpoints of what `_chunks` added up."""
        mean: NDArray[np.float64] = losses / (len(self._lm.checkpoints) * np.array(batch.counts))
        return mean

    def _finished(
        self, batch: Batch, fetch: _Fetch, dim: int, bad: list[int]
    ) -> list[tuple[int, Encoded]]:
        """Returns the finite vectors of a batch; adds the positions of the others to `bad`."""
        values = fetch.get()
        vectors, states = np.split(values[:, :-3], [dim], axis=1)
        losses, norms, retained = values[:, -3:].T
        losses = self._mean(batch, losses)
        finite = np.isfinite(losses) & np.isfinite(norms) & np.isfinite(retained)
        bad += [batch.positions[row] for row in np.flatnonzero(~finite)]
        return [
            (
                batch.positions[row],
                Encoded(
                    vectors[row],
                    float(losses[row]),
                    float(norms[row]),
                    float(retained[row]),
                    states[row] if states.size else None,
                ),
            )
            for row in np.flatnonzero(finite)
        ]

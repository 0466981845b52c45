"""Samples through the model: to vectors, or to the exact factors of their tokens.

The hidden states of a batch are computed once; the unembedding is applied to the scored positions
only, a chunk at a time, so that no batch x tokens x vocabulary tensor ever exists. The next batch
is put together in a thread while the model reads one, and a GPU is given the next one before the
results of the last are fetched. Where memory runs out, batches become smaller and the work goes on.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.errors import RowError, UnreadableRowError, out_of_memory
from forvalue_index.model.batching import Batch, plan_batches
from forvalue_index.model.head import Room
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.model.model_lock import model_lock
from forvalue_index.records import Encoded, Sample
from forvalue_index.system.allocator import keep_freed_memory
from forvalue_index.system.prefetch import ahead
from forvalue_index.vectors.closed_form import (
    gradient_influence,
    gradients,
    gradients_pay,
    influence,
    self_influence,
)
from forvalue_index.vectors.statistics import TokenStatistics
from forvalue_index.vectors.tokens import TokenFactors, Transform
from forvalue_index.vectors.vectoriser import Vectoriser

TOKEN_BUDGET = {"cpu": 4096, "cuda": 32768}  # tokens of a batch, padding included, at most
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}  # of one float32 chunk of errors, at most
CHUNK_TOKENS = {"cpu": 512, "cuda": 4096}  # of a chunk, at most; on a CPU it should stay in cache
SMALLEST_CHUNK = 16  # tokens; a GPU or CPU that has no room for their logits is not for the model
FACTOR_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
"""Of the errors of one group of samples, where they are needed exactly."""
STATES = 64
"""Numbers of the hidden size that a forward pass has of each token at a time, roughly and with room
to spare: a first guess that an out-of-memory error corrects."""
Refused: TypeAlias = dict[int, RowError] | None
"""Gets the errors of samples that nothing can be made of, by position; None: they are raised."""

T = TypeVar("T")


class Witness(Protocol):
    """Sees the factors of the tokens from which vectors are made."""

    def begin(self, positions: Sequence[int]) -> None:
        """The samples at `positions` are read from their start, maybe once more."""

    def add(self, positions: Sequence[int], tokens: TokenFactors, checkpoint: int) -> None:
        """Some tokens of the samples at `positions`, by the checkpoint of this number."""


log = logging.getLogger(__name__)


class _Fetch:
    """A result on its way from the device, [b, width] float32; a CPU's is there at once."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._done: Any = None
        if values.is_cuda:
            self._done = torch.cuda.current_stream(values.device).record_event()

    def get(self) -> NDArray[np.float32]:
        """Returns it, once it is there: what the device was given later is not waited for."""
        values: NDArray[np.float32] = self._values.numpy()
        if self._done is None:
            return values
        self._done.synchronize()
        return values.copy()  # the memory that a GPU writes to is for the next result


@dataclass(frozen=True)
class Reading:
    """A batch that the model has read, on the device."""

    batch: Batch  # without inputs
    states: list[Tensor]  # that its targets are read from, [n, d] for each checkpoint


class Encoder:
    """Reads samples with one model. Threads may share one: their batches take turns."""

    def __init__(self, lm: LanguageModel, token_budget: int | None = None) -> None:
        if lm.device.type == "cpu":
            keep_freed_memory()
        self._lm = lm
        tokens, chunk = _room(lm)
        self.token_budget = token_budget or tokens
        self._chunk = chunk

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
        `known` are batches of `samples` that the model has read already; they are used up.
        A `witness` is shown all tokens.

        Raises:
            UnreadableRowError: the model gives NaN or infinity for a sample, or one alone is too
                long for the memory; not raised with `refused`.
            RowError: an image of a sample cannot be read, likewise.
        """
        room, again = Room(), list[int]()

        def work(batch: Batch, states: Iterable[Tensor] | None = None) -> _Fetch:
            state, losses = vectoriser.zeros(len(batch.positions)), self._no_losses(batch)
            if witness is not None:
                witness.begin(batch.positions)
            for number, hidden in enumerate(states or self._all_hidden(batch)):
                for tokens in self._chunks(batch, hidden, number, losses, room):
                    vectoriser.update(state, tokens, number)
                    if witness is not None:
                        witness.add(batch.positions, tokens, number)
            vectors, retained = vectoriser.finish(state)
            norms = torch.linalg.vector_norm(vectors, dim=1)
            figures = torch.stack([losses.float(), norms, retained], dim=1)  # [b, 3]
            return _Fetch(torch.cat([vectors, figures], dim=1))

        def each() -> Iterator[tuple[Batch, _Fetch]]:
            done: set[int] = set()
            while known:
                reading = known.pop()
                made = self._attempt(partial(work, states=reading.states), reading.batch)
                if made is not None:
                    done.update(reading.batch.positions)
                    yield made
            yield from self._each(samples, work, done=done, refused=refused)

        before: tuple[Batch, _Fetch] | None = None
        for made in each():
            if before is not None:
                yield self._finished(*before, again)
            before = made
        if before is not None:
            yield self._finished(*before, again)
        for batch, fetch in self._alone(samples, again, work, refused):
            bad: list[int] = []
            yield self._finished(batch, fetch, bad)
            for position in bad:
                _refuse(samples, position, refused)

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
            found, losses, states = none_yet(), self._no_losses(batch), []
            for number, hidden in enumerate(self._all_hidden(batch)):
                for tokens in self._chunks(batch, hidden, number, losses, room):
                    found[number].update(tokens)
                states.append(hidden)
            return found, losses, Reading(replace(batch, inputs={}), states)

        total, readings, again = none_yet(), list[Reading](), list[int]()

        def taken(found: list[TokenStatistics], losses: Tensor, reading: Reading) -> bool:
            """Adds up what is finite, and says whether it was."""
            if not (bool(losses.isfinite().all()) and all(part.finite for part in found)):
                return False
            for whole, part in zip(total, found, strict=True):
                whole.add(part)
            readings.append(reading)
            return True

        for batch, made in self._each(samples, work, spare=readings, refused=refused):
            if not taken(*made):
                again += batch.positions
            del made
        for batch, made in self._alone(samples, again, work, refused):
            if not taken(*made):
                _refuse(samples, batch.positions[0], refused)
        return total, readings

    def factors(
        self,
        samples: Sequence[Sample],
        part: Transform,
        checkpoint: int = 0,
        times: int = 1,
    ) -> Iterator[tuple[list[int], TokenFactors]]:
        """Yields the exact factors of groups of samples, with their positions in `samples`.

        `part` is what is done to them: a recipe, or a vectoriser's part for the checkpoint.
        Memory: a group's scored tokens times the vocabulary in float32, about FACTOR_BYTES; with
        `times`, so many times that.
        """

        def work(batch: Batch) -> tuple[TokenFactors, Tensor]:
            hidden, losses = self._hidden(batch, checkpoint), self._no_losses(batch)
            chunks = [part(tokens) for tokens in self._chunks(batch, hidden, checkpoint, losses)]
            tokens = TokenFactors(
                torch.cat([chunk.hidden for chunk in chunks]),
                torch.cat([chunk.errors for chunk in chunks]),
                torch.cat([chunk.owner for chunk in chunks]),
                len(batch.positions),
                batch.runs(slice(None)),
            )
            return tokens, losses

        n_bytes = times * FACTOR_BYTES["cuda" if self._lm.device.type == "cuda" else "cpu"]
        limit = max(1, n_bytes // (4 * self._lm.head.vocabulary))
        for batch, (tokens, losses) in self._each(samples, work, limit):
            _require_finite(samples, batch, losses.cpu().numpy())
            yield batch.positions, tokens

    def influence(
        self, queries: Sequence[Sample], samples: Sequence[Sample], parts: Sequence[Transform]
    ) -> NDArray[np.float32]:
        """Returns the exact influence of every sample on every query, [queries, samples].

        It is the sum over the model's checkpoints, one of `parts` for each. Every sample is run
        forward once for each group of queries that fits in memory.
        """
        result = np.zeros((len(queries), len(samples)), dtype=np.float32)
        length = sum(sample.n_scored for sample in samples) / max(1, len(samples))
        for number, part in enumerate(parts):
            for rows, query in self.factors(queries, part, number, times=4):
                formed = gradients(query) if gradients_pay(query, length) else None
                for columns, sample in self.factors(samples, part, number):
                    scores = (
                        influence(query, sample)
                        if formed is None
                        else gradient_influence(formed, sample)
                    )
                    result[np.ix_(rows, columns)] += scores.cpu().numpy()
        return result

    def self_influence(
        self, samples: Sequence[Sample], parts: Sequence[Transform]
    ) -> NDArray[np.float32]:
        """Returns the exact influence of every sample on itself, [samples]."""
        result = np.zeros(len(samples), dtype=np.float32)
        for number, part in enumerate(parts):
            for positions, tokens in self.factors(samples, part, number):
                result[positions] += self_influence(tokens).cpu().numpy()
        return result

    def losses(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """Returns the mean negative log-likelihood of each sample's scored tokens, [n] nats.

        Those of rejected texts are subtracted.
        """

        def work(batch: Batch) -> Tensor:
            losses = self._no_losses(batch)
            for number in range(len(self._lm.checkpoints)):
                for _ in self._chunks(batch, self._hidden(batch, number), number, losses):
                    pass
            return losses

        result = np.zeros(len(samples))
        for batch, losses in self._each(samples, work):
            result[batch.positions] = self._mean(batch, losses.cpu().numpy())
            _require_finite(samples, batch, result[batch.positions])
        return result

    def states(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        """Returns the mean of the states that predict each sample's scored tokens, [n, hidden].

        The unembedding is not applied. Of several checkpoints the first one is read.
        """

        def work(batch: Batch) -> Tensor:
            hidden = self._hidden(batch, 0).float()
            if batch.signs is not None:
                hidden = hidden * batch.signs[:, None]
            total = hidden.new_zeros(len(batch.positions), hidden.shape[1])
            return total.index_add_(0, batch.owner, hidden)

        result = np.zeros((len(samples), self._lm.head.hidden), np.float32)
        for batch, total in self._each(samples, work):
            counts = np.array(batch.counts, dtype=np.float32)[:, None]
            result[batch.positions] = total.cpu().numpy() / counts
        return result

    def _each(
        self,
        samples: Sequence[Sample],
        work: Callable[[Batch], T],
        limit: int = sys.maxsize,
        done: Iterable[int] = (),
        spare: list[Reading] | None = None,
        refused: Refused = None,
    ) -> Iterator[tuple[Batch, T]]:
        """Yields batches of all samples that are not done, with what `work` makes of each.

        A batch that does not fit into the memory is tried again without `spare`, or if nothing is
        there, in smaller ones.

        Raises:
            UnreadableRowError: not even one sample fits; not raised with `refused`.
            RowError: an image of a sample cannot be read, likewise.
        """
        done = set(done)
        while left := [i for i in range(len(samples)) if i not in done]:
            groups = self._batches([samples[i] for i in left], min(limit, self.token_budget))
            planned = (self._collated(samples, [left[i] for i in group]) for group in groups)
            with closing(ahead(planned)) as batches:
                for batch in batches:
                    if isinstance(batch, _Unread):
                        if refused is None:
                            raise batch.error
                        refused[batch.position] = batch.error
                        done.add(batch.position)
                        break
                    made = self._attempt(work, batch)
                    if made is None:
                        if spare:
                            spare.clear()
                        elif reason := self._shrink(samples, batch):
                            _refuse(samples, batch.positions[0], refused, reason)
                            done.update(batch.positions)
                        break
                    done.update(batch.positions)
                    yield made

    def _alone(
        self,
        samples: Sequence[Sample],
        positions: list[int],
        work: Callable[[Batch], T],
        refused: Refused,
    ) -> Iterator[tuple[Batch, T]]:
        """Yields a batch of each of the samples at `positions`, with what `work` makes of it.

        So what is wrong with one of a batch is told from what is wrong with another.
        """
        others = set(range(len(samples))) - set(positions)
        return self._each(samples, work, 1, others, refused=refused)

    def _batches(self, samples: Sequence[Sample], token_budget: int) -> list[list[int]]:
        return plan_batches(
            samples, token_budget, same_length=self._lm.length_matters, kind=self._lm.kind
        )

    def _collated(self, samples: Sequence[Sample], positions: list[int]) -> Batch | _Unread:
        try:
            batch = self._lm.collate(samples, positions)
        except RowError as error:
            for i in positions:
                if samples[i].source == error.source:
                    return _Unread(i, error)
            raise
        return batch.pin_memory() if self._lm.device.type == "cuda" else batch

    def _attempt(self, work: Callable[[Batch], T], batch: Batch) -> tuple[Batch, T] | None:
        """Returns the batch on the device and what `work` makes of it; None: there is no room."""
        try:
            batch = batch.to(self._lm.device)
            with model_lock():
                return batch, work(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Here, with the error, all is gone that was in memory.
        if self._lm.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _shrink(self, samples: Sequence[Sample], batch: Batch) -> str | None:
        """Halves what is done at a time, after a batch that did not fit.

        Returns what is wrong with the one sample of the batch if it is little already.
        """
        n_tokens = batch.inputs["input_ids"].numel()
        if len(batch.positions) > 1:
            self.token_budget = n_tokens // 2
        elif self._chunk > SMALLEST_CHUNK:
            self._chunk //= 2
        else:
            key = samples[batch.positions[0]].key
            return (
                f"sample {key!r} of {n_tokens} tokens does not fit into the memory of "
                f"{self._lm.device}: use a smaller --max-length, or --device auto"
            )
        log.info("out of memory at %d tokens; budget %d now", n_tokens, self.token_budget)
        return None

    def _hidden(self, batch: Batch, checkpoint: int) -> Tensor:
        """Returns the states that the batch's targets are read from; see `predicting`."""
        return self._lm.predicting(batch, checkpoint)

    def _all_hidden(self, batch: Batch) -> Iterator[Tensor]:
        """Yields what `_hidden` returns, for each checkpoint."""
        for number in range(len(self._lm.checkpoints)):
            yield self._hidden(batch, number)

    def _chunks(
        self,
        batch: Batch,
        hidden: Tensor,
        checkpoint: int,
        losses: Tensor,
        room: Room | None = None,
    ) -> Iterator[TokenFactors]:
        """Yields the factors of a batch's scored tokens, a chunk at a time.

        `losses` [b] grow by those of each sample's tokens. Tokens of rejected texts have the
        opposite error, and loss.
        With `room` a chunk's errors are gone when the next one comes.
        """
        head = self._lm.activate(checkpoint)  # an adapter may be the head's, too
        for start in range(0, len(hidden), self._chunk):
            part = slice(start, start + self._chunk)
            states, owner = hidden[part], batch.owner[part]
            with torch.no_grad():
                errors, own = head.errors(states, batch.targets[part], room)
            if batch.signs is not None:
                signs = batch.signs[part]
                errors, own = errors.mul_(signs[:, None]), own * signs
            losses.index_add_(0, owner, own.double())
            yield TokenFactors(
                states.float(), errors, owner, len(batch.positions), batch.runs(part)
            )

    def _no_losses(self, batch: Batch) -> Tensor:
        return torch.zeros(len(batch.positions), dtype=torch.float64, device=self._lm.device)

    def _mean(self, batch: Batch, losses: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the mean over each sample's tokens and checkpoints of what `_chunks` added up."""
        mean: NDArray[np.float64] = losses / (len(self._lm.checkpoints) * np.array(batch.counts))
        return mean

    def _finished(self, batch: Batch, fetch: _Fetch, bad: list[int]) -> list[tuple[int, Encoded]]:
        """Returns the vectors of a batch; those that are not finite: their positions in `bad`."""
        values = fetch.get()
        vectors, (losses, norms, retained) = values[:, :-3], values[:, -3:].T
        losses = self._mean(batch, losses)
        finite = np.isfinite(losses) & np.isfinite(norms) & np.isfinite(retained)
        bad += [batch.positions[row] for row in np.flatnonzero(~finite)]
        return [
            (
                batch.positions[row],
                Encoded(vectors[row], float(losses[row]), float(norms[row]), float(retained[row])),
            )
            for row in np.flatnonzero(finite)
        ]


def _room(lm: LanguageModel) -> tuple[int, int]:
    """Returns the tokens of a batch and of a chunk of logits that there should be memory for."""
    kind = "cuda" if lm.device.type == "cuda" else "cpu"
    tokens, n_bytes = TOKEN_BUDGET[kind], CHUNK_BYTES[kind]
    if kind == "cuda":
        free = torch.cuda.mem_get_info(lm.device)[0]
        free += torch.cuda.memory_reserved(lm.device) - torch.cuda.memory_allocated(lm.device)
        token = STATES * lm.head.hidden * lm.model.dtype.itemsize
        tokens, n_bytes = min(tokens, max(1, free // (2 * token))), min(n_bytes, free // 32)
    chunk = min(CHUNK_TOKENS[kind], n_bytes // (4 * lm.head.vocabulary))
    return tokens, max(SMALLEST_CHUNK, chunk)


@dataclass(frozen=True)
class _Unread:
    """Instead of a batch: one of its samples could not be put together."""

    position: int
    error: RowError


def _refuse(
    samples: Sequence[Sample], position: int, refused: Refused, reason: str | None = None
) -> None:
    """Notes that nothing can be made of a sample; without a reason, for the model gives NaN.

    Raises:
        UnreadableRowError: there is nowhere to note it.
    """
    sample = samples[position]
    reason = reason or (
        f"the model gives NaN or infinity for sample {sample.key!r}; check its weights, or try "
        "--dtype float32"
    )
    error = UnreadableRowError(sample.source, reason)
    if refused is None:
        raise error
    refused[position] = error


def _require_finite(samples: Sequence[Sample], batch: Batch, losses: NDArray[Any]) -> None:
    """Makes sure that the model made sense of every sample of a batch; `losses` [b].

    Raises:
        UnreadableRowError: of one it did not.
    """
    for row in np.flatnonzero(~np.isfinite(losses)):
        _refuse(samples, batch.positions[row], None)

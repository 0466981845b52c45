"""Batches of samples through one model: as many as fit, halved where memory runs out.

The next batch is put together in a thread while the model reads one. What is made of a batch is a
function of the caller's, which is called again for smaller batches if there was no memory.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from forvalue_index.errors import RowError, UnreadableRowError, out_of_memory
from forvalue_index.model.batching import Batch, plan_batches
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.model.model_lock import model_lock
from forvalue_index.records import Sample
from forvalue_index.system.prefetch import ahead

TOKEN_BUDGET = {"cpu": 4096, "cuda": 32768}  # tokens of a batch, padding included, at most
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}  # of one float32 chunk of errors, at most
CHUNK_TOKENS = {"cpu": 512, "cuda": 4096}  # of a chunk, at most; on a CPU it should stay in cache
SMALLEST_CHUNK = 16  # tokens; a device without room for their logits is too small for the model
STATES = 64
"""Numbers of the hidden size that a forward pass has of each token at a time, roughly and with room
to spare: a first guess that an out-of-memory error corrects."""
Refused: TypeAlias = dict[int, RowError] | None
"""Gets the errors of samples that nothing can be made of, by position; None: they are raised."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class Runner:
    """Runs work on batches of samples. Threads may share one: their batches take turns.

    `token_budget` (of a batch, padding included) and `chunk` (tokens whose logits are there at a
    time) shrink where memory runs out, and stay so.
    """

    def __init__(self, lm: LanguageModel, token_budget: int | None = None) -> None:
        """Guesses what fits; `token_budget` instead of the guess."""
        self._lm = lm
        tokens, self.chunk = _guess(lm)
        self.token_budget = token_budget or tokens

    def each(
        self,
        samples: Sequence[Sample],
        work: Callable[[Batch], T],
        limit: int = sys.maxsize,
        done: Iterable[int] = (),
        spare: list[Any] | None = None,
        refused: Refused = None,
    ) -> Iterator[tuple[Batch, T]]:
        """Yields batches of all samples that are not done, with what `work` makes of each.

        If a batch does not fit into the memory, `spare` is emptied and it is tried again, or it is
        split if there is nothing to spare. A batch has at most `limit` tokens.

        Raises:
            UnreadableRowError: not even one sample fits; not raised with `refused`.
            RowError: an image of a sample cannot be read, likewise.
        """
        done = set(done)
        while left := [i for i in range(len(samples)) if i not in done]:
            groups = self._batches([samples[i] for i in left], min(limit, self.token_budget))
            planned = (self._collated(samples, [left[i] for i in group]) for group in groups)
            # A thread is worth its start where the next batch is made while one is run.
            with closing(ahead(planned) if len(groups) > 1 else planned) as batches:
                for batch in batches:
                    if isinstance(batch, _Unread):
                        if refused is None:
                            raise batch.error
                        refused[batch.position] = batch.error
                        done.add(batch.position)
                        break
                    made = self.attempt(work, batch)
                    if made is None:
                        if spare:
                            spare.clear()
                        elif reason := self._shrink(samples, batch):
                            refuse(samples, batch.positions[0], refused, reason)
                            done.update(batch.positions)
                        break
                    done.update(batch.positions)
                    yield made

    def alone(
        self,
        samples: Sequence[Sample],
        positions: list[int],
        work: Callable[[Batch], T],
        refused: Refused,
    ) -> Iterator[tuple[Batch, T]]:
        """Yields each of the samples at `positions` as a batch, with what `work` makes of it.

        This finds the one sample of a batch that has something wrong with it.
        """
        others = set(range(len(samples))) - set(positions)
        return self.each(samples, work, 1, others, refused=refused)

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

    def attempt(self, work: Callable[[Batch], T], batch: Batch) -> tuple[Batch, T] | None:
        """Returns the batch on the device and what `work` makes of it; None: there is no room."""
        try:
            batch = batch.to(self._lm.device)
            with model_lock():
                return batch, work(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Here the error is gone, and with it what it kept in memory.
        if self._lm.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _shrink(self, samples: Sequence[Sample], batch: Batch) -> str | None:
        """Halves what is done at a time, after a batch that did not fit.

        Returns what is wrong with the batch's one sample if nothing can be halved.
        """
        n_tokens = batch.inputs["input_ids"].numel()
        if len(batch.positions) > 1:
            self.token_budget = n_tokens // 2
        elif self.chunk > SMALLEST_CHUNK:
            self.chunk //= 2
        else:
            key = samples[batch.positions[0]].key
            return (
                f"sample {key!r} of {n_tokens} tokens does not fit into the memory of "
                f"{self._lm.device}: use a smaller --max-length, or --device auto"
            )
        log.info("out of memory at %d tokens; budget %d now", n_tokens, self.token_budget)
        return None


def _guess(lm: LanguageModel) -> tuple[int, int]:
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
    """The sample of a batch that could not be put together."""

    position: int
    error: RowError


def refuse(
    samples: Sequence[Sample], position: int, refused: Refused, reason: str | None = None
) -> None:
    """Adds a sample to `refused`; without a reason, because the model gives NaN for it.

    Raises:
        UnreadableRowError: `refused` is None.
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


def require_finite(samples: Sequence[Sample], batch: Batch, losses: NDArray[Any]) -> None:
    """Checks that all losses [b] of a batch are finite.

    Raises:
        UnreadableRowError: one is not.
    """
    for row in np.flatnonzero(~np.isfinite(losses)):
        refuse(samples, batch.positions[row], None)

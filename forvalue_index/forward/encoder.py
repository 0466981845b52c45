"""Samples through the model: to vectors, or to the exact factors of their tokens.

The hidden states of a batch are computed once; the unembedding is applied to the scored positions
only, a chunk at a time, so that no batch x tokens x vocabulary tensor ever exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.errors import ModelError
from forvalue_index.features.closed_form import influence, self_influence
from forvalue_index.features.tokens import TokenFactors, Transform
from forvalue_index.features.vectoriser import Vectoriser
from forvalue_index.forward.batching import plan_batches
from forvalue_index.forward.head import hidden_states
from forvalue_index.forward.model import LanguageModel
from forvalue_index.records import Encoded, Sample

TOKEN_BUDGET = {"cpu": 4096, "cuda": 32768}  # tokens of a batch, padding included
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}  # of one float32 chunk of errors, at most
CHUNK_TOKENS = {"cpu": 256, "cuda": 4096}  # of a chunk, at most; on a CPU it should stay in cache
FACTOR_BYTES = 128 << 20  # of the errors of one group of samples, where they are needed exactly


class Encoder:
    """Reads samples with one model."""

    def __init__(self, lm: LanguageModel, token_budget: int | None = None) -> None:
        self._lm = lm
        kind = "cuda" if lm.device.type == "cuda" else "cpu"
        self.token_budget = token_budget or TOKEN_BUDGET[kind]
        self._chunk = min(CHUNK_TOKENS[kind], max(1, CHUNK_BYTES[kind] // (4 * lm.head.vocabulary)))

    def encode(
        self, samples: Sequence[Sample], vectoriser: Vectoriser
    ) -> Iterator[list[tuple[int, Encoded]]]:
        """Yields the vectors batch by batch, each with its sample's position in `samples`.

        A sample's vector depends on the sample alone, up to float32 rounding.

        Raises:
            ModelError: the model gives NaN or infinity for a sample.
        """
        for positions in self._batches(samples, self.token_budget):
            state = vectoriser.zeros(len(positions))
            losses = torch.zeros(len(positions), device=self._lm.device)
            for number in range(len(self._lm.checkpoints)):
                for tokens, token_losses in self._chunks(samples, positions, number):
                    vectoriser.update(state, tokens, number)
                    losses.index_add_(0, tokens.owner, token_losses)
            losses /= len(self._lm.checkpoints)
            vectors, retained = vectoriser.finish(state)
            members = [samples[i] for i in positions]
            yield self._finish(members, positions, vectors, retained, losses)

    def tokens(self, samples: Sequence[Sample], checkpoint: int = 0) -> Iterator[TokenFactors]:
        """Yields the factors of all scored tokens, a chunk at a time, in no order of samples."""
        for positions in self._batches(samples, self.token_budget):
            for tokens, _ in self._chunks(samples, positions, checkpoint):
                yield tokens

    def factors(
        self,
        samples: Sequence[Sample],
        part: Transform,
        checkpoint: int = 0,
        n_bytes: int = FACTOR_BYTES,
    ) -> Iterator[tuple[list[int], TokenFactors]]:
        """Yields the exact factors of groups of samples, with their positions in `samples`.

        `part` is what is done to them: a recipe, or a vectoriser's part for the checkpoint.
        Memory: a group's scored tokens times the vocabulary in float32, about `n_bytes`.
        """
        budget = min(self.token_budget, max(1, n_bytes // (4 * self._lm.head.vocabulary)))
        for positions in self._batches(samples, budget):
            chunks = [part(tokens) for tokens, _ in self._chunks(samples, positions, checkpoint)]
            yield (
                positions,
                TokenFactors(
                    torch.cat([chunk.hidden for chunk in chunks]),
                    torch.cat([chunk.errors for chunk in chunks]),
                    torch.cat([chunk.owner for chunk in chunks]),
                    len(positions),
                ),
            )

    def influence(
        self, queries: Sequence[Sample], samples: Sequence[Sample], parts: Sequence[Transform]
    ) -> NDArray[np.float32]:
        """Returns the exact influence of every sample on every query, [queries, samples].

        It is the sum over the model's checkpoints, one of `parts` for each. Every sample is run
        forward once for each group of queries that fits in memory.
        """
        result = np.zeros((len(queries), len(samples)), dtype=np.float32)
        for number, part in enumerate(parts):
            for rows, query in self.factors(queries, part, number, 4 * FACTOR_BYTES):
                for columns, sample in self.factors(samples, part, number):
                    result[np.ix_(rows, columns)] += influence(query, sample).cpu().numpy()
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
        """Returns the mean negative log-likelihood of each sample's scored tokens, [n] nats."""
        result = np.zeros(len(samples))
        for positions in self._batches(samples, self.token_budget):
            for number in range(len(self._lm.checkpoints)):
                for tokens, token_losses in self._chunks(samples, positions, number):
                    own = np.bincount(
                        tokens.owner.cpu(), token_losses.double().cpu(), len(positions)
                    )
                    result[positions] += own
        scored = np.array([sample.n_scored for sample in samples])
        means: NDArray[np.float64] = result / np.maximum(scored, 1) / len(self._lm.checkpoints)
        return means

    def states(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        """Returns the mean of the states that predict each sample's scored tokens, [n, hidden].

        The unembedding is not applied. Of several checkpoints the first one is read.
        """
        result = np.zeros((len(samples), self._lm.head.hidden), np.float32)
        head = self._lm.activate(0)
        for positions in self._batches(samples, self.token_budget):
            batch = self._lm.collate(samples, positions).to(self._lm.device)
            states = hidden_states(self._lm.model, head, batch.inputs)
            hidden = states.reshape(-1, states.shape[-1])[batch.predictors].float()
            total = hidden.new_zeros(len(positions), hidden.shape[1])
            total.index_add_(0, batch.owner, hidden)
            counts = torch.bincount(batch.owner, minlength=len(positions))[:, None]
            result[positions] = (total / counts).cpu().numpy()
        return result

    def _batches(self, samples: Sequence[Sample], token_budget: int) -> list[list[int]]:
        return plan_batches(
            samples, token_budget, same_length=self._lm.length_matters, kind=self._lm.kind
        )

    def _chunks(
        self, samples: Sequence[Sample], positions: list[int], checkpoint: int
    ) -> Iterator[tuple[TokenFactors, Tensor]]:
        """Yields the factors and losses of a batch's scored tokens, a chunk at a time.

        Raises:
            ModelError: the model gives NaN or infinity for a sample.
        """
        batch = self._lm.collate(samples, positions).to(self._lm.device)
        head = self._lm.activate(checkpoint)
        states = hidden_states(self._lm.model, head, batch.inputs)
        hidden = states.reshape(-1, states.shape[-1])[batch.predictors]  # [n, d]
        for start in range(0, len(hidden), self._chunk):
            part = slice(start, start + self._chunk)
            with torch.no_grad():
                errors, losses = head.errors(hidden[part], batch.targets[part])
            bad = ~torch.isfinite(losses)
            if bad.any():
                sample = samples[batch.positions[int(batch.owner[part][bad][0])]]
                raise ModelError(
                    f"{sample.source}: the model gives NaN or infinity for sample {sample.key!r}; "
                    "check its weights, or try --dtype float32"
                )
            tokens = TokenFactors(
                hidden[part].float(), errors, batch.owner[part], len(batch.positions)
            )
            yield tokens, losses

    def _finish(
        self,
        samples: list[Sample],
        positions: list[int],
        vectors: Tensor,
        retained: Tensor,
        losses: Tensor,
    ) -> list[tuple[int, Encoded]]:
        norms = torch.linalg.vector_norm(vectors, dim=1).tolist()
        arrays = vectors.cpu().numpy()
        means = (losses.cpu() / torch.tensor([sample.n_scored for sample in samples])).tolist()
        kept = retained.cpu().tolist()
        return [
            (position, Encoded(arrays[row], means[row], norms[row], kept[row]))
            for row, position in enumerate(positions)
        ]

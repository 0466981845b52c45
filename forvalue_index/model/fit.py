"""Learning what a vectoriser needs from a part of the training set, by forward passes alone.

The statistics of a few tokens settle recipe and sketch; then the second moments of the sketches,
summed as the samples are read, give the projection. The states of the first tokens are kept, as
many numbers as some layers of the model have, and the sketches are kept in a temporary file until
they can be projected, so that every sample goes through the model once. Some samples are kept out:
they show how true vectors are of rows that the vectoriser has not seen.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.config import VectorConfig
from forvalue_index.errors import RowError, StorageError, UnreadableRowError
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.fidelity import Exact, among_themselves, compared
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Encoded, Fidelity, Sample
from forvalue_index.vectors.projection import aligned
from forvalue_index.vectors.sketch import SKETCHES
from forvalue_index.vectors.vectoriser import Vectoriser
from forvalue_index.vectors.whitening import Whitening

BLOCK = 256  # sketches in memory at a time
TOKENS_PER_DIMENSION = 32
"""Scored tokens for each hidden unit that the statistics are taken from."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A vectoriser, the vectors of the samples it was fitted to, and how true they are."""

    vectoriser: Vectoriser
    encoded: list[Encoded]  # in the order of the samples
    retained: float  # share of the energy of samples kept out that lies in learned directions
    fidelity: Fidelity | None  # of samples that were kept out


class UnfitError(UnreadableRowError):
    """Samples that the model cannot read, by position: a vectoriser cannot learn from them."""

    def __init__(self, refused: dict[int, RowError]) -> None:
        first = min(refused)
        super().__init__(refused[first].source, refused[first].reason)
        self.refused = refused


def fit_vectoriser(
    lm: LanguageModel,
    samples: Sequence[Sample],
    config: VectorConfig,
    report: Callable[[int], None],
) -> Fitted:
    """Returns a vectoriser that was fitted to samples, which are in random order.

    Raises:
        UnfitError: the model gives NaN or infinity for some samples, or cannot read them.
        StorageError: there is no room for the sketches in the folder for temporary files.
    """
    encoder, refused = Encoder(lm), dict[int, RowError]()
    rows, queries = compared(lm, samples)
    if 2 * rows > len(samples):
        rows = queries = 0
    known_to = len(samples) - rows  # samples after these are kept out
    learned, others = samples[:known_to], samples[known_to:]
    first = _first(learned, TOKENS_PER_DIMENSION * lm.head.hidden)
    losses, done = np.zeros(len(samples)), 0
    means = np.zeros((len(samples), lm.head.hidden), np.float32)
    weights = [checkpoint.weight for checkpoint in lm.checkpoints]
    size = SKETCHES[config.sketch].size(lm.head.vocabulary, lm.head.hidden, config.sketch_dim)
    with _on_disk(len(samples), size) as sketches:
        statistics, known = encoder.read(first, refused)
        if refused:
            raise UnfitError(refused)
        wide = Vectoriser.fit(config, statistics, weights)

        def keep(batches: Iterator[list[tuple[int, Encoded]]], start: int) -> None:
            nonlocal done
            for batch in batches:
                for position, item in batch:
                    sketches[start + position] = item.vector
                    losses[start + position] = item.loss
                    means[start + position] = item.state
                done += len(batch)
                report(done)

        keep(encoder.encode(learned, wide, known, refused), 0)
        bad, exact = dict[int, RowError](), None
        if others and not refused:
            try:
                exact = Exact(encoder, wide, others, queries)
            except RowError as error:
                same = (i for i, sample in enumerate(others) if sample.source == error.source)
                raise UnfitError({known_to + i: error for i in same}) from error
            keep(encoder.encode(others, wide, None, bad, exact), known_to)
        refused |= {known_to + position: error for position, error in bad.items()}
        if refused:
            raise UnfitError(refused)
        moments, norms = wide.moments(), np.empty(len(samples), np.float32)
        for part, block in _blocks(sketches, lm.device):
            norms[part] = torch.linalg.vector_norm(block, dim=1).cpu().numpy()
            moments.update(block[: max(0, known_to - part.start)])
        whitening = Whitening.fit(aligned(means[:known_to]).to(lm.device))
        unseen = (block for _, block in _blocks(sketches[known_to:], lm.device))
        vectoriser = wide.fit_projection(config, moments, norms, whitening, unseen)
        encoded: list[Encoded] = []
        for part, block in _blocks(sketches, lm.device):
            vectors, retained = (item.cpu().numpy() for item in vectoriser.project(block))
            states = vectoriser.states(aligned(means[part]).to(lm.device)).cpu().numpy()
            each = states if states.size else [None] * len(states)
            encoded += [
                Encoded(vector, float(loss), float(np.linalg.norm(vector)), float(share), state)
                for vector, loss, share, state in zip(
                    vectors, losses[part], retained, each, strict=True
                )
            ]
    like_new = encoded[known_to:] or encoded
    figures = None
    if exact is not None:
        vectors = np.stack([item.vector for item in like_new])
        figures = among_themselves(exact.scores, vectors, config.bits)
    retained_share = float(np.mean([item.retained for item in like_new]))
    return Fitted(vectoriser, encoded, retained_share, figures)


def _blocks(sketches: NDArray[np.float32], device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(sketches), BLOCK):
        part = slice(start, min(start + BLOCK, len(sketches)))
        yield part, aligned(sketches[part]).to(device)


@contextmanager
def _on_disk(n: int, width: int) -> Iterator[NDArray[np.float32]]:
    """Yields an array [n, width] in a temporary file, for a `with` block.

    Raises:
        StorageError: there is no room for it.
    """
    size = n * width * np.dtype(np.float32).itemsize
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile())
            # A write to a mapped page that finds no room kills the process: take all of it first.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            raise StorageError(
                f"{tempfile.tempdir or 'the folder for temporary files'} has no room for the "
                f"{size:,} bytes that fitting keeps there ({error.strerror or error}): set TMPDIR "
                "to a folder with more space and run the command again"
            ) from error
        yield np.memmap(file, dtype=np.float32, mode="r+", shape=(n, width))


def _first(samples: Sequence[Sample], n_tokens: int) -> Sequence[Sample]:
    """Returns the first samples that hold `n_tokens` scored tokens together, or all of them."""
    counts = np.cumsum([sample.n_scored for sample in samples])
    return samples[: int(np.searchsorted(counts, n_tokens)) + 1]

"""Learning what a vectoriser needs from a part of the training set, by forward passes alone.

The statistics of a few tokens settle recipe and sketch, then the sketches of all fitting samples
give the projection, and with it those samples' vectors. The states of the first are kept, as many
numbers as some layers of the model have, so that every sample goes through the model once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
from numpy.typing import NDArray

from forvalue_index.config import VectorConfig
from forvalue_index.errors import RowError, StorageError, UnreadableRowError
from forvalue_index.features.projection import aligned
from forvalue_index.features.vectoriser import Vectoriser
from forvalue_index.forward.encoder import Encoder
from forvalue_index.forward.model import LanguageModel
from forvalue_index.records import Encoded, Sample

BLOCK = 256  # sketches that are projected at a time
TOKENS_PER_DIMENSION = 32
"""Scored tokens for each hidden unit that the statistics are taken from."""


class UnfitError(UnreadableRowError):
    """The model makes nothing of some samples, by position: a vectoriser learns of none of them."""

    def __init__(self, refused: dict[int, RowError]) -> None:
        first = min(refused)
        super().__init__(refused[first].source, refused[first].reason)
        self.refused = refused


def fit_vectoriser(
    lm: LanguageModel,
    samples: Sequence[Sample],
    config: VectorConfig,
    report: Callable[[int], None],
) -> tuple[Vectoriser, list[Encoded]]:
    """Returns a vectoriser that was fitted to samples, and the samples' vectors, in order.

    Raises:
        UnfitError: the model gives NaN or infinity for some samples, or cannot read them.
        StorageError: there is no room for the sketches in the folder for temporary files.
    """
    encoder = Encoder(lm)
    first = _first(samples, TOKENS_PER_DIMENSION * lm.head.hidden)
    weights = [checkpoint.weight for checkpoint in lm.checkpoints]
    losses, done, refused = np.zeros(len(samples)), 0, dict[int, RowError]()
    with _on_disk(len(samples), config.sketch_dim) as room:
        statistics, known = encoder.read(first, refused)
        if refused:
            raise UnfitError(refused)
        wide = Vectoriser.fit(config, statistics, weights)
        sketches = room[:, : wide.dim]  # [n, S]
        for batch in encoder.encode(samples, wide, known, refused):
            for position, item in batch:
                sketches[position], losses[position] = item.vector, item.loss
            done += len(batch)
            report(done)
        if refused:
            raise UnfitError(refused)
        vectoriser = wide.fit_projection(config, sketches, lm.device)
        encoded = []
        for start in range(0, len(samples), BLOCK):
            block = aligned(sketches[start : start + BLOCK]).to(lm.device)
            vectors, retained = (part.cpu().numpy() for part in vectoriser.project(block))
            encoded += [
                Encoded(vector, float(loss), float(np.linalg.norm(vector)), float(share))
                for vector, loss, share in zip(
                    vectors, losses[start : start + BLOCK], retained, strict=True
                )
            ]
    return vectoriser, encoded


@contextmanager
def _on_disk(n: int, width: int) -> Iterator[NDArray[np.float32]]:
    """An array [n, width] in a temporary file, for a `with` block.

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

"""Learning what a vectoriser needs from a part of the training set, by forward passes alone.

The statistics of a few tokens settle recipe and sketch, then the sketches of all fitting samples
give the projection, and with it those samples' vectors. The states of the first are kept, as many
numbers as some layers of the model have, so that every sample goes through the model once; the
sketches wait in a temporary file for the projection. Some of the samples are kept out of it: they
tell how well rows are stored that it has not seen.
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
from forvalue_index.features.closed_form import influence
from forvalue_index.features.codes import Codes
from forvalue_index.features.projection import aligned
from forvalue_index.features.sketch import WIDTHS
from forvalue_index.features.vectoriser import Vectoriser
from forvalue_index.forward.encoder import Encoder
from forvalue_index.forward.model import LanguageModel
from forvalue_index.records import Encoded, Sample

BLOCK = 256  # sketches in memory at a time
TOKENS_PER_DIMENSION = 32
"""Scored tokens for each hidden unit that the statistics are taken from."""

COMPARED = 1536  # scored tokens of the samples by which the width of the sketch is chosen, about
FEW = 8  # samples; fewer choose nothing

KEPT_OUT = 8  # one of so many samples is not in the projection, at most MOST of them
MOST = 256
TOP = 10  # of the samples kept out, for each of them as a query


@dataclass(frozen=True, slots=True)
class Fitted:
    """A vectoriser, what it made of the samples it was fitted to, and how well it does."""

    vectoriser: Vectoriser
    encoded: list[Encoded]  # in the order of the samples
    retained: float  # share of their energy that vectors of samples kept out hold
    fidelity: dict[str, float] | None
    """Of the samples that score highest by their sketches, the share that does by what is stored:
    `top_10` and its standard `error`, over so many `queries`, all kept out; None: too few."""


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
) -> Fitted:
    """Returns a vectoriser that was fitted to samples, which stand in an order by chance.

    Raises:
        UnfitError: the model gives NaN or infinity for some samples, or cannot read them.
        StorageError: there is no room for the sketches in the folder for temporary files.
    """
    encoder = Encoder(lm)
    first = _first(samples, TOKENS_PER_DIMENSION * lm.head.hidden)
    weights = [checkpoint.weight for checkpoint in lm.checkpoints]
    n, losses, done, refused = len(samples), np.zeros(len(samples)), 0, dict[int, RowError]()
    out = min(n // KEPT_OUT, MOST)
    with _on_disk(n, config.sketch_dim) as room:
        statistics, known = encoder.read(first, refused)
        if refused:
            raise UnfitError(refused)
        wide = _best_width(
            encoder,
            _first(samples, COMPARED),
            [Vectoriser.fit(config, statistics, weights, width) for width in _widths(lm, config)],
        )
        sketches = room[:, : wide.dim]  # [n, S]
        for batch in encoder.encode(samples, wide, known, refused):
            for position, item in batch:
                sketches[position], losses[position] = item.vector, item.loss
            done += len(batch)
            report(done)
        if refused:
            raise UnfitError(refused)
        moments, norms = wide.moments(), np.empty(n, np.float32)
        for part, block in _blocks(sketches, lm.device):
            norms[part] = torch.linalg.vector_norm(block, dim=1).cpu().numpy()
            moments.update(block[: max(0, n - out - part.start)])  # the last ones are kept out
        vectoriser = wide.fit_projection(config, moments, norms)
        encoded: list[Encoded] = []
        for part, block in _blocks(sketches, lm.device):
            vectors, retained = (item.cpu().numpy() for item in vectoriser.project(block))
            encoded += [
                Encoded(vector, float(loss), float(np.linalg.norm(vector)), float(share))
                for vector, loss, share in zip(vectors, losses[part], retained, strict=True)
            ]
        vectors = np.stack([item.vector for item in encoded[n - out :] or encoded[:1]])
        figures = fidelity(np.array(sketches[n - out :]), vectors, config.bits)
    others = [item.retained for item in encoded[n - out :]]
    if not out:
        others = [item.retained for item in encoded]
    return Fitted(vectoriser, encoded, float(np.mean(others)), figures)


def _widths(lm: LanguageModel, config: VectorConfig) -> list[int]:
    """Returns the widths of sketches that differ for a model, the greatest first."""
    if config.sketch != "block":
        return [WIDTHS[0]]
    return [WIDTHS[0], *(width for width in WIDTHS[1:] if width < lm.head.hidden)]


def _best_width(
    encoder: Encoder, samples: Sequence[Sample], choices: Sequence[Vectoriser]
) -> Vectoriser:
    """Returns the choice whose sketches are truest to the exact form, of the first checkpoint.

    The recipe and the data decide whether more hidden directions or more blocks tell more.
    Truest: the highest correlation of the influences of samples on each other.
    """
    if len(choices) == 1 or len(samples) < FEW:
        return choices[0]
    _, tokens = next(iter(encoder.factors(samples, choices[0].parts[0].recipe)))
    off = ~torch.eye(tokens.n_samples, dtype=torch.bool, device=tokens.hidden.device)
    exact = influence(tokens, tokens)[off]

    def truth(choice: Vectoriser) -> float:
        state = choice.zeros(tokens.n_samples)
        choice.parts[0].sketch.update(state, tokens)
        sketches = choice.parts[0].sketch.finish(state)
        found = (sketches @ sketches.T)[off]
        return float(torch.corrcoef(torch.stack([found, exact]))[0, 1].nan_to_num(-1))

    return max(choices, key=truth)


def fidelity(
    sketches: NDArray[np.float32], vectors: NDArray[np.float32], bits: int
) -> dict[str, float] | None:
    """Returns what is stored of the TOP best of each sample among the others; None: too few.

    Args:
        sketches: [n, S], by which they are the best.
        vectors: [n, dim], of the same samples.
        bits: of a number that is stored.
    """
    n = len(sketches)
    if n < 2 * TOP + 1:
        return None
    codes = Codes(vectors.shape[1], bits)
    true = sketches @ sketches.T
    stored = vectors @ codes.decode(codes.encode(vectors)).T
    best = []
    for scores in (true, stored):
        np.fill_diagonal(scores, -np.inf)
        best.append(np.argsort(-scores, axis=1, kind="stable")[:, :TOP])
    kept = [len(np.intersect1d(a, b)) / TOP for a, b in zip(*best, strict=True)]
    return {
        "top_10": round(float(np.mean(kept)), 4),
        "error": round(float(np.std(kept, ddof=1) / n**0.5), 4),
        "queries": n,
    }


def _blocks(sketches: NDArray[np.float32], device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(sketches), BLOCK):
        part = slice(start, min(start + BLOCK, len(sketches)))
        yield part, aligned(sketches[part]).to(device)


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

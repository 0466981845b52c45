"""Scores of training samples without influence: by words, embedding, loss, length and chance.

Every method gives a matrix [queries, samples], as influence does; higher is more likely a source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.config import FormatConfig
from forvalue_index.data.row_text import texts_of
from forvalue_index.errors import DependencyError
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Progress, Sample, StoredSample


def require_bm25() -> None:
    """Checks that BM25 can be computed.

    Raises:
        DependencyError: the library is not installed.
    """
    try:
        import bm25s  # noqa: F401
    except ImportError:
        raise DependencyError(
            'the BM25 baseline needs the package bm25s: pip install "forvalue-index[eval]"'
        ) from None


def baselines(
    index: InfluenceIndex,
    queries: Sequence[Sample],
    stored: Sequence[StoredSample],
    format: FormatConfig,
    *,
    embedding: NDArray[np.float32] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yields each baseline's name and scores [q, n], one at a time.

    Args:
        index: the index, for its model and its rows.
        queries: the q queries.
        stored: the n training samples.
        format: how the queries became tokens.
        embedding: the scores of that name, if they are known: then the model is not run.
        seed: of the random scores.
        progress: called while the training samples are run forward, for their embeddings.
    """
    samples = index.training_samples(item.id for item in stored)
    ones = np.ones((len(queries), 1), np.float32)
    yield "bm25", bm25(texts(queries, format), texts(samples, index.config.format))
    if embedding is None:
        embedding = index.passes.embedding(queries, samples, progress)
    yield "embedding", embedding
    yield "loss", ones * np.array([item.loss for item in stored], np.float32)
    yield "length", ones * np.array([item.n_tokens for item in stored], np.float32)
    shape = (len(queries), len(stored))
    yield "random", np.random.default_rng(seed).random(shape, dtype=np.float32)


def bm25(queries: Sequence[str], samples: Sequence[str]) -> NDArray[np.float32]:
    """Returns the BM25 scores of texts, [q, n]. Words are runs of letters and digits in lower case.

    Raises:
        DependencyError: the library is not installed.
    """
    require_bm25()
    import bm25s

    result = np.zeros((len(queries), len(samples)), np.float32)
    corpus = [_words(text) for text in samples]
    if not any(corpus):
        return result
    search = bm25s.BM25()
    search.index(corpus, show_progress=False)
    for row, text in zip(result, queries, strict=True):
        if words := _words(text):
            row[:] = search.get_scores(words)
    return result


def texts(samples: Sequence[Sample], format: FormatConfig) -> list[str]:
    """Returns the whole texts of samples, prompts included."""
    return ["".join(texts_of(sample.row, sample.source, format)) for sample in samples]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())

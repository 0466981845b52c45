"""What needs no influence: scores of training samples by words, by embedding, by loss, by chance.

Every method gives a matrix [queries, samples], higher meaning more likely a source, so that it can
stand beside influence in any comparison.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from forvalue_index.config import FormatConfig
from forvalue_index.data.row_text import texts_of
from forvalue_index.errors import DependencyError
from forvalue_index.index import InfluenceIndex
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.pipeline.add import Progress
from forvalue_index.records import Sample, StoredSample
from forvalue_index.vectors.closed_form import similarity
from forvalue_index.vectors.recipe import Raw

Scores = NDArray[np.float32]


def require_bm25() -> None:
    """Does nothing if BM25 can be computed.

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
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Scores]]:
    """Yields each baseline's name and scores [q, n], one at a time.

    Args:
        index: the index, for its model and its rows.
        queries: the q queries.
        stored: the n training samples.
        format: how the queries became tokens.
        seed: of the random scores.
        progress: called as the training samples are run forward again, for their embeddings.
    """
    samples = index.training_samples(item.id for item in stored)
    ones = np.ones((len(queries), 1), np.float32)
    yield "bm25", bm25(texts(queries, format), texts(samples, index.config.format))
    yield "embedding", embedding(index.lm, queries, samples, progress)
    yield "loss", ones * np.array([item.loss for item in stored], np.float32)
    yield "length", ones * np.array([item.n_tokens for item in stored], np.float32)
    shape = (len(queries), len(stored))
    yield "random", np.random.default_rng(seed).random(shape, dtype=np.float32)


def bm25(queries: Sequence[str], samples: Sequence[str]) -> Scores:
    """Returns the BM25 scores of texts, [q, n]. Words are runs of letters and digits, any case.

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


def embedding(
    lm: LanguageModel,
    queries: Sequence[Sample],
    samples: Sequence[Sample],
    progress: Progress | None = None,
) -> Scores:
    """Returns the cosine of the mean last hidden states of the scored tokens, [q, n]."""
    encoder = Encoder(lm)
    result = np.zeros((len(queries), len(samples)), np.float32)
    # Hidden states of all queries are small; it is the errors that would not fit.
    groups = [
        (rows, replace(tokens, errors=tokens.errors[:, :0]))
        for rows, tokens in encoder.factors(queries, Raw())
    ]
    done = n_tokens = 0
    for columns, tokens in encoder.factors(samples, Raw()):
        for rows, query in groups:
            result[np.ix_(rows, columns)] = similarity(query, tokens).cpu().numpy()
        done += len(columns)
        n_tokens += sum(len(samples[column].input_ids) for column in columns)
        if progress is not None:
            progress("embedding", done, len(samples), n_tokens)
    return result


def texts(samples: Sequence[Sample], format: FormatConfig) -> list[str]:
    """Returns the whole texts of samples, prompts included."""
    return ["".join(texts_of(sample.row, sample.source, format)) for sample in samples]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())

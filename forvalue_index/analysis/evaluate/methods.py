"""All methods that score training samples for queries: influence, and what it is compared with.

Every study uses the same methods, so that their tables can be compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.evaluate.baselines import baselines
from forvalue_index.analysis.evaluate.exact import ExactScores, exact_scores
from forvalue_index.config import FormatConfig, VectorConfig
from forvalue_index.index import InfluenceIndex
from forvalue_index.metric import METRICS
from forvalue_index.records import Progress, Row, Sample, StoredSample

if TYPE_CHECKING:
    from forvalue_index.index import LanguageModel

LAST_LAYER, GRADIENT = "last-layer gradient", "full gradient"
PLACE = "forvalue_place"  # field that makes equal rows of a temporary index distinct


def influence_scores(
    index: InfluenceIndex,
    queries: Sequence[Sample],
    stored: Sequence[StoredSample],
    *,
    exact: ExactScores | None = None,
    hybrid: bool = False,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields the name and scores [q, n] of every metric, by stored vectors and by the exact form.

    Args:
        index: the index.
        queries: the q queries.
        stored: all training samples of the index, in the order of their ids.
        exact: what `exact_scores` says of them: then also by the exact form.
        hybrid: also by words and vectors together, which finds sources and is no influence.
    """
    queries = list(queries)
    lengths = np.array([item.norm for item in stored])
    n_scored = np.array([item.n_scored for item in stored])
    vectors = index.query_vectors(queries)
    for name, scores in by_metric(index.scores(queries, vectors=vectors)[1], lengths, n_scored):
        yield f"stored {name}", scores
    for metric in METRICS.values():
        if not metric.has_exact and (metric.linear or (hybrid and metric.vectors)):
            yield f"stored {metric.name}", index.scores(queries, metric, vectors=vectors)[1]
    if exact is not None:
        for name, scores in by_metric(exact.scores, exact.sample_lengths, n_scored):
            yield f"exact {name}", scores


def other_scores(
    index: InfluenceIndex,
    queries: Sequence[Sample],
    stored: Sequence[StoredSample],
    format: FormatConfig,
    *,
    exact: ExactScores | None = None,
    gradient: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields the name and scores [q, n] of each method that influence is compared with.

    Args:
        index: the index, for its model and its rows.
        queries: the q queries.
        stored: the n training samples.
        format: how the queries became tokens.
        exact: what `exact_scores` says of them: then also the exact inner products of the
            unembedding's gradients.
        gradient: also those of the whole model's, one backward pass a sample.
        seed: of the random scores.
        progress: called as training samples are run again.
    """
    queries = list(queries)
    if exact is not None:
        yield LAST_LAYER, exact.last_layer
    if gradient:
        samples = index.training_samples(item.id for item in stored)
        yield GRADIENT, index.passes.gradients(queries, samples, progress)
    embedding = None if exact is None else exact.embedding
    yield from baselines(
        index, queries, stored, format, embedding=embedding, seed=seed, progress=progress
    )


def exact_of(
    index: InfluenceIndex,
    queries: Sequence[Sample],
    stored: Sequence[StoredSample],
    progress: Progress | None = None,
) -> ExactScores:
    """Returns what one forward pass of queries and training samples tells; see `exact_scores`."""
    return exact_scores(index, queries, np.array([item.id for item in stored]), progress)


def by_metric(
    scores: NDArray[Any], lengths: NDArray[Any], n_scored: NDArray[Any]
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields the name and scores [q, n] of every metric that divides inner products by sizes.

    The size of the query is left out: it does not change the order of the samples.

    Args:
        scores: inner products [q, n].
        lengths: of the samples' vectors [n].
        n_scored: the samples' scored tokens [n].
    """
    for name, metric in METRICS.items():
        if metric.has_exact:
            yield name, scores / metric.sizes(lengths, n_scored)


def all_stored(index: InfluenceIndex) -> list[StoredSample]:
    """Returns all training samples of an index, in the order of their ids."""
    return list(index.stored(index.snapshot.ids))


@contextmanager
def empty_index(lm: LanguageModel, format: FormatConfig) -> Iterator[InfluenceIndex]:
    """Gives a temporary index without rows, for the samples and the passes of a model."""
    with (
        tempfile.TemporaryDirectory(prefix="forvalue-") as folder,
        InfluenceIndex.create(Path(folder) / "index", lm, format=format) as index,
    ):
        yield index


@contextmanager
def temporary_index(
    rows: Sequence[Row],
    lm: LanguageModel,
    format: FormatConfig,
    vector: VectorConfig,
    progress: Progress | None = None,
) -> Iterator[tuple[InfluenceIndex, list[StoredSample]]]:
    """Gives a temporary index of rows, and its samples in the order of the rows.

    Equal rows are not merged.
    """
    with tempfile.TemporaryDirectory(prefix="forvalue-") as folder:
        index, _ = InfluenceIndex.build(
            Path(folder) / "index",
            [row | {PLACE: place} for place, row in enumerate(rows)],
            lm,
            format=format,
            vector=vector,
            progress=progress,
        )
        with index:
            stored = all_stored(index)
            assert [item.row[PLACE] for item in stored] == list(range(len(rows)))
            yield index, stored

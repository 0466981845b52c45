"""All ways to score training samples for queries, side by side: influence and what rivals it.

Every evaluation judges the same methods, so that their tables can be read together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.evaluate.baselines import baselines
from forvalue_index.analysis.evaluate.exact import exact_scores
from forvalue_index.analysis.evaluate.gradients import gradient_scores
from forvalue_index.config import FormatConfig, VectorConfig
from forvalue_index.index import InfluenceIndex
from forvalue_index.metric import METRICS
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.pipeline.add import Progress
from forvalue_index.records import Row, Sample, StoredSample
from forvalue_index.vectors.recipe import Raw

LAST_LAYER, GRADIENT = "last-layer gradient", "full gradient"
PLACE = "forvalue_place"  # field that keeps equal rows of a temporary index apart


def influences(
    index: InfluenceIndex,
    queries: Sequence[Sample],
    stored: Sequence[StoredSample],
    *,
    exact: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields the scores [q, n] of an index under every metric, by stored vectors and exact form.

    Args:
        index: the index.
        queries: the q queries.
        stored: the n training samples, all of the index, in the order of their ids.
        exact: also by the exact form, which runs all training samples forward again.
        progress: called as they are.
    """
    queries = list(queries)
    lengths = np.array([item.norm for item in stored])
    n_scored = np.array([item.n_scored for item in stored])
    for name, scores in of_pairs(index.scores(queries)[1], lengths, n_scored):
        yield f"stored {name}", scores
    for metric in METRICS.values():
        if not metric.has_exact:
            yield f"stored {metric.name}", index.scores(queries, metric)[1]
    if exact:
        true = exact_scores(index, queries, np.array([item.id for item in stored]), progress)
        for name, scores in of_pairs(true.scores, true.sample_lengths, n_scored):
            yield f"exact {name}", scores


def rivals(
    index: InfluenceIndex,
    queries: Sequence[Sample],
    stored: Sequence[StoredSample],
    format: FormatConfig,
    *,
    last_layer: bool = False,
    gradient: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields the scores [q, n] of what influence is compared with.

    Args:
        index: the index, for its model and its rows.
        queries: the q queries.
        stored: the n training samples.
        format: how the queries became tokens.
        last_layer: also the exact inner products of the unembedding's gradients.
        gradient: also those of the whole model's, one backward pass a sample.
        seed: of the random scores.
        progress: called as training samples are run again.
    """
    queries = list(queries)
    samples = index.training_samples(item.id for item in stored)
    if last_layer:
        parts = [Raw()] * len(index.lm.checkpoints)
        yield LAST_LAYER, index.reader.encoder.influence(queries, samples, parts)
    if gradient:
        yield GRADIENT, gradient_scores(index.lm, queries, samples, progress)
    yield from baselines(index, queries, stored, format, seed=seed, progress=progress)


def of_pairs(
    scores: NDArray[Any], lengths: NDArray[Any], n_scored: NDArray[Any]
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields name and scores [q, n] of every metric that is made of inner products.

    They order the samples of a query; its own size, which changes nothing in that, is left out.

    Args:
        scores: inner products [q, n].
        lengths: of the samples' vectors [n].
        n_scored: the samples' scored tokens [n].
    """
    for name, metric in METRICS.items():
        if metric.has_exact:
            yield name, scores / metric.sizes(lengths, n_scored)


def stored_samples(index: InfluenceIndex, ids: NDArray[np.int64]) -> list[StoredSample]:
    """Returns the training samples with these ids, as the catalogue has them."""
    return list(index.store.catalog.samples(ids.tolist()).values())


@contextmanager
def temporary_index(
    rows: Sequence[Row],
    lm: LanguageModel,
    format: FormatConfig,
    vector: VectorConfig,
    progress: Progress | None = None,
) -> Iterator[tuple[InfluenceIndex, list[StoredSample]]]:
    """Gives an index of rows that is gone afterwards, and its samples in the order of the rows.

    Equal rows stay apart.
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
            stored = stored_samples(index, index.flat.ids)
            assert [item.row[PLACE] for item in stored] == list(range(len(rows)))
            yield index, stored

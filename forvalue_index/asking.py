"""How an index answers: search by the stored vectors, then, if wanted, the exact form.

rows -> samples -> vectors -> search -> rows by id -> hits
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from forvalue_index.metric import Metric
from forvalue_index.reading import Reader
from forvalue_index.records import Hit, Sample, listed
from forvalue_index.view import View

RERANKED = 32
"""Queries whose candidates are run forward together for the exact form."""


def query(
    reader: Reader,
    samples: list[Sample],
    k: int,
    *,
    opponents: bool,
    metric: Metric,
    where: str | Iterable[str],
    exact: bool,
    candidates: int | None,
    flat: bool,
) -> list[Hit]:
    """Returns the hits of queries; see `InfluenceIndex.query`."""
    conditions, vectors = listed(where), reader.vectors(samples)

    def ask(view: View) -> list[Hit]:
        allowed = view.where(conditions) if conditions else None
        n = max(k, candidates or 10 * k) if exact else k
        stored, ids = view.search(
            vectors, n, metric, opponents=opponents, allowed=allowed, flat=flat
        )
        if exact:
            scores, ids = _rerank(reader, samples, ids, k, metric, opponents)
        else:
            scores = stored * reader.query_weights(samples, vectors, metric)[:, None]
        rows = view.samples(ids.ravel().tolist())
        return [
            Hit(query, place, id, rows[id].key, score, rows[id].row, exact)
            for query in range(len(samples))
            for place, (id, score) in enumerate(
                zip(ids[query].tolist(), scores[query].tolist(), strict=True), 1
            )
        ]

    return reader.store.answer(ask)


def scores(
    reader: Reader, samples: list[Sample], metric: Metric
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the ids of all training samples and their scores; see `InfluenceIndex.scores`."""
    vectors = reader.vectors(samples)
    ids, found = reader.store.answer(
        lambda view: view.flat.scores(view.turned(vectors, metric), weights=view.weights(metric))
    )
    weights = reader.query_weights(samples, vectors, metric).astype(np.float32)
    return ids, found * weights[:, None]


def _rerank(
    reader: Reader,
    samples: list[Sample],
    ids: NDArray[np.int64],
    k: int,
    metric: Metric,
    opponents: bool,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns the k best of each query's candidates by the exact form, scores and ids."""
    k = min(k, ids.shape[1])
    scores = np.empty((len(samples), k))
    best = np.empty((len(samples), k), dtype=np.int64)
    for start in range(0, len(samples), RERANKED):
        part = slice(start, start + RERANKED)
        pool = np.unique(ids[part])
        exact = reader.exact(samples[part], reader.training_samples(pool.tolist()), metric)
        for query, row in enumerate(exact, start):
            own = row[np.searchsorted(pool, ids[query])]
            order = np.lexsort((ids[query], own if opponents else -own))[:k]
            scores[query], best[query] = own[order], ids[query][order]
    return scores, best

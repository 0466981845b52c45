"""How an index answers: search by the stored vectors, then, if wanted, the exact form.

rows -> samples -> vectors -> search -> rows by id -> hits
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

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
    rank: str,
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
        stored, ids = view.search(vectors, n, rank, opponents=opponents, allowed=allowed, flat=flat)
        if exact:
            scores, ids = _rerank(reader, samples, ids, k, rank, opponents)
        else:
            scores = stored * _query_weights(reader, samples, vectors, rank)[:, None]
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
    reader: Reader, samples: list[Sample], rank: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the ids of all training samples and their scores; see `InfluenceIndex.scores`."""
    vectors = reader.vectors(samples)
    ids, found = reader.store.answer(
        lambda view: view.flat.scores(view.turned(vectors, rank), weights=view.weights(rank))
    )
    weights = _query_weights(reader, samples, vectors, rank).astype(np.float32)
    return ids, found * weights[:, None]


def _query_weights(
    reader: Reader, samples: list[Sample], vectors: NDArray[np.float32], rank: str
) -> NDArray[np.float64]:
    """Returns what the scores of each query are multiplied by, [n]."""
    if rank == "cosine":
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    else:
        tokens = [sample.n_scored if rank == "per-token" else 1 for sample in samples]
        lengths = np.array(tokens) * reader.vectoriser.scale**2
    weights: NDArray[np.float64] = 1 / np.maximum(lengths, 1e-30)
    return weights


def _rerank(
    reader: Reader,
    samples: list[Sample],
    ids: NDArray[np.int64],
    k: int,
    rank: str,
    opponents: bool,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns the k best of each query's candidates by the exact form, scores and ids."""
    k = min(k, ids.shape[1])
    scores = np.empty((len(samples), k))
    best = np.empty((len(samples), k), dtype=np.int64)
    for start in range(0, len(samples), RERANKED):
        part = slice(start, start + RERANKED)
        pool = np.unique(ids[part])
        exact = reader.exact(samples[part], reader.training_samples(pool.tolist()), rank)
        for query, row in enumerate(exact, start):
            own = row[np.searchsorted(pool, ids[query])]
            order = np.lexsort((ids[query], own if opponents else -own))[:k]
            scores[query], best[query] = own[order], ids[query][order]
    return scores, best

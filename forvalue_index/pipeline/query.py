"""How an index answers: search by the stored vectors, then, if wanted, the exact form.

rows -> samples -> vectors -> search -> [exact form of the candidates] -> rows by id -> hits
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.config import FormatConfig
from forvalue_index.metric import Metric, metric_of
from forvalue_index.pipeline import hybrid
from forvalue_index.pipeline.session import Queries, Session
from forvalue_index.records import Hit, QueryVectors, Sample, listed, require_count
from forvalue_index.store.snapshot import Snapshot

RERANKED = 32
"""Queries whose candidates are run forward together for the exact form."""

FIRST, MOST = 4, 100
"""Candidates for each hit that are run for the exact form: at first, and at most."""


def query(
    session: Session,
    data: Queries,
    k: int,
    opponents: bool,
    metric: str | Metric,
    where: str | Iterable[str],
    exact: bool,
    candidates: int | None,
    flat: bool,
    format: FormatConfig | None,
    known: QueryVectors | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[Hit]:
    """Returns the hits of queries; see `InfluenceIndex.query`.

    `known`: their vectors. `check` is called between batches of candidates that are run for the
    exact form; what it raises ends the work.
    """
    require_count(k, "k", "hits")
    if candidates is not None:
        require_count(candidates, "candidates", "rows")
    metric, conditions = metric_of(metric, exact=exact, linear=opponents), listed(where)
    samples = session.samples(data, format)
    if metric.words:
        return hybrid.find(session, samples, k, metric, conditions, format, known)
    vectors = session.vectors(samples) if known is None else known.vectors

    def ask(snapshot: Snapshot) -> list[Hit]:
        allowed = snapshot.where(conditions) if conditions else None

        def search(n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            return snapshot.search(
                vectors, n, metric, opponents=opponents, allowed=allowed, flat=flat
            )

        if exact:
            fidelity = session.store.fidelity
            if candidates is None and fidelity is not None:
                pools = _likely(snapshot, vectors, k, metric, search, fidelity.margin)
            else:
                pools = list(search(max(k, candidates or 10 * k))[1])
            scores, ids = _rerank(session, samples, pools, k, metric, opponents, check)
        else:
            stored, ids = search(k)
            scores = stored * session.query_weights(samples, vectors, metric)[:, None]
        rows = snapshot.samples(ids.ravel().tolist())
        return [
            Hit(query, place, id, rows[id].key, score, rows[id].row, exact)
            for query in range(len(samples))
            for place, (id, score) in enumerate(
                zip(ids[query].tolist(), scores[query].tolist(), strict=True), 1
            )
        ]

    return session.store.answer(ask)


def scores(
    session: Session,
    samples: list[Sample],
    metric: str | Metric,
    known: QueryVectors | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the ids of all training samples and their scores; see `InfluenceIndex.scores`."""
    metric = metric_of(metric)
    if not metric.vectors:
        return hybrid.scores(session, samples, None)
    if known is None:
        known = session.query_vectors(samples)
    if metric.words:
        return hybrid.scores(session, samples, known)
    vectors = known.vectors
    ids, found = session.store.answer(
        lambda snapshot: snapshot.flat.scores(
            snapshot.turned(vectors, metric), weights=snapshot.weights(metric)
        )
    )
    weights = session.query_weights(samples, vectors, metric).astype(np.float32)
    return ids, found * weights[:, None]


def exact_scores(
    session: Session, queries: list[Sample], samples: list[Sample], metric: str | Metric
) -> NDArray[Any]:
    """Returns the exact scores of samples for queries [q, n]; see `InfluenceIndex.influence`."""
    metric = metric_of(metric, exact=True)
    if metric.by is None:
        return session.influence(queries, samples)
    return session.exact(queries, samples, metric)


def _likely(
    snapshot: Snapshot,
    vectors: NDArray[np.float32],
    k: int,
    metric: Metric,
    search: Callable[[int], tuple[NDArray[np.float32], NDArray[np.int64]]],
    margin: float,
) -> list[NDArray[np.int64]]:
    """Returns the ids that may be among each query's exact k best, as likely as `margin` says.

    A vector is one of them if its score and the margin together reach the score of the k-th.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)[:, None]
    n = FIRST * k
    while True:
        scores, ids = search(n)
        if not ids.shape[1]:
            return list(ids)
        every = np.unique(ids)
        figures = snapshot.figures(every)
        sizes = figures.norm * metric.weights(figures.norm, figures.n_scored)
        below = np.abs(scores[:, min(k, ids.shape[1]) - 1, None] - scores)
        near = below <= margin * lengths * sizes[np.searchsorted(every, ids)]
        near[:, :k] = True
        if ids.shape[1] < n or n >= MOST * k or not near[:, -1].any():
            return [row[chosen] for row, chosen in zip(ids, near, strict=True)]
        n = min(4 * n, MOST * k)


def _rerank(
    session: Session,
    samples: list[Sample],
    ids: list[NDArray[np.int64]],
    k: int,
    metric: Metric,
    opponents: bool,
    check: Callable[[], None],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns the k best of each query's candidates by the exact form, scores and ids."""
    k = min(k, len(ids[0]))
    scores = np.empty((len(samples), k))
    best = np.empty((len(samples), k), dtype=np.int64)
    for start in range(0, len(samples), RERANKED):
        part = slice(start, start + RERANKED)
        pool = np.unique(np.concatenate(ids[part]))
        candidates = session.training_samples(pool.tolist())
        exact = session.exact(samples[part], candidates, metric, check)
        for query, row in enumerate(exact, start):
            own = row[np.searchsorted(pool, ids[query])]
            order = np.lexsort((ids[query], own if opponents else -own))[:k]
            scores[query], best[query] = own[order], ids[query][order]
    return scores, best

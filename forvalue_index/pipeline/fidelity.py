"""How true an index's vectors are to the exact form, measured in the index as it is.

A few new rows are the queries: the best that the stored vectors find for each are run forward, and
it is seen how many of the exact TOP were found. Among all rows the best lie closer together than
among the few that `model/fidelity.py` compares while the vectoriser is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forvalue_index.metric import METRICS
from forvalue_index.model.fidelity import fidelity
from forvalue_index.pipeline.session import Session
from forvalue_index.records import TOP, Fidelity, Sample
from forvalue_index.store.snapshot import Snapshot

CANDIDATES = 3 * TOP
"""Rows that are run forward for each query. Nearly all of the exact TOP are among them
(tools/bench_fidelity.py prints a figure for 10 * TOP)."""
QUERIES = 4, 24  # at least and at most
SHARE = 0.1  # of the new rows, that are run forward

Best: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]
"""Scores, ids and lengths of the vectors of the best candidates, [q, CANDIDATES] each."""


def affordable(n_new: int) -> int:
    """Returns how many queries may be asked after `n_new` rows were encoded; 0: not enough."""
    queries = int(SHARE * n_new / (CANDIDATES + 1))
    return 0 if queries < QUERIES[0] else min(queries, QUERIES[1])


def measure(session: Session, queries: Sequence[Sample]) -> Fidelity | None:
    """Returns how true the vectors of an index are; None: it has too few rows to tell.

    Args:
        session: of the index.
        queries: rows of the index that nothing was fitted to, two or more.
    """
    vectors, store = session.vectors(list(queries)), session.store
    if len(store) <= CANDIDATES:
        return None
    known = store.catalog.ids_of([sample.key for sample in queries])
    own = np.array([known[sample.key] for sample in queries])

    def ask(
        snapshot: Snapshot,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
        scores, ids = snapshot.search(
            vectors, CANDIDATES + 1, METRICS["dot"], opponents=False, allowed=None, flat=True
        )
        # The query itself, or the last if others score higher.
        others = ids != own[:, None]
        others[others.all(axis=1), -1] = False
        shape = len(queries), CANDIDATES
        ids, scores = ids[others].reshape(shape), scores[others].reshape(shape)
        every = np.unique(ids)
        return scores, ids, snapshot.figures(every).norm[np.searchsorted(every, ids)]

    stored, ids, norms = store.answer(ask)
    every = np.unique(ids)
    scores = session.influence(list(queries), session.training_samples(every.tolist()))
    exact = np.take_along_axis(scores, np.searchsorted(every, ids), axis=1)
    sizes = np.linalg.norm(vectors, axis=1)[:, None] * norms
    return fidelity(exact, stored, sizes.astype(np.float32), len(store) - 1)

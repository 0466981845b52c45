"""Which of some vectors are most alike: any vectors, not the stored ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forvalue_index.search.backend import faiss

ALL_PAIRS = 50_000
"""Vectors up to which all are compared with all."""


def most_similar(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int
) -> NDArray[np.int64]:
    """Returns the positions of the k vectors with the highest inner products, [q, k].

    The best comes first. Of many vectors, those in the
    lists that are nearest to the query are compared: -1 where these hold fewer than k.
    """
    lib = faiss()
    if len(vectors) <= ALL_PAIRS:
        _, found = lib.knn(queries, vectors, k, metric=lib.METRIC_INNER_PRODUCT)
        return np.asarray(found, np.int64)
    dim, lists = vectors.shape[1], int(4 * len(vectors) ** 0.5)
    index = lib.IndexIVFFlat(lib.IndexFlatIP(dim), dim, lists, lib.METRIC_INNER_PRODUCT)
    sample = np.random.default_rng(0).choice(len(vectors), min(len(vectors), 64 * lists), False)
    index.cp.min_points_per_centroid = 1
    index.train(vectors[np.sort(sample)])
    index.add(vectors)
    index.nprobe = max(16, lists // 32)
    return np.asarray(index.search(queries, k)[1], np.int64)

"""Random vectors, segments of them, and the exact answers from numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.records import Segment
from forvalue_index.search.segment import write_segment

DIM = 16


def random(n: int, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def fp16(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors.astype(np.float16).astype(np.float32)


def write(
    folder: Path, parts: Sequence[tuple[Any, NDArray[np.float32]]], name: str = "s"
) -> list[Segment]:
    return [
        write_segment(folder, f"{name}{i}.faiss", np.array(ids, np.int64), vectors, 16)
        for i, (ids, vectors) in enumerate(parts)
    ]


def exact(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], ids: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores and ids of the k best in double precision, smaller ids first."""
    scores = queries.astype(np.float64) @ fp16(vectors).T.astype(np.float64)
    order = np.stack([np.lexsort((ids, -row)) for row in scores])[:, :k]
    return np.take_along_axis(scores, order, 1), ids[order]

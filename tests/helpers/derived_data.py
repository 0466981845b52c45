"""Vectors in clusters, flat search over them, and the exact answers from numpy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from forvalue_index.records import Segment
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.segment import write_segment

N, DIM, SEGMENTS = 3000, 32, 6
IVF = "IVF32,SQ8"
Floats = NDArray[np.float32]


def clustered(n: int, seed: int = 0) -> Floats:
    """Vectors of unequal lengths around 40 centres, in fp16, that lean to one side."""
    rng = np.random.default_rng(seed)
    root = np.arange(1, DIM + 1) ** -0.25
    centres = np.random.default_rng(99).standard_normal((40, DIM)) * root
    vectors = centres[rng.integers(0, 40, n)] + rng.standard_normal((n, DIM)) * root + 0.1
    vectors *= np.exp(0.4 * rng.standard_normal((n, 1)))
    return vectors.astype(np.float16).astype(np.float32)


VECTORS, IDS = clustered(N), 2 * np.arange(N)  # odd ids are nobody's
QUERIES = clustered(150, seed=1)  # other ones than those that it is measured with


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """One thread, as this little work is slower on more, and speeds from a moment."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # of this thread only
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forvalue_index.search.ann_build._SECONDS", 0.01)
        patch.setattr("forvalue_index.search.ann_build._QUERIES", 100)
        yield
    faiss.omp_set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@pytest.fixture(scope="module")
def segments(root: Path) -> list[Segment]:
    return [
        write_segment(root, f"s{i}.faiss", IDS[i::SEGMENTS], VECTORS[i::SEGMENTS], 16)
        for i in range(SEGMENTS)
    ]


@pytest.fixture(scope="module")
def flat(root: Path, segments: list[Segment]) -> FlatSearch:
    return FlatSearch(root, segments, DIM, 16)


def exact(queries: Floats, vectors: Floats, ids: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Ids of the k best in double precision."""
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    return ids[np.argsort(-scores, axis=1, kind="stable")[:, :k]]


def recall(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> float:
    pairs = zip(found, wanted, strict=True)
    return float(np.mean([np.isin(want, got).mean() for got, want in pairs]))


def check_hits(
    found: tuple[Floats, NDArray[np.int64]],
    flat: FlatSearch,
    queries: Floats,
    live: Any,
    **how: Any,
) -> None:
    """Scores are those of flat search to the bit, in order; ids are live ones, each once."""
    scores, ids = found
    every, matrix = flat.scores(queries, weights=how.get("weights"))
    assert np.isin(ids, live).all()
    assert all(len(np.unique(row)) == len(row) for row in ids)
    columns = np.searchsorted(every, ids)
    np.testing.assert_array_equal(scores, np.take_along_axis(matrix, columns, axis=1))
    falling = -scores if how.get("opponents") else scores
    assert (np.diff(falling, axis=1) <= 0).all()

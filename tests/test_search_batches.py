"""Many queries at once: candidates from BLAS, and the bits of each query alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vectors import DIM, fp16, random, write

from forvalue_index.errors import CorruptIndexError
from forvalue_index.search import flat as flat_module
from forvalue_index.search import many
from forvalue_index.search.flat import FlatSearch


@pytest.fixture
def unsure(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries of each batch were left to a scan; batches are of 4 queries or more."""
    counts: list[int] = []
    scanned = FlatSearch._scanned

    def count(self: FlatSearch, queries: Any, *rest: Any) -> Any:
        counts.append(len(queries))
        return scanned(self, queries, *rest)

    monkeypatch.setattr(flat_module, "MANY", 4)
    monkeypatch.setattr(FlatSearch, "_scanned", count)
    return counts


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [100, 128])
def test_a_batch_gives_the_bits_of_its_queries(
    tmp_path: Path,
    unsure: list[int],
    monkeypatch: pytest.MonkeyPatch,
    dim: int,
    weighted: bool,
    restricted: bool,
) -> None:
    """Candidates come from BLAS, whose scores differ in the last bits; hits must not."""
    n, rng = 2000, np.random.default_rng(0)
    vectors, queries, ids = random(n, dim), random(9, dim, seed=1), 3 * np.arange(n)
    vectors *= np.exp(rng.standard_normal(n)).astype(np.float32)[:, None]
    parts = [
        (ids[:700], vectors[:700]),
        (ids[700:705], vectors[700:705]),
        (ids[705:], vectors[705:]),
    ]
    flat = FlatSearch(tmp_path, write(tmp_path, parts), dim, removed=ids[::11])
    how: dict[str, Any] = {"allowed": ids[5:1500] if restricted else None}
    if weighted:
        how["weights"] = 1 / np.linalg.norm(flat.vectors(flat.ids), axis=1)
    for step in (2**20, 40 * dim):  # in other blocks
        monkeypatch.setattr(many, "_NUMBERS", step)
        for k in (1, 10, 60):
            for opponents in (False, True):
                unsure.clear()
                scores, found = flat.search(queries, k, opponents=opponents, **how)
                assert unsure == []
                for i in range(len(queries)):
                    one = flat.search(queries[i : i + 1], k, opponents=opponents, **how)
                    np.testing.assert_array_equal(one[0][0], scores[i])
                    np.testing.assert_array_equal(one[1][0], found[i])
    # It could fail: the scores of BLAS are others.
    blas = queries @ fp16(vectors)[found[:, 0] // 3].T
    assert (scores[:, 0] != np.diagonal(blas)).any()


def test_a_batch_leaves_what_rounding_hides_to_a_scan(tmp_path: Path, unsure: list[int]) -> None:
    """Vectors that differ by less than the scores of BLAS and of a scan do."""
    n, dim = 1200, 64
    near = random(1, dim).repeat(n // 2, 0)
    near[:, 0] = 2.0**-24 * np.arange(n // 2)  # the steps of float16 near 0
    vectors, ids = np.concatenate([near, random(n // 2, dim, seed=3)]), np.arange(n)
    queries = np.concatenate([near[:3], random(3, dim, seed=4)])
    flat = FlatSearch(
        tmp_path, write(tmp_path, [(ids[:500], vectors[:500]), (ids[500:], vectors[500:])]), dim
    )
    scores, found = flat.search(queries, 20)
    assert 0 < sum(unsure) < len(queries)
    for i in range(len(queries)):
        one = flat.search(queries[i : i + 1], 20)
        np.testing.assert_array_equal(one[0][0], scores[i])
        np.testing.assert_array_equal(one[1][0], found[i])


@pytest.mark.parametrize("dim", [16, 1024])
def test_the_bound_on_rounding_holds(dim: int) -> None:
    queries, vectors = random(50, dim), random(50, dim, seed=1)
    exactly = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    longest = float(np.linalg.norm(vectors.astype(np.float64), axis=1).max())
    off = np.abs(queries @ vectors.T - exactly).max(axis=1)
    assert (off > 0).all()
    assert (2 * off < many.slack(queries, longest)).all()
    # Queries of float16, all of whose numbers are off by nearly half a step, and to one side.
    queries, vectors = (
        np.full((1, dim), np.float32(1 + 0.99 * 2**-11)),
        np.ones((1, dim), np.float32),
    )
    off = abs(float((fp16(queries) @ vectors.T)[0, 0]) - float(queries[0, 0]) * dim)
    assert many.slack(queries, dim**0.5)[0] < off < many.slack(queries, dim**0.5, 2.0**-11)[0]


@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_refuses_damage(tmp_path: Path, unsure: list[int], weighted: bool) -> None:
    vectors = random(200)
    [segment] = write(tmp_path, [(range(200), vectors)])
    path = tmp_path / "s0.faiss"
    first = vectors.astype(np.float16).tobytes()[:2]
    path.write_bytes(path.read_bytes().replace(first, np.float16("nan").tobytes(), 1))
    flat = FlatSearch(tmp_path, [segment], DIM)
    with pytest.raises(CorruptIndexError, match=r"s0\.faiss holds vectors"):
        flat.search(random(6, seed=1), 3, weights=np.ones(200) if weighted else None)
    assert not unsure

"""Many queries at once: candidates from BLAS, and the bits of each query alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vectors import DIM, fp16, random, write

from forvalue_index.errors import CorruptIndexError
from forvalue_index.search import flat as flat_module
from forvalue_index.search import many, narrow
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


@pytest.fixture(params=["bytes", "float32"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How candidates are found, where the machine can do both."""
    if request.param == "bytes" and not narrow.available():
        pytest.skip("this machine does not multiply bytes fast")
    monkeypatch.setattr(narrow, "available", lambda: request.param == "bytes")
    return str(request.param)


@pytest.fixture
def singled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs products of bytes left for float32, a number for each block of vectors."""
    counts: list[int] = []
    at = narrow._at

    def count(queries: Any, vectors: Any, row: Any, column: Any) -> Any:
        counts.append(len(row))
        return at(queries, vectors, row, column)

    monkeypatch.setattr(narrow, "_at", count)
    return counts


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [100, 128])
def test_a_batch_gives_the_bits_of_its_queries(
    tmp_path: Path,
    unsure: list[int],
    way: str,
    singled: list[int],
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
        monkeypatch.setattr(narrow, "_NUMBERS", step)
        for k in (1, 10, 60):
            for opponents in (False, True):
                unsure.clear()
                scores, found = flat.search(queries, k, opponents=opponents, **how)
                assert unsure == []
                for i in range(len(queries)):
                    one = flat.search(queries[i : i + 1], k, opponents=opponents, **how)
                    np.testing.assert_array_equal(one[0][0], scores[i])
                    np.testing.assert_array_equal(one[1][0], found[i])
    assert bool(singled) == (way == "bytes")
    # It could fail: scores have the bits of one order of addition. (BLAS adds up in another one on
    # most processors, not on all.)
    exactly = queries.astype(np.float64) @ fp16(vectors).T
    if weighted:
        exactly[:, flat.ids // 3] *= how["weights"]
    assert (scores != np.take_along_axis(exactly, found // 3, 1)).any()


def test_a_batch_leaves_what_rounding_hides_to_a_scan(
    tmp_path: Path, unsure: list[int], way: str
) -> None:
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
def test_a_batch_refuses_damage(
    tmp_path: Path, unsure: list[int], way: str, weighted: bool
) -> None:
    vectors = random(200)
    [segment] = write(tmp_path, [(range(200), vectors)])
    path = tmp_path / "s0.faiss"
    first = vectors.astype(np.float16).tobytes()[:2]
    path.write_bytes(path.read_bytes().replace(first, np.float16("nan").tobytes(), 1))
    flat = FlatSearch(tmp_path, [segment], DIM)
    with pytest.raises(CorruptIndexError, match=r"s0\.faiss holds vectors"):
        flat.search(random(6, seed=1), 3, weights=np.ones(200) if weighted else None)
    assert not unsure


@pytest.mark.skipif(not narrow.available(), reason="this machine does not multiply bytes fast")
def test_products_of_bytes_single_out_few(
    tmp_path: Path, unsure: list[int], singled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors whose largest numbers, and lengths, are anything; none, and queries of nothing."""
    n, dim, rng = 3000, 256, np.random.default_rng(0)
    vectors, queries = random(n, dim), random(48, dim, seed=1)
    vectors *= np.exp(2 * rng.standard_normal((n, 1))).astype(np.float32)
    vectors[::50, 7] *= 100
    vectors[5::60] = 0
    queries *= 10.0 ** np.arange(-24, 24, dtype=np.float32)[:, None]
    queries[3] = 0
    segments = write(tmp_path, [(range(n), vectors)])
    monkeypatch.setattr(narrow, "_NUMBERS", 256 * dim)
    for opponents in (False, True):
        flat = FlatSearch(tmp_path, segments, dim)
        unsure.clear()
        scores, found = flat.search(queries, 10, opponents=opponents)
        assert unsure == [1]  # of nothing, every score is the same
        for i in range(len(queries)):
            one = flat.search(queries[i : i + 1], 10, opponents=opponents)
            np.testing.assert_array_equal(one[0][0], scores[i])
            np.testing.assert_array_equal(one[1][0], found[i])
    assert 0 < sum(singled) < 2 * n * len(queries) / 20


@pytest.mark.skipif(not narrow.available(), reason="this machine does not multiply bytes fast")
def test_a_bound_of_bytes_holds_for_the_worst_rounding(
    tmp_path: Path, unsure: list[int], singled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors that lose nearly half a step in each number, all to one side, and queries too."""
    n, dim = 1024, 64
    best = np.full((1, dim), 100.49, np.float32)
    others = np.full((n, dim), 100.4375, np.float32)
    best[:, 0] = others[:, 0] = 127
    others[40:] *= np.float32(0.5)  # so that few are near it
    vectors = np.concatenate([others, best])  # as bytes it is one of them
    queries = np.repeat(best, 4, axis=0)
    monkeypatch.setattr(narrow, "_NUMBERS", 128 * dim)
    flat = FlatSearch(tmp_path, write(tmp_path, [(range(n + 1), vectors)]), dim)
    _, found = flat.search(queries, 1)
    assert (found == n).all()
    assert singled
    assert not unsure


def test_a_batch_leaves_the_threads_as_they_were(tmp_path: Path, way: str) -> None:
    faiss = flat_module.faiss()
    flat = FlatSearch(tmp_path, write(tmp_path, [(range(2000), random(2000))]), DIM)
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    flat.search(random(40, seed=1), 5)
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == before

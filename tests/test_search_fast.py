"""Candidates by a few bits and by rounded products: the answers are those of comparing with all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from forvalue_index.search.batch import propose_many
from forvalue_index.search.first_pass import FirstPass
from forvalue_index.search.flat import MANY, FlatSearch
from forvalue_index.search.segment import write_segment
from forvalue_index.vectors.codes import Codes

N, DIM = 6000, 96
Floats = NDArray[np.float32]


def vectors_of(n: int, seed: int) -> Floats:
    """Vectors that have something in common, as those of samples have; some are very long."""
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((20, DIM)) * np.arange(1, 21)[:, None] ** -0.7
    made = rng.standard_normal((n, 20)) @ basis + 0.2 * rng.standard_normal((n, DIM))
    made *= np.exp(rng.standard_normal((n, 1)))
    return made.astype(np.float32)


def search_of(folder: Path, bits: int, vectors: Floats, removed: Any = ()) -> FlatSearch:
    segments = []
    for start in range(0, len(vectors), 2500):  # the later ids first
        part = vectors[start : start + 2500]
        ids = np.arange(len(part), dtype=np.int64) + 3 * (len(vectors) - start)
        segments.append(write_segment(folder, f"s{start}.faiss", ids, part, bits))
    return FlatSearch(folder, segments, vectors.shape[1], bits, removed)


def plainly(
    search: FlatSearch, queries: Floats, k: int, allowed: Any = None, weights: Any = None
) -> tuple[Any, Any]:
    """The same by all scores, sorted."""
    ids, scores = search.scores(queries, weights=weights)
    if allowed is not None:
        inside = np.isin(ids, allowed)
        ids, scores = ids[inside], scores[:, inside]
    order = np.stack([np.lexsort((ids, -row)) for row in scores])[:, :k]
    return np.take_along_axis(scores, order, 1), ids[order]


@pytest.fixture(params=[2, 3, 4, 8, 16])
def search(request: pytest.FixtureRequest, tmp_path: Path) -> FlatSearch:
    vectors = vectors_of(N, 0)
    vectors[7] = vectors[8] = vectors[9]  # equal scores
    vectors[11] = 0
    removed = np.arange(0, 40 * N, 17)
    return search_of(tmp_path, request.param, vectors, removed)


@pytest.mark.parametrize("count", [1, 3 * MANY])
@pytest.mark.parametrize("k", [1, 10, 77])
def test_answers_are_those_of_all_scores(search: FlatSearch, count: int, k: int) -> None:
    queries = vectors_of(count, 1)
    lengths = np.linalg.norm(search.vectors(search.ids), axis=1)
    weights = (1 / np.maximum(lengths, 1e-3)).astype(np.float32)
    weights.flags.writeable = False
    allowed = search.ids[::3]
    for given in ({}, {"allowed": allowed}, {"weights": weights}):
        for opponents in (False, True):
            sign = -1 if opponents else 1
            scores, ids = search.search(queries, k, opponents=opponents, **given)
            expected, there = plainly(search, sign * queries, k, **given)
            np.testing.assert_array_equal(ids, there)
            np.testing.assert_allclose(sign * scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [4, MANY])
def test_hardly_any_vector_is_compared_in_full(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    basis = rng.standard_normal((40, 2048)) * np.arange(1, 41)[:, None] ** -0.7
    vectors = rng.standard_normal((8000, 40)) @ basis + 0.3 * rng.standard_normal((8000, 2048))
    search = search_of(tmp_path, 4, vectors.astype(np.float32))
    monkeypatch.setattr(FlatSearch, "_among_all", None)
    queries = search.vectors(search.ids[:count])
    _scores, ids = search.search(queries, 10)
    _expected, there = plainly(search, queries, 10)
    np.testing.assert_array_equal(ids, there)


@pytest.mark.parametrize("bits", [2, 4, 16])
@pytest.mark.parametrize("equal", [0, 40])
def test_what_the_first_pass_leaves_open_is_compared(tmp_path: Path, bits: int, equal: int) -> None:
    """Vectors without anything in common: the highest bits tell too little of them."""
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((N, DIM)).astype(np.float32)
    vectors[100 : 100 + equal] = vectors[100]
    search = search_of(tmp_path, bits, vectors)
    queries = rng.standard_normal((4, DIM)).astype(np.float32)
    queries[0] += 0.3 * vectors[100]
    for given in ({}, {"allowed": search.ids[::2]}):
        for sign in (1, -1):
            _scores, ids = search.search(queries, 10, opponents=sign < 0, **given)
            _expected, there = plainly(search, sign * queries, 10, **given)
            np.testing.assert_array_equal(ids, there)


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_what_is_not_proposed_scores_less(tmp_path: Path, bits: int, count: int) -> None:
    search = search_of(tmp_path, bits, vectors_of(N, 0))
    queries = vectors_of(count, 3)
    every, scores = search.scores(queries)
    places = {id: place for place, id in enumerate(every.tolist())}
    proposed, most = propose_many(
        search.codes,
        [(every[:5000], search.data(every[:5000])), (every[5000:], search.data(every[5000:]))],
        queries,
        20,
        None,
    )
    first = FirstPass(search.codes, search.first_rows())
    for i, query in enumerate(queries):
        others = np.ones(len(every), bool)
        others[[places[id] for id in proposed[i].tolist()]] = False
        assert scores[i][others].max() <= most[i]
        assert most[i] <= scores[i].max(), "a bound that says nothing"
        few, at_most = first.propose(query, 200, None)
        others[:] = True
        others[[places[id] for id in search._ids_at[few].tolist()]] = False
        assert scores[i][others].max() <= at_most
        least = float(np.sort(scores[i])[-30])
        left = first.above(query, least, None)
        others[:] = True
        others[[places[id] for id in search._ids_at[left].tolist()]] = False
        assert len(left) < len(every)
        assert scores[i][others].max() < least


@pytest.mark.parametrize("dim", [1, 7, 8, 100, 512])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_first_passes_have_the_size_that_faiss_wants(dim: int, bits: int) -> None:
    import faiss

    vectors = np.random.default_rng(0).standard_normal((300, dim)).astype(np.float32)
    codes = Codes(dim, bits)
    data = codes.encode(vectors)
    index = faiss.IndexRaBitQ(dim, faiss.METRIC_INNER_PRODUCT, 1)
    rows = codes.first_pass(data, 0.0)
    assert rows.shape == (300, index.code_size)
    doubled = codes.first_pass(data, 0.0, np.full(300, 2, np.float32))
    np.testing.assert_array_equal(doubled[:, :-8], rows[:, :-8])
    factors = [np.ascontiguousarray(each[:, -8:]).view(np.float32) for each in (rows, doubled)]
    np.testing.assert_array_equal(factors[1], 2 * factors[0])


def test_4_bits_are_read_by_tables_as_one_by_one() -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 104)).astype(np.float32)
    codes = Codes(104, 4)
    data = codes.encode(vectors)
    rows = codes._rows(data)
    levels = np.unpackbits(rows["high"], axis=1, bitorder="little") << 3
    low = np.unpackbits(rows["low"], axis=1, bitorder="little").reshape(50, 104, 3)
    levels |= low[:, :, 0] | low[:, :, 1] << 1 | low[:, :, 2] << 2
    np.testing.assert_array_equal(codes.levels(data), levels)
    assert set(np.unique(levels)) == set(range(16))

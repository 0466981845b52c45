"""Exact search over all segments, against numpy on the same fp16 numbers."""

from __future__ import annotations

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.vectors import DIM, exact, fp16, random, write
from hypothesis import given, settings
from hypothesis import strategies as st

from forvalue_index.errors import CorruptIndexError, DependencyError, InputError
from forvalue_index.search import backend
from forvalue_index.search import flat as flat_module
from forvalue_index.search.flat import FlatSearch


@settings(max_examples=40)
@given(data=st.data())
def test_search_is_the_exact_top_k(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any split, removals and restriction; whole numbers, so that equal scores are common."""
    folder = tmp_path_factory.mktemp("segments")
    n = data.draw(st.integers(1, 40), "n")
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6), "seed"))
    vectors = rng.integers(-2, 3, (n, 4)).astype(np.float32)
    ids = np.sort(rng.choice(100, n, replace=False))
    where = rng.integers(0, data.draw(st.integers(1, 5), "segments"), n)
    parts = [(ids[where == s], vectors[where == s]) for s in np.unique(where)]
    removed = rng.choice(100, data.draw(st.integers(0, 60), "removed"), replace=False)
    allowed = None
    if data.draw(st.booleans(), "restricted"):
        allowed = rng.choice(100, data.draw(st.integers(0, 60), "allowed"), replace=False)
    k = data.draw(st.integers(1, 50), "k")
    queries = rng.integers(-2, 3, (data.draw(st.integers(0, 4), "q"), 4)).astype(np.float32)

    flat = FlatSearch(folder, write(folder, parts), 4, 16, removed)
    live = ~np.isin(ids, removed)
    np.testing.assert_array_equal(flat.ids, ids[live])
    assert flat.ntotal == live.sum()
    every, matrix = flat.scores(queries)
    np.testing.assert_array_equal(every, ids[live])
    np.testing.assert_array_equal(matrix, queries @ vectors[live].T)
    if allowed is not None:
        live &= np.isin(ids, allowed)
    for opponents in (False, True):
        scores, found = flat.search(queries, k, opponents=opponents, allowed=allowed)
        assert scores.dtype == np.float32
        assert found.shape == scores.shape == (len(queries), min(k, live.sum()))
        if not len(queries):
            continue
        sign = -1 if opponents else 1
        want_scores, want = exact(sign * queries, vectors[live], ids[live], k)
        np.testing.assert_array_equal(found, want)
        np.testing.assert_array_equal(scores, sign * want_scores)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 16, 24, 100])
def test_equal_vectors_of_any_length_come_in_the_order_of_their_ids(
    dim: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.standard_normal((2, dim)).astype(np.float32), 8, axis=0)
    flat = FlatSearch(tmp_path, write(tmp_path, [(np.arange(16), vectors)]), dim, 16)
    for query in rng.standard_normal((20, 1, dim)).astype(np.float32):
        scores, found = flat.search(query, 3)
        first = 0 if flat.scores(query)[1][0, 0] > flat.scores(query)[1][0, 8] else 8
        assert found.tolist() == [[first, first + 1, first + 2]]
        assert scores.tolist() == [[flat.scores(query)[1][0, first]] * 3]


def test_real_numbers_agree_with_numpy(tmp_path: Path) -> None:
    vectors, queries, ids = random(300), random(20, seed=1), np.arange(300)
    flat = FlatSearch(
        tmp_path, write(tmp_path, [(ids[:100], vectors[:100]), (ids[100:], vectors[100:])]), DIM, 16
    )
    scores, found = flat.search(queries, 12)
    want_scores, want = exact(queries, vectors, ids, 12)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_allclose(scores, want_scores, rtol=1e-5)
    np.testing.assert_allclose(flat.scores(queries)[1], queries @ fp16(vectors).T, atol=1e-5)


def test_no_split_batch_or_call_changes_a_bit(tmp_path: Path) -> None:
    dim = 100  # no multiple of a SIMD register
    vectors, queries, ids = random(300, dim), random(9, dim, seed=1), np.arange(300)
    one = FlatSearch(tmp_path, write(tmp_path, [(ids, vectors)], "one"), dim, 16)
    parts = [(ids[i::7], vectors[i::7]) for i in range(7)]
    many = FlatSearch(tmp_path, write(tmp_path, parts, "many"), dim, 16)
    scores, found = one.search(queries, 25)
    # It could differ: double precision gives other bits.
    assert (scores != exact(queries, vectors, ids, 25)[0]).any()
    for flat in (one, many):
        for i in range(len(queries)):
            single_scores, single = flat.search(queries[i : i + 1], 25)
            np.testing.assert_array_equal(single, found[i : i + 1])
            np.testing.assert_array_equal(single_scores, scores[i : i + 1])
        every = flat.scores(queries)[1]
        np.testing.assert_array_equal(np.take_along_axis(every, found, 1), scores)
        np.testing.assert_array_equal(flat.scores(queries[:1])[1], every[:1])


def test_a_large_segment_is_searched_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 1000
    vectors, queries, ids = random(n), random(5, seed=1), 2 * np.arange(n)
    vectors[::3] = vectors[0]  # equal scores, also of vectors in different pieces
    flat = FlatSearch(tmp_path, write(tmp_path, [(ids, vectors)]), DIM, 16, removed=ids[::7])

    def found() -> list[object]:
        both = itertools.product((3, 400), (None, ids[200:450]))
        return [flat.search(queries, k, allowed=allowed) for k, allowed in both]

    whole, scores = found(), flat.scores(queries)[1]
    monkeypatch.setattr(flat_module, "_COMPARED", 100 * DIM)
    for one, other in zip(found(), whole, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(flat.scores(queries)[1], scores)


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    n, dim = 8 * 2000, 32
    ids, vectors, queries = np.arange(n), random(n, dim), random(64, dim, seed=1)
    parts = [(ids[i::8], vectors[i::8]) for i in range(8)]
    flat = FlatSearch(tmp_path, write(tmp_path, parts), dim, 16, removed=ids[::3])
    live = ids % 3 > 0
    want = exact(queries, vectors[live], ids[live], 5)[1]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda query: flat.search(query[None], 5)[1][0], queries))
            np.testing.assert_array_equal(found, want)


def test_opponents_are_the_proponents_of_the_negated_query(tmp_path: Path) -> None:
    flat = FlatSearch(tmp_path, write(tmp_path, [(range(50), random(50))]), DIM, 16)
    queries = random(3, seed=2)
    scores, ids = flat.search(queries, 50, opponents=True)
    negated, same = flat.search(-queries, 50)
    np.testing.assert_array_equal(ids, same)
    np.testing.assert_array_equal(scores, -negated)
    np.testing.assert_array_equal(ids[:, ::-1], flat.search(queries, 50)[1])


def test_scores_of_chosen_samples_are_those_of_search(tmp_path: Path) -> None:
    dim = 100
    vectors, queries, ids = random(300, dim), random(9, dim, seed=1), 3 * np.arange(300)
    parts = [(ids[i::7], vectors[i::7]) for i in range(7)]
    flat = FlatSearch(tmp_path, write(tmp_path, parts), dim, 16, removed=[6])
    scores, found = flat.search(queries, 25)
    order = np.random.default_rng(0).permutation(25)
    chosen = flat.scores_of(queries, found[:, order])
    np.testing.assert_array_equal(chosen, scores[:, order])
    assert flat.scores_of(queries, np.empty((9, 0), np.int64)).shape == (9, 0)
    for missing in (6, 7, -1):
        with pytest.raises(InputError, match=f"id {missing}: "):
            flat.scores_of(queries, np.full((9, 1), missing))


def test_blocks_are_all_vectors_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, ids = random(50), np.arange(50)
    parts = [(ids[25:], vectors[25:]), (ids[:25], vectors[:25])]  # not in the order of ids
    segments = write(tmp_path, parts)
    flat = FlatSearch(tmp_path, segments, DIM, 16, removed=[3, 30])
    monkeypatch.setattr("forvalue_index.search.stored._NUMBERS", 7 * DIM)
    blocks = list(flat.blocks())
    assert [len(block) for block, _ in blocks] == [7] * 6 + [6]
    live = np.setdiff1d(ids, [3, 30])
    np.testing.assert_array_equal(np.concatenate([block for block, _ in blocks]), live)
    np.testing.assert_array_equal(np.concatenate([v for _, v in blocks]), fp16(vectors)[live])
    assert flat.live([30, 5, 5, 77, -1]).tolist() == [5]
    np.testing.assert_array_equal(flat.ids_in([segments[0].name]), np.setdiff1d(live, ids[:25]))


def test_vectors_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    vectors = random(30)
    parts = [(range(0, 60, 4), vectors[::2]), (range(2, 60, 4), vectors[1::2])]
    flat = FlatSearch(tmp_path, write(tmp_path, parts), DIM, 16, removed=[4])
    wanted = np.array([58, 0, 2, 58, 30])
    np.testing.assert_array_equal(flat.vectors(wanted), fp16(vectors)[wanted // 2])
    assert flat.vectors([]).shape == (0, DIM)
    for missing in (1, 4, 60, -1):
        with pytest.raises(InputError, match=f"id {missing}: "):
            flat.vectors([0, missing])


def test_an_empty_index_answers_nothing(tmp_path: Path) -> None:
    segments = write(tmp_path, [(range(3), random(3))])
    for flat in (
        FlatSearch(tmp_path, [], DIM, 16),
        FlatSearch(tmp_path, segments, DIM, 16, [0, 1, 2]),
    ):
        scores, ids = flat.search(random(2), 5)
        assert scores.shape == ids.shape == (2, 0)
        assert flat.scores(random(2))[1].shape == (2, 0)
        assert flat.vectors([]).shape == (0, DIM)
        assert flat.ntotal == 0


def test_bad_queries_are_refused(tmp_path: Path) -> None:
    flat = FlatSearch(tmp_path, write(tmp_path, [(range(3), random(3))]), DIM, 16)
    for method in (lambda q: flat.search(q, 1), flat.scores):
        with pytest.raises(InputError, match=r"shape \(2, 15\).*16"):
            method(random(2, DIM - 1))
        with pytest.raises(InputError, match=r"shape \(16,\)"):
            method(random(1)[0])
        for value in (np.nan, np.inf):
            queries = random(3)
            queries[1, 5] = value
            with pytest.raises(InputError, match="query 1 holds NaN"):
                method(queries)
    for k in (0, -1):
        with pytest.raises(InputError, match=f"k is {k}"):
            flat.search(random(1), k)


def test_damage_is_refused_when_it_is_met(tmp_path: Path) -> None:
    [segment] = write(tmp_path, [(range(5), random(5))])
    path = tmp_path / "s0.faiss"
    first = random(5).astype(np.float16).tobytes()[:2]
    path.write_bytes(path.read_bytes().replace(first, np.float16("nan").tobytes(), 1))
    flat = FlatSearch(tmp_path, [segment], DIM, 16)
    for method in (lambda q: flat.search(q, 5), flat.scores):
        with pytest.raises(CorruptIndexError, match="a score that is not finite"):
            method(random(1, seed=1))


def test_one_id_in_two_segments_is_refused(tmp_path: Path) -> None:
    segments = write(tmp_path, [(range(3), random(3)), (range(2, 6), random(4))])
    with pytest.raises(CorruptIndexError, match="id 2 is in more than one segment"):
        FlatSearch(tmp_path, segments, DIM, 16)


# -- the backend -------------------------------------------------------------------------------


def test_a_missing_or_doubled_faiss_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    backend.faiss.cache_clear()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(DependencyError, match=r"pip install forvalue-index\[cpu\]"):
        backend.faiss()
    monkeypatch.undo()
    monkeypatch.setattr(backend, "version", lambda _: "1")
    with pytest.raises(DependencyError, match="pip uninstall -y faiss-cpu faiss-gpu"):
        backend.faiss()
    monkeypatch.undo()
    assert backend.faiss().IndexFlat


def test_faiss_finds_the_libraries_that_torch_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS for GPUs is linked to CUDA's, which may come with torch alone."""
    asked: list[str] = []

    def import_module(name: str) -> object:
        asked.append(name)
        if name == "faiss" and "torch" not in asked:
            raise ImportError("libcublas.so: cannot open shared object file")
        return name

    backend.faiss.cache_clear()
    monkeypatch.setattr(backend, "import_module", import_module)
    assert backend.faiss() == "faiss"
    assert asked == ["faiss", "torch", "faiss"]
    monkeypatch.undo()
    backend.faiss.cache_clear()
    assert backend.faiss().IndexFlat


def test_torch_and_faiss_share_a_process(tmp_path: Path) -> None:
    """Each has an OpenMP of its own: neither may change the other's threads or results."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads(), backend.faiss().omp_get_max_threads()
    vectors, queries = random(200, 64), random(5, 64, seed=1)
    parts = [(range(i, 200, 4), vectors[i::4]) for i in range(4)]
    flat = FlatSearch(tmp_path, write(tmp_path, parts), 64, 16)
    first = flat.search(queries, 10)[1]
    for _ in range(5):
        product = torch.from_numpy(queries) @ torch.from_numpy(fp16(vectors)).T
        np.testing.assert_array_equal(product.topk(10).indices.numpy(), first)
        np.testing.assert_array_equal(flat.search(queries, 10)[1], first)
        np.testing.assert_array_equal(flat.search(queries[:1], 10)[1], first[:1])
    assert (torch.get_num_threads(), backend.faiss().omp_get_max_threads()) == threads

"""Segments on disk and exact search, against numpy on the same fp16 numbers."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from forvalue_index.errors import CorruptIndexError, DependencyError, InputError, ModelError
from forvalue_index.records import Segment
from forvalue_index.search import backend, many
from forvalue_index.search import flat as flat_module
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.segments import open_segment, orphans, verify_segment, write_segment

DIM = 16


def random(n: int, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def fp16(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors.astype(np.float16).astype(np.float32)


def write(
    folder: Path, parts: Sequence[tuple[Any, NDArray[np.float32]]], name: str = "s"
) -> list[Segment]:
    return [
        write_segment(folder, f"{name}{i}.faiss", np.array(ids, np.int64), vectors)
        for i, (ids, vectors) in enumerate(parts)
    ]


def exact(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], ids: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores and ids of the k best in double precision, smaller ids first."""
    scores = queries.astype(np.float64) @ fp16(vectors).T.astype(np.float64)
    order = np.stack([np.lexsort((ids, -row)) for row in scores])[:, :k]
    return np.take_along_axis(scores, order, 1), ids[order]


# -- one segment -------------------------------------------------------------------------------


def test_a_segment_is_what_was_written(tmp_path: Path) -> None:
    vectors, ids = random(50), np.random.default_rng(1).permutation(500)[:50]
    segment = write_segment(tmp_path, "a.faiss", ids, vectors)
    data = (tmp_path / "a.faiss").read_bytes()
    assert segment == Segment("a.faiss", 50, len(data), hashlib.sha256(data).hexdigest())
    assert [path.name for path in tmp_path.iterdir()] == ["a.faiss"]
    opened = open_segment(tmp_path, segment, DIM)
    order = np.argsort(ids)
    np.testing.assert_array_equal(opened.ids, ids[order])
    np.testing.assert_array_equal(opened.vectors(np.arange(50)), fp16(vectors[order]))
    assert verify_segment(tmp_path, segment, DIM, ids) == []


def test_a_stored_segment_written_again_is_the_same_file(tmp_path: Path) -> None:
    vectors, ids = random(20), np.arange(20)
    first = write_segment(tmp_path, "a.faiss", ids, vectors)
    stored = open_segment(tmp_path, first, DIM).vectors(ids)
    assert write_segment(tmp_path, "b.faiss", ids, stored).sha256 == first.sha256
    # What an interrupted writer left is replaced.
    (tmp_path / "c.faiss").write_bytes(b"half a file")
    assert write_segment(tmp_path, "c.faiss", ids[::-1], vectors[::-1]).sha256 == first.sha256


def test_an_open_segment_is_mapped_not_copied(tmp_path: Path) -> None:
    [segment] = write(tmp_path, [(range(4096), random(4096, 1024))])
    process = psutil.Process()
    before = process.memory_full_info().uss
    opened = open_segment(tmp_path, segment, 1024)
    assert segment.bytes > 8e6
    assert process.memory_full_info().uss - before < 2e6
    assert any(Path(m.path).name == "s0.faiss" for m in process.memory_maps())
    # Its file may go (compaction) while a reader has it open.
    (tmp_path / "s0.faiss").unlink()
    assert np.isfinite(opened.vectors(np.arange(4096))).all()


BAD = [(np.nan, "NaN"), (np.inf, "NaN or inf"), (7e4, "fp16.*7e\\+04")]


@pytest.mark.parametrize(("value", "message"), BAD)
def test_what_fp16_cannot_keep_is_refused(tmp_path: Path, value: float, message: str) -> None:
    vectors = random(5)
    vectors[3] = 0
    vectors[3, 2] = value
    with pytest.raises(ModelError, match=rf"samples 13 .*{message}"):
        write_segment(tmp_path, "a.faiss", np.arange(10, 15), vectors)
    assert list(tmp_path.iterdir()) == []
    vectors[3, 2] = 6.55e4  # the largest number is kept, and so is next to nothing
    vectors[4] = 1e-9
    write_segment(tmp_path, "a.faiss", np.arange(10, 15), vectors)


@pytest.mark.parametrize(
    ("ids", "vectors"),
    [
        (np.arange(3), random(4)),
        (np.array([1, 2, 2, 3]), random(4)),
        (np.array([-1, 2, 3, 4]), random(4)),
        (np.arange(4, dtype=np.int32), random(4)),
        (np.arange(4), random(4).astype(np.float64)),
        (np.arange(4), random(4)[0]),
        (np.arange(0), random(0)),
        (np.arange(4), random(4)[:, :0]),
    ],
)
def test_arrays_that_do_not_fit_are_our_bug(tmp_path: Path, ids: Any, vectors: Any) -> None:
    with pytest.raises(ValueError, match="ids"):
        write_segment(tmp_path, "a.faiss", ids, vectors)
    for name in ("a", "../a.faiss", "/a.faiss"):
        with pytest.raises(ValueError, match="named"):
            write_segment(tmp_path, name, np.arange(4), random(4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "write_index", "replace"])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    owner = {"fsync": "os", "write_index": "faiss", "replace": "pathlib.Path"}[step]
    monkeypatch.setattr(f"{owner}.{step}", full)
    with pytest.raises(OSError, match="No space"):
        write_segment(tmp_path, "a.faiss", np.arange(4), random(4))
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    ids = np.arange(0, 9, 3)
    [segment] = write(tmp_path, [(ids, random(3, 4))])
    path = tmp_path / "s0.faiss"
    good = path.read_bytes()
    assert verify_segment(tmp_path, segment, 4, ids) == []
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        path.write_bytes(bad)
        problems = verify_segment(tmp_path, segment, 4, ids)
        assert f"s0.faiss has sha256 {hashlib.sha256(bad).hexdigest()}" in problems[0]


def test_what_differs_is_named(tmp_path: Path) -> None:
    ids = np.arange(5)
    segment, other, nan = write(tmp_path, [(ids, random(5)), (ids, random(5, 8)), (ids, random(5))])
    path = tmp_path / nan.name
    stored = fp16(random(5)).astype(np.float16).tobytes()
    data = path.read_bytes()
    assert stored in data
    path.write_bytes(data.replace(stored[:2], np.float16("nan").tobytes(), 1))
    cases = [
        (replace(segment, ntotal=6), DIM, r"s0\.faiss: vectors 5, committed 6"),
        (replace(segment, bytes=7), DIM, rf"s0\.faiss: bytes {segment.bytes}, committed 7"),
        (other, DIM, r"s1\.faiss: dim 8, committed 16"),
        (replace(segment, name="x.faiss"), DIM, r"x\.faiss is missing"),
    ]
    for wrong, dim, message in cases:
        with pytest.raises(CorruptIndexError, match=message):
            open_segment(tmp_path, wrong, dim)
        [*_, problem] = verify_segment(tmp_path, wrong, dim, ids)
        assert message.replace("\\", "") in problem
    digest, finite = verify_segment(tmp_path, nan, DIM, ids)
    assert "sha256" in digest
    assert "not finite: ids 0" in finite
    surplus, absent = verify_segment(tmp_path, segment, DIM, np.arange(2, 9))
    assert "vectors without a row in the catalogue: ids 0, 1" in surplus
    assert "no vectors for rows of the catalogue: ids 5, 6, 7, 8" in absent
    path.write_bytes(b"x" * nan.bytes)
    with pytest.raises(CorruptIndexError, match=r"s2\.faiss cannot be read"):
        open_segment(tmp_path, nan, DIM)


def _foreign(kind: str) -> Any:
    faiss = backend.faiss()
    if kind == "flat":
        return faiss.IndexFlatIP(DIM)
    quantiser = faiss.ScalarQuantizer.QT_bf16 if kind == "bf16" else faiss.ScalarQuantizer.QT_fp16
    metric = faiss.METRIC_L2 if kind == "l2" else faiss.METRIC_INNER_PRODUCT
    return faiss.IndexScalarQuantizer(DIM, quantiser, metric)


@pytest.mark.parametrize(
    ("kind", "message"), [("flat", "quantiser"), ("bf16", "quantiser kind"), ("l2", "metric")]
)
def test_a_foreign_index_is_not_a_segment(tmp_path: Path, kind: str, message: str) -> None:
    faiss = backend.faiss()
    index = faiss.IndexIDMap(_foreign(kind))
    index.add_with_ids(random(5), np.arange(5))
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    segment = Segment("a.faiss", 5, (tmp_path / "a.faiss").stat().st_size, "")
    with pytest.raises(CorruptIndexError, match=rf"a\.faiss: {message} "):
        open_segment(tmp_path, segment, DIM)


def test_ids_out_of_order_are_not_opened(tmp_path: Path) -> None:
    [segment] = write(tmp_path, [(range(5), random(5))])
    path = tmp_path / "s0.faiss"
    path.write_bytes(path.read_bytes()[:-40] + np.array([0, 1, 3, 2, 4]).tobytes())
    with pytest.raises(CorruptIndexError, match="do not ascend"):
        open_segment(tmp_path, segment, DIM)


def test_orphans_are_what_was_not_committed(tmp_path: Path) -> None:
    segments = write(tmp_path, [(range(3), random(3)), (range(3, 6), random(3))])
    (tmp_path / "s2.faiss.tmp").touch()
    (tmp_path / "notes.txt").touch()
    assert [path.name for path in orphans(tmp_path, segments[:1])] == ["s1.faiss", "s2.faiss.tmp"]


# -- all segments ------------------------------------------------------------------------------


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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

    flat = FlatSearch(folder, write(folder, parts), 4, removed)
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


def test_real_numbers_agree_with_numpy(tmp_path: Path) -> None:
    vectors, queries, ids = random(300), random(20, seed=1), np.arange(300)
    flat = FlatSearch(
        tmp_path, write(tmp_path, [(ids[:100], vectors[:100]), (ids[100:], vectors[100:])]), DIM
    )
    scores, found = flat.search(queries, 12)
    want_scores, want = exact(queries, vectors, ids, 12)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_allclose(scores, want_scores, rtol=1e-5)
    np.testing.assert_allclose(flat.scores(queries)[1], queries @ fp16(vectors).T, atol=1e-5)


def test_no_split_batch_or_call_changes_a_bit(tmp_path: Path) -> None:
    dim = 100  # no multiple of a SIMD register
    vectors, queries, ids = random(300, dim), random(9, dim, seed=1), np.arange(300)
    one = FlatSearch(tmp_path, write(tmp_path, [(ids, vectors)], "one"), dim)
    parts = [(ids[i::7], vectors[i::7]) for i in range(7)]
    many = FlatSearch(tmp_path, write(tmp_path, parts, "many"), dim)
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


def test_a_large_segment_is_searched_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 1000
    vectors, queries, ids = random(n), random(5, seed=1), 2 * np.arange(n)
    segments = write(tmp_path, [(ids, vectors)])
    whole = FlatSearch(tmp_path, segments, DIM, removed=ids[::7])
    monkeypatch.setattr(flat_module, "_PIECE", 100)
    flat = FlatSearch(tmp_path, segments, DIM, removed=ids[::7])
    assert len(flat._pieces) == 10 and len(whole._pieces) == 1
    for k in (3, 900):
        for allowed in (None, ids[200:450]):
            for one, other in zip(
                flat.search(queries, k, allowed=allowed),
                whole.search(queries, k, allowed=allowed),
                strict=True,
            ):
                np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(flat.scores(queries)[1], whole.scores(queries)[1])
    wanted = flat.ids[::-3]
    np.testing.assert_array_equal(flat.vectors(wanted), whole.vectors(wanted))
    # The pieces look at the file: they may outlive the segment they were cut from.
    flat._opened.clear()
    np.testing.assert_array_equal(flat.search(queries, 3)[1], whole.search(queries, 3)[1])


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    """With a selector: FAISS changes the parameters that it is given while it searches."""
    n, dim = 8 * 2000, 32
    ids, vectors, queries = np.arange(n), random(n, dim), random(64, dim, seed=1)
    parts = [(ids[i::8], vectors[i::8]) for i in range(8)]
    flat = FlatSearch(tmp_path, write(tmp_path, parts), dim, removed=ids[::3])
    live = ids % 3 > 0
    want = exact(queries, vectors[live], ids[live], 5)[1]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda query: flat.search(query[None], 5)[1][0], queries))
            np.testing.assert_array_equal(found, want)


def test_opponents_are_the_proponents_of_the_negated_query(tmp_path: Path) -> None:
    flat = FlatSearch(tmp_path, write(tmp_path, [(range(50), random(50))]), DIM)
    queries = random(3, seed=2)
    scores, ids = flat.search(queries, 50, opponents=True)
    negated, same = flat.search(-queries, 50)
    np.testing.assert_array_equal(ids, same)
    np.testing.assert_array_equal(scores, -negated)
    np.testing.assert_array_equal(ids[:, ::-1], flat.search(queries, 50)[1])


def test_scores_in_blocks_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = FlatSearch(tmp_path, write(tmp_path, [(range(50), random(50))]), DIM)
    queries = random(7, seed=2)
    whole = flat.scores(queries)[1]
    monkeypatch.setattr("forvalue_index.search.parts._LABELS", 100)
    np.testing.assert_array_equal(flat.scores(queries)[1], whole)


def test_weights_change_the_rank_exactly(tmp_path: Path) -> None:
    """Whole numbers and powers of two, so that numpy has the same scores and equal ones occur."""
    rng = np.random.default_rng(0)
    n = 200
    vectors = rng.integers(-2, 3, (n, 4)).astype(np.float32)
    ids = np.sort(rng.choice(1000, n, replace=False))
    queries = rng.integers(-2, 3, (7, 4)).astype(np.float32)
    parts = [(ids[i::5], vectors[i::5]) for i in range(5)]
    removed = ids[::7]
    live = ~np.isin(ids, removed)
    flat = FlatSearch(tmp_path, write(tmp_path, parts), 4, removed)
    weights = 2.0 ** rng.integers(-3, 4, live.sum())
    weighted = vectors[live] * weights[:, None]
    np.testing.assert_array_equal(flat.scores(queries, weights=weights)[1], queries @ weighted.T)
    allowed = rng.choice(1000, 300, replace=False)
    for restriction in (None, allowed):
        kept = np.isin(ids[live], ids if restriction is None else restriction)
        for k in (1, 10, n + 1):
            for opponents, sign in ((False, 1), (True, -1)):
                scores, found = flat.search(
                    queries, k, opponents=opponents, allowed=restriction, weights=weights
                )
                want_scores, want = exact(sign * queries, weighted[kept], ids[live][kept], k)
                np.testing.assert_array_equal(found, want)
                np.testing.assert_array_equal(scores, sign * want_scores)
    # It could fail: without weights the order is another one.
    assert (flat.search(queries, 10)[1] != flat.search(queries, 10, weights=weights)[1]).any()


def test_cosines_are_cosines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries, ids = random(300), random(20, seed=1), np.arange(300)
    vectors *= np.geomspace(0.1, 10, 300, dtype=np.float32)[:, None]
    flat = FlatSearch(
        tmp_path, write(tmp_path, [(ids[:99], vectors[:99]), (ids[99:], vectors[99:])]), DIM
    )
    lengths = np.linalg.norm(fp16(vectors), axis=1)
    scores, found = flat.search(queries, 12, weights=1 / lengths)
    cosines = queries @ (fp16(vectors) / lengths[:, None]).T
    np.testing.assert_array_equal(found, np.argsort(-cosines, axis=1)[:, :12])
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, found, 1), rtol=1e-4)
    # To the bit, and in blocks too, what `scores` and `scores_of` say.
    every = flat.scores(queries, weights=1 / lengths)[1]
    np.testing.assert_array_equal(np.take_along_axis(every, found, 1), scores)
    monkeypatch.setattr("forvalue_index.search.parts._LABELS", 100)
    monkeypatch.setattr("forvalue_index.search.flat._SCORED", 24 * DIM)
    again = flat.search(queries, 12, weights=1 / lengths)
    np.testing.assert_array_equal(again[0], scores)
    np.testing.assert_array_equal(again[1], found)
    np.testing.assert_array_equal(flat.scores_of(queries, found, weights=1 / lengths), scores)


def test_scores_of_chosen_samples_are_those_of_search(tmp_path: Path) -> None:
    dim = 100
    vectors, queries, ids = random(300, dim), random(9, dim, seed=1), 3 * np.arange(300)
    parts = [(ids[i::7], vectors[i::7]) for i in range(7)]
    flat = FlatSearch(tmp_path, write(tmp_path, parts), dim, removed=[6])
    scores, found = flat.search(queries, 25)
    order = np.random.default_rng(0).permutation(25)
    chosen = flat.scores_of(queries, found[:, order])
    np.testing.assert_array_equal(chosen, scores[:, order])
    # It could differ: a product of matrices gives other bits.
    assert (scores != np.take_along_axis(queries @ fp16(vectors).T, found // 3, 1)).any()
    assert flat.scores_of(queries, np.empty((9, 0), np.int64)).shape == (9, 0)
    for missing in (6, 7, -1):
        with pytest.raises(InputError, match=f"id {missing} "):
            flat.scores_of(queries, np.full((9, 1), missing))


@pytest.mark.parametrize("bad", [0, -1, np.nan, np.inf, 1e-50, 1e50])
def test_weights_that_are_none_are_refused(tmp_path: Path, bad: float) -> None:
    flat = FlatSearch(tmp_path, write(tmp_path, [(range(5), random(5))]), DIM, removed=[0])
    weights = np.array([1, 2, bad, 1])
    for method in (
        lambda w: flat.search(random(1), 2, weights=w),
        lambda w: flat.scores(random(1), weights=w),
        lambda w: flat.scores_of(random(1), np.array([[1]]), weights=w),
    ):
        with (
            np.errstate(over="ignore"),
            pytest.raises(InputError, match=r"weight of sample 3 is .*positive and finite"),
        ):
            method(weights)
        with pytest.raises(InputError, match=r"\(5,\) weights for 4 samples"):
            method(np.ones(5))


def test_blocks_are_all_vectors_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, ids = random(50), np.arange(50)
    parts = [(ids[25:], vectors[25:]), (ids[:25], vectors[:25])]  # not in the order of ids
    segments = write(tmp_path, parts)
    flat = FlatSearch(tmp_path, segments, DIM, removed=[3, 30])
    monkeypatch.setattr("forvalue_index.search.flat._NUMBERS", 7 * DIM)
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
    flat = FlatSearch(tmp_path, write(tmp_path, parts), DIM, removed=[4])
    wanted = np.array([58, 0, 2, 58, 30])
    np.testing.assert_array_equal(flat.vectors(wanted), fp16(vectors)[wanted // 2])
    assert flat.vectors([]).shape == (0, DIM)
    for missing in (1, 4, 60, -1):
        with pytest.raises(InputError, match=f"id {missing} "):
            flat.vectors([0, missing])


def test_an_empty_index_answers_nothing(tmp_path: Path) -> None:
    segments = write(tmp_path, [(range(3), random(3))])
    for flat in (FlatSearch(tmp_path, [], DIM), FlatSearch(tmp_path, segments, DIM, [0, 1, 2])):
        scores, ids = flat.search(random(2), 5)
        assert scores.shape == ids.shape == (2, 0)
        assert flat.scores(random(2))[1].shape == (2, 0)
        assert flat.vectors([]).shape == (0, DIM)
        assert flat.ntotal == 0


def test_bad_queries_are_refused(tmp_path: Path) -> None:
    flat = FlatSearch(tmp_path, write(tmp_path, [(range(3), random(3))]), DIM)
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
    flat = FlatSearch(tmp_path, [segment], DIM)
    for method in (lambda q: flat.search(q, 5), flat.scores):
        with pytest.raises(CorruptIndexError, match=r"s0\.faiss holds vectors"):
            method(random(1, seed=1))


def test_one_id_in_two_segments_is_refused(tmp_path: Path) -> None:
    segments = write(tmp_path, [(range(3), random(3)), (range(2, 6), random(4))])
    with pytest.raises(CorruptIndexError, match="id 2 is in more than one segment"):
        FlatSearch(tmp_path, segments, DIM)


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


def test_torch_and_faiss_share_a_process(tmp_path: Path) -> None:
    """Each has an OpenMP of its own: neither may change the other's threads or results."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads(), backend.faiss().omp_get_max_threads()
    vectors, queries = random(200, 64), random(5, 64, seed=1)
    parts = [(range(i, 200, 4), vectors[i::4]) for i in range(4)]
    flat = FlatSearch(tmp_path, write(tmp_path, parts), 64)
    first = flat.search(queries, 10)[1]
    for _ in range(5):
        product = torch.from_numpy(queries) @ torch.from_numpy(fp16(vectors)).T
        np.testing.assert_array_equal(product.topk(10).indices.numpy(), first)
        np.testing.assert_array_equal(flat.search(queries, 10)[1], first)
        np.testing.assert_array_equal(flat.search(queries[:1], 10)[1], first[:1])
    assert (torch.get_num_threads(), backend.faiss().omp_get_max_threads()) == threads

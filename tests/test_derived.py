"""Derived indexes against numpy: recall, and what must hold whatever the recall."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from forvalue_index.errors import CorruptIndexError, IndexMissingError, InputError
from forvalue_index.records import Segment
from forvalue_index.search import backend
from forvalue_index.search import flat as flat_module
from forvalue_index.search.derived import (
    DerivedInfo,
    DerivedSearch,
    derived_names,
    open_derived,
    read_info,
    remove_derived,
)
from forvalue_index.search.factory import Effort, auto_factory
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.making import exact_top, extend_derived, make_derived
from forvalue_index.search.parts import bits_of, selector_of
from forvalue_index.search.segments import write_segment

N, DIM, SEGMENTS = 3000, 32, 6
ORIGINALS = {
    "faiss.write_index": backend.faiss().write_index,
    "os.fsync": os.fsync,
    "pathlib.Path.replace": Path.replace,
}
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


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """One thread, as this little work is slower on more, and speeds from a moment."""
    with pytest.MonkeyPatch.context() as patch, backend.one_thread():
        patch.setattr("forvalue_index.search.making._SECONDS", 0.01)
        patch.setattr("forvalue_index.search.making._QUERIES", 100)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@pytest.fixture(scope="module")
def segments(root: Path) -> list[Segment]:
    return [
        write_segment(root, f"s{i}.faiss", IDS[i::SEGMENTS], VECTORS[i::SEGMENTS])
        for i in range(SEGMENTS)
    ]


@pytest.fixture(scope="module")
def flat(root: Path, segments: list[Segment]) -> FlatSearch:
    return FlatSearch(root, segments, DIM)


@pytest.fixture(scope="module")
def make(root: Path, flat: FlatSearch) -> Callable[[str], DerivedSearch]:
    made: dict[str, DerivedSearch] = {}

    def made_once(factory: str) -> DerivedSearch:
        if factory not in made:
            folder = root / f"derived{len(made)}"
            make_derived(folder, flat, factory)
            made[factory] = open_derived(folder, flat)
        return made[factory]

    return made_once


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


FACTORIES = [IVF, "IVF32,Flat", "RR32,IVF32,RaBitQ2", "IVF32,PQ16x4fs", "HNSW16_SQ8", "SQ4"]


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("opponents", [False, True])
def test_recall_is_what_was_promised(
    factory: str, opponents: bool, make: Callable[[str], DerivedSearch], flat: FlatSearch
) -> None:
    derived = make(factory)
    sign = -1 if opponents else 1
    wanted = exact(sign * QUERIES, VECTORS, IDS, 10)
    found = derived.search(QUERIES, 10, opponents=opponents)
    side = derived.info.opponents if opponents else derived.info.proponents
    assert side.recall_at_10 >= derived.info.target == 0.95
    assert recall(found[1], wanted) >= 0.93  # other queries: within what chance does
    assert derived.info.notes == []
    assert side.recall_at_100 >= 0.95
    many = derived.search(QUERIES, 100, opponents=opponents)[1]
    assert recall(many, exact(sign * QUERIES, VECTORS, IDS, 100)) >= 0.93
    check_hits(found, flat, QUERIES, IDS, opponents=opponents)
    # It could fail: a search that looks at less finds less, and so does one by codes alone.
    if derived._effort.name is not None:
        lazy = derived.candidates(sign * QUERIES, 10, 1)
        assert recall(lazy, wanted) < 0.9
    if derived.info.k_factor > 1:
        assert side.recall_by_code < side.recall_at_10


def test_opponents_are_not_the_end_of_a_list_of_proponents(
    make: Callable[[str], DerivedSearch],
) -> None:
    """What negating the scores of the lists that are near to q would give."""
    derived = make(IVF)
    wanted = exact(-QUERIES, VECTORS, IDS, 10)
    near = derived.candidates(QUERIES, N, derived.info.opponents.effort)
    last = np.stack([row[row >= 0][-10:] for row in near])
    assert recall(last, wanted) < 0.5
    assert recall(derived.search(QUERIES, 10, opponents=True)[1], wanted) > 0.93


@pytest.mark.parametrize("factory", [IVF, "HNSW16_SQ8", "RR32,IVF32,RaBitQ2", "SQ4"])
def test_exactly_k_hits_whatever_is_asked(
    factory: str, make: Callable[[str], DerivedSearch], root: Path, segments: list[Segment]
) -> None:
    rng = np.random.default_rng(0)
    made = make(factory)
    for gone, allowed_count in [(0, None), (0, 40), (1500, 700), (2900, None), (2990, 20), (N, 9)]:
        removed = rng.choice(IDS, gone, replace=False)
        allowed = None
        live = np.setdiff1d(IDS, removed)
        if allowed_count is not None:
            allowed = rng.choice(2 * N, allowed_count, replace=False)
            live = np.intersect1d(live, allowed)
        flat = FlatSearch(root, segments, DIM, removed)
        derived = DerivedSearch(made.info, made._index, flat)
        for k in (1, 10, 200, N + 5):
            for opponents in (False, True):
                found = derived.search(QUERIES[:20], k, opponents=opponents, allowed=allowed)
                assert found[0].shape == found[1].shape == (20, min(k, len(live)))
                assert (found[0].dtype, found[1].dtype) == (np.float32, np.int64)
                check_hits(found, flat, QUERIES[:20], live, opponents=opponents)
                if k > len(live):
                    assert all(set(row) == set(live) for row in found[1])
    assert derived.search(QUERIES[:0], 5)[1].shape[0] == 0


def test_a_filter_does_not_lower_recall(make: Callable[[str], DerivedSearch]) -> None:
    for factory in (IVF, "HNSW16_SQ8"):
        derived = make(factory)
        for share in (0.5, 0.1, 0.01):
            allowed = IDS[np.random.default_rng(1).random(N) < share]
            wanted = exact(QUERIES, VECTORS[allowed // 2], allowed, 10)
            assert recall(derived.search(QUERIES, 10, allowed=allowed)[1], wanted) >= 0.93
            # It could fail: with the effort for all of them, fewer of the few are seen.
            if factory == IVF and share == 0.1:
                selector = selector_of(bits_of(allowed))
                effort = derived.info.proponents.effort
                assert recall(derived.candidates(QUERIES, 10, effort, selector), wanted) < 0.9


def test_few_candidates_are_made_up_for(
    make: Callable[[str], DerivedSearch], flat: FlatSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lists that are looked into may hold fewer than k of the allowed."""
    derived = make(IVF)
    monkeypatch.setattr(derived, "needed", lambda *_: 1)
    allowed = IDS[:100]
    selector = selector_of(bits_of(allowed))
    assert (derived.candidates(QUERIES, 30, 1, selector) < 0).any()  # it could fail
    for opponents in (False, True):
        scores, ids = derived.search(QUERIES, 30, opponents=opponents, allowed=allowed)
        assert ids.shape == (len(QUERIES), 30)
        check_hits((scores, ids), flat, QUERIES, allowed, opponents=opponents)


def test_newer_vectors_are_found_and_then_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = IDS < 4000, IDS >= 4000
    first = write_segment(tmp_path, "a.faiss", IDS[old], VECTORS[old])
    before = make_derived(tmp_path / "derived", FlatSearch(tmp_path, [first], DIM), IVF)
    second = write_segment(tmp_path, "b.faiss", IDS[new], VECTORS[new])
    flat = FlatSearch(tmp_path, [first, second], DIM, removed=[0, 5000])
    live = np.setdiff1d(IDS, [0, 5000])
    derived = open_derived(tmp_path / "derived", flat)
    assert derived.uncovered == pytest.approx(999 / 2998)
    wanted = {side: exact(sign * QUERIES, VECTORS[live // 2], live, 10)
              for side, sign in ((False, 1), (True, -1))}  # fmt: skip

    def check(derived: DerivedSearch) -> None:
        for opponents in (False, True):
            found = derived.search(QUERIES, 10, opponents=opponents)
            check_hits(found, flat, QUERIES, live, opponents=opponents)
            assert recall(found[1], wanted[opponents]) >= 0.93
            few = derived.search(QUERIES, 10, opponents=opponents, allowed=[4002, 6, 0, 4004, 8])
            assert set(few[1].ravel()) == {4002, 6, 4004, 8}

    check(derived)
    newer = wanted[False] >= 4000
    found = derived.search(QUERIES, 10)[1]
    assert newer.any()
    assert np.isin(wanted[False][newer], found).all()  # those are exact

    monkeypatch.setattr("forvalue_index.search.making.train", None)
    info = extend_derived(tmp_path / "derived", flat, generation=7)
    assert (info.ntotal, info.measured_on, info.generation) == (2999, 1900, 7)
    assert info.file != before.file
    assert sorted(p.name for p in (tmp_path / "derived").iterdir()) == [info.file, "dot.json"]
    again = open_derived(tmp_path / "derived", flat)
    assert again.uncovered == 0
    check(again)
    check(derived)  # a reader that has the file before open
    assert extend_derived(tmp_path / "derived", flat) == info  # nothing is newer


@pytest.mark.parametrize("factory", [IVF, "HNSW16_SQ8"])
def test_ranks_with_weights(factory: str, root: Path, flat: FlatSearch, tmp_path: Path) -> None:
    weights = (1 / np.linalg.norm(VECTORS, axis=1)).astype(np.float32)
    make_derived(tmp_path, flat, factory, name="cosine", rank="cosine", weights=weights)
    derived = open_derived(tmp_path, flat, "cosine", weights=weights)
    assert derived.info.rank == "cosine"
    for opponents, sign in ((False, 1), (True, -1)):
        wanted = exact(sign * QUERIES, VECTORS * weights[:, None], IDS, 10)
        found = derived.search(QUERIES, 10, opponents=opponents)
        check_hits(found, flat, QUERIES, IDS, opponents=opponents, weights=weights)
        assert recall(found[1], wanted) >= 0.93
        # It could fail: the rank without weights is another one.
        assert recall(exact(sign * QUERIES, VECTORS, IDS, 10), wanted) < 0.9
    with pytest.raises(InputError, match="weights"):
        make_derived(tmp_path, flat, factory, weights=weights[1:])
    with pytest.raises(InputError, match="weight of sample 4 is 0"):
        make_derived(tmp_path, flat, factory, weights=np.where(IDS == 4, 0, weights))


def test_what_it_cannot_reach_is_said_and_opponents_are_exact(
    tmp_path: Path, flat: FlatSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_index.search.making._FACTORS", (1, 2))
    info = make_derived(tmp_path, flat, "IVF32,PQ4x4", target=1.01)
    assert info.proponents.effort == 32  # the best it has
    first, second = info.notes
    assert "proponents, wanted was 1.01: the best it can do" in first
    assert "opponents, wanted was 1.01: all vectors are compared" in second
    derived = open_derived(tmp_path, flat)
    np.testing.assert_array_equal(
        derived.search(QUERIES, 10, opponents=True)[1], exact(-QUERIES, VECTORS, IDS, 10)
    )
    check_hits(derived.search(QUERIES, 10), flat, QUERIES, IDS)


def test_given_queries_are_measured_with(tmp_path: Path, flat: FlatSearch) -> None:
    info = make_derived(tmp_path, flat, IVF, queries=QUERIES[:50])
    assert info.queries == 50
    derived = open_derived(tmp_path, flat)
    for side, sign in ((info.proponents, 1), (info.opponents, -1)):
        found = derived.search(QUERIES[:50], 10, opponents=sign < 0)[1]
        wanted = exact(sign * QUERIES[:50], VECTORS, IDS, 10)
        assert recall(found, wanted) == pytest.approx(side.recall_at_10)
    with pytest.raises(InputError, match="shape"):
        make_derived(tmp_path, flat, IVF, queries=QUERIES[:, 1:])


def test_the_exact_top_by_blocks(flat: FlatSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat_module, "_NUMBERS", 700 * DIM)
    best, worst = exact_top(flat, QUERIES, 12)
    np.testing.assert_array_equal(best, exact(QUERIES, VECTORS, IDS, 12))
    np.testing.assert_array_equal(worst, exact(-QUERIES, VECTORS, IDS, 12))


def test_the_same_seed_makes_the_same_file(
    tmp_path: Path, flat: FlatSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_index.search.making._QUERIES", 20)
    one = make_derived(tmp_path, flat, IVF)
    monkeypatch.setattr(flat_module, "_NUMBERS", 100 * DIM)  # in other blocks
    assert make_derived(tmp_path, flat, IVF, name="two").sha256 == one.sha256
    assert make_derived(tmp_path, flat, IVF, name="dot-x", seed=1).sha256 != one.sha256
    assert derived_names(tmp_path) == ["dot", "dot-x", "two"]
    remove_derived(tmp_path, "dot")
    assert derived_names(tmp_path) == ["dot-x", "two"]
    open_derived(tmp_path, flat, "dot-x")
    assert derived_names(tmp_path / "nowhere") == []
    for bad in ("", "../x", "a.b"):
        with pytest.raises(InputError, match="named"):
            read_info(tmp_path, bad)


def test_vectors_are_read_in_blocks(tmp_path: Path, flat: FlatSearch,
                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    sizes: list[int] = []
    vectors = FlatSearch.vectors

    def counted(self: FlatSearch, ids: Any) -> Floats:
        sizes.append(len(ids))
        return vectors(self, ids)

    monkeypatch.setattr(FlatSearch, "vectors", counted)
    monkeypatch.setattr(flat_module, "_NUMBERS", 400 * DIM)
    monkeypatch.setattr(flat_module, "_SCORED", 400 * DIM)
    monkeypatch.setattr("forvalue_index.search.making._TRAIN", 500)
    monkeypatch.setattr("forvalue_index.search.making._PER_LIST", 10)
    info = make_derived(tmp_path, flat, IVF)
    assert info.trained_on == 500
    assert max(sizes) < 700  # of 3000: the candidates of a query, when there are most


def test_it_is_mapped_and_threads_share_it(
    make: Callable[[str], DerivedSearch], root: Path, segments: list[Segment]
) -> None:
    made = make(IVF)
    maps = {Path(m.path).name for m in psutil.Process().memory_maps()}
    assert made.info.file in maps
    flat = FlatSearch(root, segments, DIM, removed=IDS[::3])  # so that there is a selector
    derived = DerivedSearch(made.info, made._index, flat)
    want = derived.search(QUERIES, 5)[1]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda query: derived.search(query[None], 5)[1][0], QUERIES))
            np.testing.assert_array_equal(found, want)


# -- out of date, damaged, interrupted ---------------------------------------------------------


def test_damage_is_found_when_it_is_opened(tmp_path: Path, flat: FlatSearch) -> None:
    info = make_derived(tmp_path, flat, IVF)
    path = tmp_path / info.file
    good = path.read_bytes()
    for position in (0, 50, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[position] ^= 4
        path.write_bytes(bad)
        with pytest.raises(CorruptIndexError, match=r"is damaged.*forvalue optimize"):
            open_derived(tmp_path, flat)
        with pytest.raises(CorruptIndexError, match="is damaged"):
            extend_newer(tmp_path, flat)
    path.write_bytes(good[:-1])
    with pytest.raises(CorruptIndexError, match="is damaged"):
        open_derived(tmp_path, flat)
    path.unlink()
    with pytest.raises(CorruptIndexError, match="No such file"):
        open_derived(tmp_path, flat)
    for text in ("{", "[]", "{}", json.dumps(info.to_json() | {"more": 1})):
        (tmp_path / "dot.json").write_text(text)
        with pytest.raises(CorruptIndexError, match=r"dot\.json is damaged"):
            open_derived(tmp_path, flat)
    remove_derived(tmp_path, "dot")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IndexMissingError, match="forvalue optimize"):
        open_derived(tmp_path, flat)


def extend_newer(folder: Path, flat: FlatSearch) -> None:
    """`extend_derived`, with one segment that it does not know yet."""
    info = read_info(folder, "dot")
    known = dict(list(info.segments.items())[1:])
    (folder / "dot.json").write_text(json.dumps(replace(info, segments=known).to_json()))
    try:
        extend_derived(folder, flat)
    finally:
        (folder / "dot.json").write_text(json.dumps(info.to_json()))


def test_one_of_other_segments_is_refused(
    tmp_path: Path, root: Path, segments: list[Segment], flat: FlatSearch
) -> None:
    make_derived(tmp_path, flat, IVF)
    fewer = FlatSearch(root, segments[1:], DIM)
    with pytest.raises(CorruptIndexError, match=r"out of date.*s0\.faiss.*no longer there"):
        open_derived(tmp_path, fewer)
    with pytest.raises(CorruptIndexError, match="out of date"):
        extend_derived(tmp_path, fewer)
    other = FlatSearch(root, [replace(segments[0], sha256="0"), *segments[1:]], DIM)
    with pytest.raises(CorruptIndexError, match=r"out of date.*s0\.faiss.*another one"):
        open_derived(tmp_path, other)


@pytest.mark.parametrize("step", ["faiss.write_index", "os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("extend", [False, True])
def test_a_failed_write_leaves_the_one_before(
    tmp_path: Path, segments: list[Segment], root: Path, step: str, extend: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first = FlatSearch(root, segments[:4], DIM)
    both = FlatSearch(root, segments, DIM)
    monkeypatch.setattr("forvalue_index.search.making._QUERIES", 10)
    before = make_derived(tmp_path, first, "SQ8")
    for failing in (1, 2, 3, 4):
        calls = 0

        def full(*arguments: Any, failing: int = failing) -> Any:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(28, "No space left on device")
            return ORIGINALS[step](*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(step, full)
            try:
                extend_derived(tmp_path, both) if extend else make_derived(tmp_path, both, "SQ8")
                assert calls < failing or step == "os.fsync"
            except OSError:
                assert not list(tmp_path.glob("*.tmp"))
        now = read_info(tmp_path, "dot")
        assert now == before or now.ntotal == N
        assert open_derived(tmp_path, both).search(QUERIES[:2], 5)[1].shape == (2, 5)
    assert calls < failing or now.ntotal == N
    # What was left over goes with the next one that is made.
    last = make_derived(tmp_path, first, "SQ8")
    assert {path.name for path in tmp_path.iterdir()} == {last.file, "dot.json"}


# -- factory strings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Nonsense", "FAISS cannot make 'Nonsense' of 32 numbers"),
        ("IVF32,PQ7", "FAISS cannot make|cannot be trained"),
        ("IVF4096,SQ8", "'IVF4096,SQ8' cannot be trained on 3000 vectors"),
        ("PQ4x4", "'PQ4x4' cannot leave removed samples out"),
    ],
)
def test_what_cannot_be_made_is_refused(
    tmp_path: Path, flat: FlatSearch, factory: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_derived(tmp_path / "derived", flat, factory)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_index_cannot_be_derived_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no samples"):
        make_derived(tmp_path, FlatSearch(tmp_path, [], DIM), "SQ8")


def test_auto_says_what_and_why() -> None:
    gib = 2**30
    assert auto_factory(100_000, 256, gib)[0] == "Flat"
    assert "exactly" in auto_factory(5, 256, gib)[1]
    factory, reason = auto_factory(1_000_000, 256, gib)
    assert factory == "IVF4096,SQ8"
    for part in ("1,000,000 samples", "4,096 lists", "8 bits", "252 MiB of the 1,024 MiB"):
        assert part in reason
    factory, reason = auto_factory(1_000_000, 256, 200 * 2**20)
    assert factory == "IVF4096,SQ4"
    assert "8 bits would take 252 MiB" in reason
    assert auto_factory(1_000_000, 256, 100 * 2**20)[0] == "RR256,IVF4096,RaBitQ2"
    factory, reason = auto_factory(1_000_000, 256, 1000)
    assert factory == "RR256,IVF4096,RaBitQ"
    assert "too little" in reason


@pytest.mark.parametrize("choice", [2**40, 110_000, 1])
def test_what_auto_says_can_be_made(
    choice: int, tmp_path: Path, flat: FlatSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_index.search.factory.FLAT_UP_TO", 100)
    monkeypatch.setattr("forvalue_index.search.making._FACTORS", (1, 2))
    factory, _ = auto_factory(N, DIM, choice)
    info = make_derived(tmp_path, flat, factory)
    code = factory.split(",")[-1]
    bits = {"SQ8": 8, "SQ4": 4, "RaBitQ2": 2, "RaBitQ": 1}[code]
    assert bits == {2**40: 8, 110_000: 4}.get(choice, 1)
    assert info.bytes < 2 * N * (DIM * bits / 8 + 28)  # few vectors: the lists' centres count


def test_effort_is_found_inside_wrappers(make: Callable[[str], DerivedSearch]) -> None:
    names = {factory: Effort(make(factory)._index).name for factory in FACTORIES}
    assert list(names.values()) == ["nprobe"] * 4 + ["efSearch", None]


def test_info_comes_back_from_json(make: Callable[[str], DerivedSearch]) -> None:
    info = make(IVF).info
    assert DerivedInfo.from_json(json.loads(json.dumps(info.to_json()))) == info
    assert info.bytes_per_vector == pytest.approx(info.bytes / N)
    assert info.proponents.queries_per_second > 0

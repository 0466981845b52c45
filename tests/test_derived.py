"""Derived indexes against numpy: recall, and what must hold whatever the recall."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers.derived_data import DIM, IDS, IVF, QUERIES, VECTORS, N, check_hits, exact, recall

from forvalue_index.errors import InputError
from forvalue_index.records import Segment
from forvalue_index.search.ann import DerivedSearch, open_derived
from forvalue_index.search.ann_build import extend_derived, make_derived
from forvalue_index.search.ann_factory import Effort
from forvalue_index.search.ann_files import DerivedInfo
from forvalue_index.search.common import bits_of, selector_of
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.segment import write_segment

pytestmark = pytest.mark.usefixtures("quick")


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
        by_code = derived.candidates(sign * QUERIES, 10, side.effort)
        assert recall(by_code, wanted) < recall(found[1], wanted)


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
        flat = FlatSearch(root, segments, DIM, 16, removed)
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
    first = write_segment(tmp_path, "a.faiss", IDS[old], VECTORS[old], 16)
    before = make_derived(tmp_path / "derived", FlatSearch(tmp_path, [first], DIM, 16), IVF)
    second = write_segment(tmp_path, "b.faiss", IDS[new], VECTORS[new], 16)
    flat = FlatSearch(tmp_path, [first, second], DIM, 16, removed=[0, 5000])
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

    monkeypatch.setattr("forvalue_index.search.ann_build.train", None)
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
    make_derived(tmp_path, flat, factory, name="cosine", metric="cosine", weights=weights)
    derived = open_derived(tmp_path, flat, "cosine", weights=weights)
    assert derived.info.metric == "cosine"
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


def test_it_is_mapped_and_threads_share_it(
    make: Callable[[str], DerivedSearch], root: Path, segments: list[Segment]
) -> None:
    made = make(IVF)
    maps = {Path(m.path).name for m in psutil.Process().memory_maps()}
    assert made.info.file in maps
    flat = FlatSearch(root, segments, DIM, 16, removed=IDS[::3])  # so that there is a selector
    derived = DerivedSearch(made.info, made._index, flat)
    want = derived.search(QUERIES, 5)[1]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda query: derived.search(query[None], 5)[1][0], QUERIES))
            np.testing.assert_array_equal(found, want)


def test_effort_is_found_inside_wrappers(make: Callable[[str], DerivedSearch]) -> None:
    names = {factory: Effort(make(factory)._index).name for factory in FACTORIES}
    assert list(names.values()) == ["nprobe"] * 4 + ["efSearch", None]


def test_info_comes_back_from_json(make: Callable[[str], DerivedSearch]) -> None:
    info = make(IVF).info
    assert DerivedInfo.from_json(json.loads(json.dumps(info.to_json()))) == info
    assert info.bytes_per_vector == pytest.approx(info.bytes / N)
    assert info.proponents.queries_per_second > 0

"""Making derived indexes: of what, as measured, and refused when damaged or out of date."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.derived_data import (
    DIM,
    IDS,
    IVF,
    QUERIES,
    VECTORS,
    Floats,
    N,
    check_hits,
    exact,
    recall,
)

from forvalue_index.errors import CorruptIndexError, IndexMissingError, InputError
from forvalue_index.records import Segment
from forvalue_index.search import backend, stored
from forvalue_index.search.ann import open_derived
from forvalue_index.search.ann_build import extend_derived, make_derived
from forvalue_index.search.ann_factory import auto_factory
from forvalue_index.search.ann_files import derived_names, read_info, remove_derived
from forvalue_index.search.flat import FlatSearch

pytestmark = pytest.mark.usefixtures("quick")

ORIGINALS = {
    "faiss.write_index": backend.faiss().write_index,
    "os.fsync": os.fsync,
    "pathlib.Path.replace": Path.replace,
}


def test_what_it_cannot_reach_is_said_and_opponents_are_exact(
    tmp_path: Path, flat: FlatSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_index.search.ann_build._FACTORS", (1, 2))
    info = make_derived(tmp_path, flat, "IVF32,PQ4x4", target=1.01)
    assert info.proponents.effort == 32  # the best it has
    first, second = info.notes
    assert "proponents, but 1.01 was wanted: it can do no better" in first
    assert "opponents, but 1.01 was wanted: all vectors are compared" in second
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


def test_the_same_seed_makes_the_same_file(
    tmp_path: Path, flat: FlatSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_index.search.ann_build._QUERIES", 20)
    one = make_derived(tmp_path, flat, IVF)
    monkeypatch.setattr(stored, "_NUMBERS", 100 * DIM)  # in other blocks
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
    monkeypatch.setattr(stored, "_NUMBERS", 400 * DIM)
    monkeypatch.setattr("forvalue_index.search.ann_build._TRAIN", 500)
    monkeypatch.setattr("forvalue_index.search.ann_build._PER_LIST", 10)
    make_derived(tmp_path, flat, IVF)
    assert sizes[0] == 500  # to train on
    assert max(sizes) < 700  # of 3000: the candidates of a query, when there are most


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
    fewer = FlatSearch(root, segments[1:], DIM, 16)
    with pytest.raises(CorruptIndexError, match=r"out of date.*s0\.faiss.*no longer exists"):
        open_derived(tmp_path, fewer)
    with pytest.raises(CorruptIndexError, match="out of date"):
        extend_derived(tmp_path, fewer)
    other = FlatSearch(root, [replace(segments[0], sha256="0"), *segments[1:]], DIM, 16)
    with pytest.raises(CorruptIndexError, match=r"out of date.*s0\.faiss.*has changed since"):
        open_derived(tmp_path, other)


@pytest.mark.parametrize("step", ["faiss.write_index", "os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("extend", [False, True])
def test_a_failed_write_leaves_the_one_before(
    tmp_path: Path, segments: list[Segment], root: Path, step: str, extend: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first = FlatSearch(root, segments[:4], DIM, 16)
    both = FlatSearch(root, segments, DIM, 16)
    monkeypatch.setattr("forvalue_index.search.ann_build._QUERIES", 10)
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
        make_derived(tmp_path, FlatSearch(tmp_path, [], DIM, 16), "SQ8")


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
    monkeypatch.setattr("forvalue_index.search.ann_factory.FLAT_UP_TO", 100)
    monkeypatch.setattr("forvalue_index.search.ann_build._FACTORS", (1, 2))
    factory, _ = auto_factory(N, DIM, choice)
    info = make_derived(tmp_path, flat, factory)
    code = factory.split(",")[-1]
    bits = {"SQ8": 8, "SQ4": 4, "RaBitQ2": 2, "RaBitQ": 1}[code]
    assert bits == {2**40: 8, 110_000: 4}.get(choice, 1)
    assert info.bytes < 2 * N * (DIM * bits / 8 + 28)  # few vectors: the lists' centres count

"""What keeps a large index fast: joined segments, sides, columns, and rows compared on disk."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forvalue_index.config import FormatConfig, IndexConfig, ModelConfig, VectorConfig
from forvalue_index.data.row_keys import Compared, RowKeys
from forvalue_index.errors import InputError
from forvalue_index.metric import METRICS
from forvalue_index.records import Encoded, Row, Sample
from forvalue_index.search.ann_build import make_derived
from forvalue_index.store.compact import compact
from forvalue_index.store.join import joinable
from forvalue_index.store.snapshot import Snapshot
from forvalue_index.store.store import Store
from forvalue_index.store.verify import repair, verify

DIM, CHUNK = 32, 5
Vectors = np.ndarray[Any, np.dtype[np.float32]]


def vectors_of(first: int, count: int) -> Vectors:
    rng = np.random.default_rng(first)
    return rng.standard_normal((count, DIM)).astype(np.float32)


def row_of(number: int) -> dict[str, Any]:
    row: dict[str, Any] = {"text": f"w{number % 7} v{number}", "n": number}
    return row | ({"source": f"s{number % 3}"} if number % 4 else {})


def add(store: Store, first: int, chunks: int = 1) -> None:
    with store.writer.lock():
        for start in range(first, first + chunks * CHUNK, CHUNK):
            numbers = range(start, start + CHUNK)
            ids, scored = np.zeros(9, np.int32), np.ones(9, np.bool_)
            samples = [Sample(f"k{i}", f"c{i}", row_of(i), ids, scored, False, "") for i in numbers]
            vectors = vectors_of(start, CHUNK)
            encoded = [Encoded(v, 1.0, float(np.linalg.norm(v)), 1.0) for v in vectors]
            store.writer.commit(samples, encoded)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    config = IndexConfig(ModelConfig("none"), FormatConfig(text_field="text"), VectorConfig())
    store = Store.create(tmp_path / "index", config, {"model": "none"})
    store.set_vectoriser(b"none", {"dim": DIM, "retained": 1.0})
    yield store
    store.close()


def answers(store: Store) -> list[Any]:
    """What an index says, and that it is what it should."""

    def ask(view: Snapshot) -> list[Any]:
        queries = vectors_of(10**6, 3)
        found: list[Any] = []
        for name in ("dot", "cosine", "decorrelated"):
            scores, ids = view.search(
                queries, 7, METRICS[name], opponents=False, allowed=None, flat=False
            )
            found += [ids.tolist(), np.round(scores.astype(float), 3).tolist()]
        exact = queries.astype(np.float64) @ view.vectors(view.ids).astype(np.float64).T
        for mine, row in zip(found[0], exact, strict=True):
            assert mine == view.ids[np.argsort(-row, kind="stable")[:7]].tolist()
        figures = view.figures()
        np.testing.assert_array_equal(figures.ids, view.ids)
        rows = view.samples(view.ids.tolist())
        assert [rows[id].norm for id in view.ids.tolist()] == figures.norm.tolist()
        found.append(view.where(["source=s1", "n>=3"]).tolist())
        assert found[-1] == [
            id for id, s in rows.items() if s.row.get("source") == "s1" and s.row["n"] >= 3
        ]
        return [*found, np.argsort(-view.lexicon.bm25(["w3 v8"])[0], kind="stable")[:4].tolist()]

    return store.answer(ask)


def test_few_segments_stay_few(store: Store) -> None:
    for first in range(0, 60 * CHUNK, 10 * CHUNK):
        add(store, first, 10)
        assert len(store.catalog.segments()) <= 30
    assert len(store) == 300 and verify(store) == []
    stems = {Path(segment.name).stem for segment in store.catalog.segments()}
    there = [path for path in store.directory.rglob("*") if path.parent.name != "index"]
    assert {path.name.partition(".")[0] for path in there if path.is_file()} <= stems
    answers(store)


def test_joining_changes_no_answer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it put what was derived out of date, and removed rows stay removed."""
    monkeypatch.setattr("forvalue_index.store.writer.joinable", lambda *_: 0)
    add(store, 0, 30)
    store.writer.remove([f"k{i}" for i in range(3, 100, 9)])
    store.snapshots.refresh()
    flat = store.snapshots.current.flat
    make_derived(store.directory / "derived", flat, "IVF2,SQ8", seed=1)
    before = answers(store)
    monkeypatch.setattr("forvalue_index.store.writer.joinable", joinable)
    with store.writer.lock():
        store.writer._join(flat.codes)
    assert len(store.catalog.segments()) == 1
    again = Store.open(store.directory)
    try:
        assert answers(again) == before == answers(store)
        assert again.snapshots.current._derived_search("dot") is not None
        assert again.moments.problem(again.snapshots.current.flat) is None
        assert verify(again) == [] and len(again.catalog.removed_ids()) == 11
        compact(again)
        assert verify(again) == [] and len(again.catalog.removed_ids()) == 0
        assert answers(again)[:1] == before[:1]
    finally:
        again.close()


@pytest.mark.parametrize("step", ["write_codes", "put_in_place", "sync_folder", "replace"])
def test_a_join_that_fails_leaves_the_index_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    add(store, 0, 15)
    expected = None

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    places = {
        "write_codes": "forvalue_index.store.join.write_codes",
        "put_in_place": "forvalue_index.store.writer.put_in_place",
        "sync_folder": "forvalue_index.store.join.sync_folder",
        "replace": "forvalue_index.store.join.Catalog.replace_segments",
    }
    with monkeypatch.context() as patch:
        patch.setattr(places[step], fail)
        with pytest.raises(KeyboardInterrupt):
            add(store, 15 * CHUNK)
    expected = answers(store)
    assert len(store) == 16 * CHUNK and verify(store) == []
    again = Store.open(store.directory)
    assert answers(again) == expected
    again.close()
    add(store, 16 * CHUNK)
    assert verify(store) == [] and len(store) == 17 * CHUNK


def test_what_is_kept_is_made_again(store: Store) -> None:
    add(store, 0, 4)
    before = answers(store)
    folder = store.directory / "derived"
    kinds = {path.suffix for path in folder.iterdir()}
    assert {".side", ".words", ".column"} <= kinds
    for path in folder.iterdir():
        if path.suffix in (".side", ".column"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    again = Store.open(store.directory)
    assert any("damaged" in problem for problem in verify(again))
    assert answers(again) == before
    repair(again)
    assert verify(again) == []
    again.close()
    for path in folder.iterdir():
        path.unlink()
    again = Store.open(store.directory)
    assert answers(again) == before
    again.close()


def test_columns_say_what_rows_say(store: Store) -> None:
    add(store, 0, 20)
    store.writer.remove(["k7", "k9"])
    conditions: dict[str, Callable[[Row], bool]] = {
        "source=s1": lambda row: row.get("source") == "s1",
        "source!=s1": lambda row: row.get("source") != "s1",
        "source in s0,s2": lambda row: row.get("source") in ("s0", "s2"),
        "n<30": lambda row: row["n"] < 30,
        "n>=90": lambda row: row["n"] >= 90,
        "text=w1 v8": lambda row: row["text"] == "w1 v8",
    }
    rng = random.Random(0)
    for more in (False, True):
        if more:
            add(store, 100, 3)
        for _ in range(12):
            some = rng.sample([*conditions], rng.randint(1, 2))
            found = store.answer(lambda view, some=some: view.where(some).tolist())  # type: ignore[misc]
            rows = store.catalog.iterate()
            met = [row.id for row in rows if all(conditions[each](row.row) for each in some)]
            assert found == met, some
    with pytest.raises(InputError, match="no sample has a field 'sauce'"):
        store.answer(lambda view: view.where(["sauce=s1"]))


def test_joins_grow_with_the_logarithm() -> None:
    sizes: list[int] = []
    written = 0
    for _ in range(5000):
        sizes.append(1)
        if count := joinable(sizes, 10**9):
            sizes[-count:] = [sum(sizes[-count:])]
            written += sizes[-1]
        assert len(sizes) <= 3 * 16
    assert written <= 5000 * np.log(5000) / np.log(4)
    assert joinable([1] * 16, 15) == 0


def test_a_manifest_is_a_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forvalue_index.data.row_keys._PAGE", 7)
    rng = random.Random(1)
    manifest, plain = RowKeys(), dict[str, tuple[str, str]]()
    for i in range(300):
        key, content = f"ä{rng.randrange(200)}", f"{rng.randrange(10**6):06d}"
        found = manifest.add(key, content, f"row {i}")
        assert found == (plain[key][1] if key in plain else None)
        plain.setdefault(key, (content, f"row {i}"))
    assert len(manifest) == len(plain)
    there = {key: content for key, (content, _) in plain.items() if hash(key) % 3 == 0}
    changed = [key for i, key in enumerate(there) if i % 2]
    there |= dict.fromkeys(changed, "other")

    def known(keys: list[str]) -> dict[str, str]:
        return {key: there[key] for key in keys if key in there}

    found_all = manifest.compare(known)
    new = len(plain) - len(there)
    first = next((key for key in plain if key in changed), None)
    assert found_all == Compared(new, len(changed), len(there) - len(changed), first)
    left = {key for key in plain if key not in there or key in changed}
    assert list(manifest.by_content()) == sorted(left, key=lambda key: plain[key][0])
    assert sorted(manifest.changed(list(plain))) == sorted(changed)
    assert {key for key in [*plain, *plain, "none"] if manifest.take(key)} == left
    assert not any(map(manifest.take, plain))

"""An index of several shards answers as one index of the same rows does."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.indexes import KEYED, NEW, SETTINGS, SMALL, changed, exported

from forvalue_index import InfluenceIndex
from forvalue_index.errors import (
    CorruptIndexError,
    ForvalueError,
    IndexMissingError,
    InputError,
    KeyConflictError,
    LockedError,
)
from forvalue_index.metric import METRICS
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row
from forvalue_index.shards.store import ShardedStore, open_store
from forvalue_index.store.manifest import parse_shard, read_manifest, shard_of, write_manifest

pytestmark = pytest.mark.usefixtures("small_chunks")
LINEAR = [name for name, metric in METRICS.items() if metric.linear]


def sharded(path: Path, rows: list[Row], lm: LanguageModel, shards: int) -> InfluenceIndex:
    index, report = InfluenceIndex.build(path, rows, lm, shards=shards, **SETTINGS)
    assert (report.added, report.samples) == (len(rows), len(rows))
    return index


@pytest.fixture(scope="module")
def many() -> list[Row]:
    """Sixty rows; only some have the field `kind`."""
    chance = random.Random(0)

    def words(n: int) -> str:
        return " ".join("".join(chance.choices("abcdefgh", k=4)) for _ in range(n))

    return [
        {"id": f"row-{n}", "prompt": words(2), "response": f" {words(n % 3 + 1)}", "n": n}
        | ({"kind": "ab"[n % 2]} if n < 6 else {})
        for n in range(60)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, many: list[Row], lm: LanguageModel) -> Path:
    """The same rows in one index, and in 1, 2 and 5 shards."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forvalue_index.pipeline.add.CHUNK", 16)
        InfluenceIndex.build(folder / "one", many, lm, **SETTINGS)[0].close()
        for n in (1, 2, 5):
            sharded(folder / str(n), many, lm, n).close()
    return folder


@pytest.fixture
def one(made: Path, lm: LanguageModel) -> Iterator[InfluenceIndex]:
    with InfluenceIndex.open(made / "one", model=lm) as index:
        yield index


@pytest.fixture(params=[1, 2, 5])
def shards(
    request: pytest.FixtureRequest, made: Path, lm: LanguageModel
) -> Iterator[InfluenceIndex]:
    """The rows of `one` in 1, 2 and 5 shards."""
    with InfluenceIndex.open(made / str(request.param), model=lm) as index:
        yield index


@pytest.fixture
def rows(many: list[Row]) -> list[Row]:
    return many[:30]


def hits_of(index: InfluenceIndex, queries: list[Row], **asked: Any) -> list[Any]:
    return [
        (hit.query, hit.rank, hit.key, hit.sample, hit.exact, hit.parts, hit.shared, hit.score)
        for hit in index.query(queries, **asked)
    ]


def same(found: list[Any], expected: list[Any], *, close: bool = False) -> None:
    """Checks hits; `close`: scores may differ in the last digits."""
    if close:
        assert [hit[:-1] for hit in found] == [hit[:-1] for hit in expected]
        np.testing.assert_allclose([h[-1] for h in found], [h[-1] for h in expected], rtol=1e-3)
    else:
        assert found == expected


# -- the same answers ------------------------------------------------------------------------------


def test_hits_are_those_of_one_index(
    one: InfluenceIndex, shards: InfluenceIndex, rows: list[Row]
) -> None:
    for metric in METRICS:
        for opponents in (False, True) if METRICS[metric].linear else (False,):
            asked = {"k": 7, "metric": metric, "opponents": opponents}
            found, expected = (hits_of(index, rows[:3], **asked) for index in (shards, one))
            assert len(expected) == 21 or metric == "lexical"
            same(found, expected, close=metric == "decorrelated")
    asked = {"k": 4, "exact": True, "candidates": 60}
    same(hits_of(shards, rows[:2], **asked), hits_of(one, rows[:2], **asked), close=True)
    assert len(shards.query(rows[0], k=1000)) == 60


def test_conditions_are_those_of_one_index(
    one: InfluenceIndex, shards: InfluenceIndex, rows: list[Row]
) -> None:
    for where in ("kind=a", "kind!=a", ["n<9", "kind in a,b"], "n>1000"):
        same(hits_of(shards, rows[:2], where=where), hits_of(one, rows[:2], where=where))
        keys = [{sample.key for sample in index.rows(where)} for index in (shards, one)]
        assert keys[0] == keys[1]
    with pytest.raises(InputError, match="no sample has a field 'kid': the fields are id, prompt"):
        shards.query(rows[0], where=["n<9", "kid!=a"])
    with pytest.raises(InputError, match="'n'"):
        shards.query(rows[0], where="n")


def test_values_and_figures_are_those_of_one_index(
    one: InfluenceIndex, shards: InfluenceIndex, rows: list[Row]
) -> None:
    def figures(index: InfluenceIndex) -> dict[str, tuple[float, ...]]:
        found = index.snapshot.figures()
        keys = [sample.key for sample in index.stored(found.ids)]
        assert np.array_equal(found.ids, index.snapshot.ids)
        each = zip(found.norm, found.n_scored, found.loss, strict=True)
        return dict(zip(keys, each, strict=True))

    assert figures(shards) == figures(one)
    for metric in LINEAR:
        values = []
        for index in (shards, one):
            found = index.score(rows[:4], metric=metric, group_by="kind", where="n>=0")
            values.append({row["key"]: row["value"] for row in found.rows()})
            assert [row["key"] for row in found.best] == [
                row["key"] for row in one.score(rows[:4], metric=metric, group_by="kind").best
            ]
        assert values[0].keys() == values[1].keys()
        wanted = np.array(list(values[1].values()))
        got = np.array([values[0][key] for key in values[1]])
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5 * abs(wanted).max())
    chosen = [index.select(rows[:4], budget=9) for index in (shards, one)]
    keys = [
        {sample.key for sample in index.stored(found.ids)}
        for index, found in zip((shards, one), chosen, strict=True)
    ]
    assert keys[0] == keys[1]


def test_an_audit_is_that_of_one_index(one: InfluenceIndex, shards: InfluenceIndex) -> None:
    found, expected = (index.audit() for index in (shards, one))
    keys = [
        [sample.key for sample in index.stored(np.sort(audit.ids))]
        for index, audit in ((shards, found), (one, expected))
    ]
    assert set(keys[0]) == set(keys[1])


def test_rows_words_and_files_are_those_of_one_index(
    one: InfluenceIndex, shards: InfluenceIndex, tmp_path: Path, many: list[Row]
) -> None:
    assert len(shards) == 60
    assert sorted(s.key for s in shards.rows()) == sorted(s.key for s in one.rows())
    ids = [sample.id for sample in shards.rows()]
    assert ids == sorted(set(ids))
    assert [s.id for s in shards.rows(after=ids[10], limit=5)] == ids[11:16]
    assert shards.get("row-3").row == one.get("row-3").row
    with pytest.raises(InputError, match=r"no sample in .* has key 'nothing'"):
        shards.get("nothing")
    words = many[5]["prompt"]
    found, expected = (
        [(hit.key, hit.score, hit.rank) for hit in index.search(words)] for index in (shards, one)
    )
    assert found == expected
    (lines, vectors), (lines_one, vectors_one) = (
        exported(index, tmp_path) for index in (shards, one)
    )
    order = np.argsort([line["key"] for line in lines])
    order_one = np.argsort([line["key"] for line in lines_one])
    assert np.array_equal(vectors[order], vectors_one[order_one])
    for at, other in zip(order, order_one, strict=True):
        assert {**lines[at], "id": 0} == {**lines_one[other], "id": 0}


def test_explanations_are_those_of_one_index(
    one: InfluenceIndex, shards: InfluenceIndex, rows: list[Row]
) -> None:
    found, expected = (index.explain(rows[0], "row-7") for index in (shards, one))
    np.testing.assert_array_equal(found.terms, expected.terms)
    assert shards.get("row-7").id == found.id


# -- changes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5])
def test_changes_are_those_of_one_index(
    made: Path, tmp_path: Path, lm: LanguageModel, rows: list[Row], n: int
) -> None:
    for name in ("one", str(n)):
        shutil.copytree(made / name, tmp_path / name)
    with (
        InfluenceIndex.open(tmp_path / "one", model=lm) as one,
        InfluenceIndex.open(tmp_path / str(n), model=lm) as shards,
    ):
        change(one, shards, rows)


def change(one: InfluenceIndex, shards: InfluenceIndex, rows: list[Row]) -> None:
    for index in (one, shards):
        report = index.add([NEW, rows[0]])
        assert (report.added, report.skipped, report.samples) == (1, 1, 61)
        with pytest.raises(KeyConflictError, match="'row-4' is already in the index"):
            index.add([changed(rows[4])])
        report = index.add([changed(rows[4]), changed(rows[9])], update=True)
        assert (report.added, report.updated, report.samples) == (2, 2, 61)
        assert index.remove(["row-1", "nothing"]) == 1
        assert index.remove(where="n=3") == 1
        with pytest.raises(InputError, match="keys and conditions"):
            index.remove("row-2", where="n=3")
        assert index.verify() == []
    for asked in ({}, {"metric": "hybrid"}, {"metric": "cosine", "opponents": True}):
        same(hits_of(shards, rows[:3], **asked), hits_of(one, rows[:3], **asked))
    before = hits_of(shards, rows[:3])
    report = shards.compact()
    assert (report.removed, report.bytes_after < report.bytes_before) == (4, True)
    assert one.compact().removed == 4
    same(hits_of(shards, rows[:3]), before)
    assert shards.verify() == []
    assert len(shards) == len(one) == 59


def test_info_sums_the_shards(one: InfluenceIndex, shards: InfluenceIndex) -> None:
    found, expected = shards.info(), one.info()
    for name in ("samples", "removed", "dim", "bits", "fidelity", "model"):
        assert found[name] == expected[name]
    assert found["config"] == expected["config"]
    assert found["vector_bytes"] >= expected["vector_bytes"] - 4096
    assert found["shards"] == len(shards.store.shards)
    assert found["missing_shards"] == []


def test_a_derived_index_in_each_shard_serves_queries(
    tmp_path: Path, lm: LanguageModel, rows: list[Row]
) -> None:
    lively = [
        row | {"id": f"{row['id']}-{n}", "response": f"{row['response']} {n}"}
        for row in rows
        for n in range(4)
    ]
    with sharded(tmp_path / "i", lively, lm, 2) as index:
        exact = hits_of(index, rows[:3], k=5)
        info, reason = index.optimize("IVF2,Flat")
        assert info is not None
        assert reason == "as requested"
        assert len(index.info()["derived"]) == 1
        # Every list is visited where there are two, so nothing may be lost.
        assert [hit[2] for hit in hits_of(index, rows[:3], k=5, flat=True)] == [
            hit[2] for hit in exact
        ]
        same(hits_of(index, rows[:3], k=5), exact)
        assert index.verify() == []


def test_a_build_goes_on_where_it_was_killed(
    tmp_path: Path, lm: LanguageModel, many: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    from forvalue_index.store.writer import Writer

    commit, calls = Writer.commit, []

    def dies(self: Writer, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        commit(self, *arguments)

    monkeypatch.setattr(Writer, "commit", dies)
    with pytest.raises(KeyboardInterrupt):
        sharded(tmp_path / "i", many, lm, 3)
    monkeypatch.undo()
    index, report = InfluenceIndex.build(tmp_path / "i", many, lm, shards=3, **SETTINGS)
    with index:
        assert 0 < report.added < 60
        assert report.added + report.skipped == 60
        assert sorted(sample.key for sample in index.rows()) == sorted(row["id"] for row in many)
        assert index.verify() == []
    with pytest.raises(IndexMissingError, match="holds 3 shards, not 4"):
        InfluenceIndex.build(tmp_path / "i", many, lm, shards=4, **SETTINGS)


def test_a_shard_that_learned_nothing_is_taught(
    tmp_path: Path, lm: LanguageModel, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    from forvalue_index.store.store import Store

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with InfluenceIndex.create(tmp_path / "i", lm, shards=3, **SETTINGS) as index:
        monkeypatch.setattr(index.store.shards[1], "set_vectoriser", dies)
        with pytest.raises(KeyboardInterrupt):
            index.add(rows)
    assert isinstance(Store, type)
    with InfluenceIndex.open(tmp_path / "i", model=lm) as index:
        assert [shard.fitted for shard in index.store.shards] == [True, False, False]
        assert index.add(rows).added == 30
        assert index.verify() == []


def test_two_writers_are_one_too_many(shards: InfluenceIndex) -> None:
    with (
        shards.store.writer.lock(),
        closing(open_store(shards.directory)) as other,
        pytest.raises(LockedError),
    ):
        other.writer.remove(["row-1"])


# -- what is refused -------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path, rows: list[Row], lm: LanguageModel) -> Path:
    sharded(tmp_path / "three", rows, lm, 3).close()
    return tmp_path / "three"


def test_a_row_of_another_shard_is_refused(three: Path, lm: LanguageModel) -> None:
    key = next(f"k{n}" for n in range(99) if shard_of(f"k{n}", 3) == 2)
    with InfluenceIndex.open(three / "shards" / "0001", model=lm) as shard:
        with pytest.raises(InputError, match=f"'{key}' belongs to shard 2 of 3, and this is .* 1"):
            shard.add([NEW | {"id": key}])
        assert shard.verify() == []


def swap(directory: Path) -> None:
    folder = directory / "shards"
    (folder / "0000").rename(folder / "x")
    (folder / "0001").rename(folder / "0000")
    (folder / "x").rename(folder / "0001")


def lose(directory: Path) -> None:
    (directory / "shards" / "0001").rename(directory / "elsewhere")


def lead_out(directory: Path) -> None:
    lose(directory)
    (directory / "shards" / "0001").symlink_to(directory / "elsewhere")


def lead_all_out(directory: Path) -> None:
    (directory / "shards").rename(directory / "elsewhere")
    (directory / "shards").symlink_to(directory / "elsewhere")


def edit(directory: Path) -> None:
    text = (directory / "shards.json").read_text()
    (directory / "shards.json").write_text(text.replace('"shards": 3', '"shards": 2'))


def reseal(directory: Path) -> None:
    from dataclasses import replace

    write_manifest(directory, replace(read_manifest(directory), shards=2, attached=(0, 1)))


def nest(directory: Path) -> None:
    (directory / "shards.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (swap, CorruptIndexError, "0000 is not shard 0 of 3 of this index .what differs: shard."),
        (lose, IndexMissingError, "0001 does not exist"),
        (lead_out, CorruptIndexError, "0001 is a symbolic link"),
        (lead_all_out, CorruptIndexError, "shards is a symbolic link"),
        (edit, CorruptIndexError, "shards.json cannot be used .its checksum"),
        (reseal, CorruptIndexError, "is not shard 0 of 2"),
        (nest, CorruptIndexError, "shards.json cannot be used"),
    ],
)
def test_what_was_changed_is_refused(
    three: Path, change: Callable[[Path], None], error: type[ForvalueError], message: str
) -> None:
    change(three)
    with pytest.raises(error, match=message):
        open_store(three)


def test_without_a_shard_only_a_partial_answer_is_given(
    three: Path, lm: LanguageModel, rows: list[Row], caplog: pytest.LogCaptureFixture
) -> None:
    with InfluenceIndex.open(three, model=lm) as index:
        whole = [hit.key for hit in index.query(rows[0], k=30)]
    lose(three)
    with InfluenceIndex.open(three, model=lm, partial=True) as index:
        assert "answering without shard 1 of 3" in caplog.text
        assert index.info()["missing_shards"] == [1]
        found = [hit.key for hit in index.query(rows[0], k=30)]
        assert found == [key for key in whole if shard_of(key, 3) != 1]
        with pytest.raises(InputError, match="shard 1 of 3 is missing"):
            index.add(rows)


def test_a_catalogue_elsewhere_is_for_one_index(
    tmp_path: Path, lm: LanguageModel, rows: list[Row]
) -> None:
    url = "postgresql+psycopg://someone@localhost/nothing"
    with pytest.raises(InputError, match="a catalog or shards, not both"):
        InfluenceIndex.build(tmp_path / "i", rows, lm, shards=2, catalog=url, **SETTINGS)
    with pytest.raises(InputError, match="an index has 1 to 4096 shards, not 0"):
        InfluenceIndex.create(tmp_path / "i", lm, format=KEYED, vector=SMALL, shards=0)
    assert not (tmp_path / "i").exists()


def test_a_key_has_its_shard_for_ever() -> None:
    # These numbers stand in indexes that people have: they may never change.
    assert [shard_of(key, 64) for key in ("", "row-1", "ä", "\ud800")] == [52, 27, 57, 40]
    counts = np.bincount([shard_of(f"key {n}", 8) for n in range(8000)])
    assert counts.min() > 850
    assert parse_shard("3/64") == (3, 64)
    for text in ("3", "64/64", "-1/2", "a/b", "3/9999", ""):
        with pytest.raises(InputError, match="is no shard"):
            parse_shard(text)


def test_the_manifest_names_no_path(three: Path) -> None:
    found = json.loads((three / "shards.json").read_text())
    assert found.keys() == {
        *("format", "shards", "attached", "config", "fingerprint", "dealt", "checksum"),
    }
    assert isinstance(open_store(three), ShardedStore)

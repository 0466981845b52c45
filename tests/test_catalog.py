"""The catalogue: making, opening, adding and reading, and all of it against a plain dict."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.catalogs import CONFIG, FINGERPRINT, add, sample, segment
from hypothesis import given, settings
from hypothesis import strategies as st

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.engine import make_engine, reading, writing
from forvalue_index.errors import (
    CorruptIndexError,
    FingerprintError,
    IndexMissingError,
    InputError,
    KeyConflictError,
)
from forvalue_index.records import Row, StoredSample

# -- making and opening ------------------------------------------------------------------------


def test_what_was_created_is_what_is_opened(url: str) -> None:
    Catalog.create(url, CONFIG, FINGERPRINT).close()
    with Catalog.open(url) as catalog:
        assert catalog.config == CONFIG
        assert catalog.fingerprint == FINGERPRINT
        assert catalog.next_id() == 0
        assert catalog.count() == 0
        assert catalog.segments() == []
        assert len(catalog.figures().ids) == len(catalog.removed_ids()) == 0


def test_one_that_is_forgotten_leaves_no_connection(url: str) -> None:
    catalog = Catalog.create(url, CONFIG, FINGERPRINT)
    pool = catalog._engine.pool
    assert pool.status() != pool.recreate().status()  # a connection waits for the next use
    engine = catalog._engine
    del catalog
    gc.collect()
    assert engine.pool is not pool and engine.pool.status() == pool.recreate().status()


def test_a_second_create_is_refused_and_harms_nothing(catalog: Catalog, url: str) -> None:
    add(catalog, "a", range(3))
    with pytest.raises(IndexMissingError, match="already"):
        Catalog.create(url, {}, {})
    with Catalog.open(url) as again:
        assert again.count() == 3
        assert again.config == CONFIG


def test_nothing_there_is_said_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(IndexMissingError, match=r"catalog\.db does not exist"):
        Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch()
    with pytest.raises(IndexMissingError, match="holds no catalogue"):
        Catalog.open(f"sqlite:///{tmp_path / 'empty.db'}")
    (tmp_path / "text.db").write_text("this is not a database " * 100)
    with pytest.raises(CorruptIndexError, match="not a database"):
        Catalog.open(f"sqlite:///{tmp_path / 'text.db'}")


@pytest.mark.parametrize("bad", ["nonsense", "sqlite://", "mysql://host/x", "sqlite:///:memory:"])
def test_a_url_that_cannot_be_is_refused(bad: str) -> None:
    with pytest.raises(InputError):
        Catalog.create(bad, {}, {})


def test_a_failed_create_leaves_no_catalogue(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forvalue_index.catalog.catalog.seal_info", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Catalog.create(url, CONFIG, FINGERPRINT)
    monkeypatch.undo()
    with pytest.raises(IndexMissingError):
        Catalog.open(url)
    Catalog.create(url, CONFIG, FINGERPRINT).close()


def test_each_connection_is_set_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'catalog.db'}"
    Catalog.create(url, CONFIG, FINGERPRINT).close()
    engine = make_engine(url)
    for context in (reading, writing):
        with context(engine) as connection:
            for pragma, value in (
                ("journal_mode", "wal"),
                ("foreign_keys", 1),
                ("synchronous", 2),
                ("secure_delete", 1),
                ("busy_timeout", 30_000),
            ):
                assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value
    engine.dispose()


def test_the_fingerprint_is_fixed_once_there_are_vectors(catalog: Catalog, url: str) -> None:
    catalog.set_fingerprint({"projection": "xyz"})
    with Catalog.open(url) as again:
        assert again.fingerprint == catalog.fingerprint == {"projection": "xyz"}
        assert again.config == CONFIG
    add(catalog, "a", range(1))
    with pytest.raises(FingerprintError, match="xyz"):
        catalog.set_fingerprint({"projection": "other"})
    with Catalog.open(url) as again:
        assert again.fingerprint == {"projection": "xyz"}
    catalog.set_fingerprint({"projection": "xyz", "fidelity": {"top_10": 1.0}})
    with Catalog.open(url) as again:
        assert again.fingerprint == {"projection": "xyz", "fidelity": {"top_10": 1.0}}


# -- adding and reading ------------------------------------------------------------------------


def test_samples_come_back_as_they_were(catalog: Catalog, url: str) -> None:
    rows: list[Row] = [
        {"text": "Grüße, 数据 \0 \ud800 \n"},
        {"nested": {"list": [1, 2.5, None, True]}},
        {},
        {"float": 0.1, "big": 2**70},
    ]
    samples = [replace(sample(id, row=row)) for id, row in enumerate(rows)]
    catalog.commit_segment(segment("a", 4), samples, retained_energy=0.75)
    with Catalog.open(url) as again:
        assert again.samples(range(4)) == dict(enumerate(samples))
        assert again.segments() == [segment("a", 4)]
        assert again.retained_energy() == {"a.faiss": 0.75}
        assert again.next_id() == 4


def test_reading(catalog: Catalog) -> None:
    samples = add(catalog, "a", range(3)) + add(catalog, "b", range(3, 10))
    assert catalog.count() == 10
    assert catalog.known(["k1", "k9", "nobody", "k1"]) == {"k1": "hash1", "k9": "hash9"}
    assert catalog.ids_of(["k1", "nobody"]) == {"k1": 1}
    assert list(catalog.samples(np.array([7, 2, 7]))) == [7, 2]
    assert catalog.samples([]) == {}
    assert catalog.segment_ids("b.faiss").tolist() == list(range(3, 10))
    assert list(catalog.iterate()) == samples
    for page in (1, 3, 5, 10, 100):
        assert list(catalog.iterate(after=1, page=page)) == samples[2:]
    figures = catalog.figures()
    assert figures.ids.tolist() == list(range(10))
    assert figures.norm.tolist() == [sample.norm for sample in samples]
    assert figures.loss.tolist() == [sample.loss for sample in samples]
    assert figures.n_scored.tolist() == [sample.n_scored for sample in samples]
    with pytest.raises(CorruptIndexError, match=r"samples 10, 11 .*forvalue verify"):
        catalog.samples([1, 10, 11])


def test_more_keys_and_ids_than_one_statement_can_hold(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_index.catalog.reads.CHUNK", 3)
    samples = add(catalog, "a", range(10))
    assert catalog.known(f"k{id}" for id in range(20)) == {s.key: s.content_hash for s in samples}
    assert list(catalog.samples(range(9, -1, -1))) == list(range(9, -1, -1))
    assert catalog.remove(f"k{id}" for id in range(1, 9)).tolist() == list(range(1, 9))


@pytest.mark.parametrize(
    ("ids", "keys", "ntotal", "error", "message"),
    [
        ([3, 4], ["x", "y"], 3, CorruptIndexError, "3 vectors, but 2 rows"),
        ([], [], 0, CorruptIndexError, "0 rows"),
        ([3, 3], ["x", "y"], 2, CorruptIndexError, "1 ids"),
        ([2, 3], ["x", "y"], 2, CorruptIndexError, "id 2 is already taken, the next one is 3"),
        ([3, 4], ["x", "x"], 2, KeyConflictError, "occur more than once in the input: 'x'"),
        ([3, 4], ["x", "k1"], 2, KeyConflictError, "already in the index: 'k1'"),
        ([3, 4], ["x", "a\0b"], 2, InputError, "not valid text"),
        ([3, 4], ["x", "\ud800"], 2, InputError, "not valid text"),
    ],
)
def test_what_does_not_fit_is_not_committed(
    catalog: Catalog,
    ids: list[int],
    keys: list[str],
    ntotal: int,
    error: type[Exception],
    message: str,
) -> None:
    before = add(catalog, "a", range(3))
    generation = catalog.generation()
    samples = [sample(id, key) for id, key in zip(ids, keys, strict=True)]
    with pytest.raises(error, match=message):
        catalog.commit_segment(segment("b", ntotal), samples)
    assert list(catalog.iterate()) == before
    assert catalog.segments() == [segment("a", 3)]
    assert (catalog.next_id(), catalog.generation()) == (3, generation)
    add(catalog, "b", range(3, 5))
    assert catalog.count() == 5


def test_a_loss_of_minus_zero_is_zero(catalog: Catalog) -> None:
    """SQLite keeps no sign of a zero."""
    catalog.commit_segment(segment("a", 1), [replace(sample(0), loss=-0.0, norm=-0.0)])
    assert catalog.samples([0]) == {0: replace(sample(0), loss=0.0, norm=0.0)}
    assert catalog.figures().loss.tolist() == [0]
    assert catalog.check() == []


def test_rows_that_are_not_json_and_losses_that_are_not_numbers(catalog: Catalog) -> None:
    with pytest.raises(InputError, match=r"'k0' cannot be stored as JSON"):
        catalog.commit_segment(segment("a", 1), [sample(0, row={"x": object()})])
    for bad in ("\0", "\ud800"):
        with pytest.raises(InputError, match="not valid text"):
            catalog.known(["fine", bad])
    with pytest.raises(ValueError, match="loss nan"):
        catalog.commit_segment(segment("a", 1), [replace(sample(0), loss=float("nan"))])
    assert catalog.segments() == []


# -- against a plain dict ----------------------------------------------------------------------


operations = st.lists(
    st.tuples(st.sampled_from(["add", "update", "remove", "reopen"]), st.sets(st.integers(0, 7))),
    max_size=12,
)


@settings(max_examples=15)
@given(steps=operations)
def test_any_sequence_agrees_with_a_dict(
    steps: list[tuple[str, set[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = f"sqlite:///{tmp_path_factory.mktemp('dict') / 'catalog.db'}"
    catalog = Catalog.create(url, CONFIG, FINGERPRINT)
    live: dict[str, StoredSample] = {}
    given_out = 0
    for number, (step, numbers) in enumerate(steps):
        keys = [f"key{n}" for n in sorted(numbers)]
        if step == "reopen":
            catalog.close()
            catalog = Catalog.open(url)
        elif step == "remove":
            gone = [live.pop(key).id for key in keys if key in live]
            assert catalog.remove(keys).tolist() == sorted(gone)
        elif step == "update" or not any(key in live for key in keys):
            if not keys:
                continue
            first = catalog.next_id()
            assert first == given_out
            new = [sample(first + i, key) for i, key in enumerate(keys)]
            given_out += len(new)
            catalog.commit_segment(
                segment(f"s{number}", len(new)),
                new,
                replaces=[live[key].id for key in keys if key in live],
            )
            live.update(zip(keys, new, strict=True))
        else:
            with pytest.raises(KeyConflictError):
                catalog.commit_segment(
                    segment(f"s{number}", len(keys)),
                    [sample(given_out + i, key) for i, key in enumerate(keys)],
                )
    expected = sorted(live.values(), key=lambda s: s.id)
    assert list(catalog.iterate(page=2)) == expected
    assert catalog.count() == len(live)
    assert set(catalog.removed_ids().tolist()).isdisjoint(s.id for s in expected)
    per_segment = [catalog.live_ids(s.name) for s in catalog.segments()]
    assert sorted(np.concatenate([[], *per_segment]).tolist()) == [s.id for s in expected]
    catalog.close()

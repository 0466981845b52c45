"""The catalogue against a plain dict, its refusals, and who may write."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.engine import make_engine, reading, writing
from forvalue_index.catalog.lock import WriterLock
from forvalue_index.errors import (
    CorruptIndexError,
    FingerprintError,
    IndexMissingError,
    InputError,
    KeyConflictError,
    LockedError,
)
from forvalue_index.records import Row, Segment, StoredSample

CONFIG = {"dim": 4, "model": {"name": "tiny", "revision": None}}
FINGERPRINT = {"model": "abc", "scale": 0.1}


@pytest.fixture
def url(tmp_path: Path, database: str | None) -> str:
    return database or f"sqlite:///{tmp_path / 'catalog.db'}"


def change(url: str, statement: str) -> int:
    """Runs SQL behind the catalogue's back; the number of rows it changed."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            return connection.exec_driver_sql(statement).rowcount
    finally:
        engine.dispose()


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    with Catalog.create(url, CONFIG, FINGERPRINT) as catalog:
        yield catalog


def sample(id: int, key: str | None = None, row: Row | None = None) -> StoredSample:
    return StoredSample(
        id=id,
        key=f"k{id}" if key is None else key,
        content_hash=f"hash{id}",
        row={"prompt": f"p{id}", "n": id} if row is None else row,
        n_tokens=10 + id,
        n_scored=5 + id,
        truncated=bool(id % 2),
        loss=1 / (id + 1),
        norm=0.1 * id,
    )


def segment(name: str, ntotal: int) -> Segment:
    return Segment(f"{name}.faiss", ntotal, ntotal * 8, "0" * 64)


def add(catalog: Catalog, name: str, ids: range, **options: object) -> list[StoredSample]:
    samples = [sample(id) for id in ids]
    catalog.commit_segment(segment(name, len(samples)), samples, **options)  # type: ignore[arg-type]
    return samples


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
    monkeypatch.setattr("forvalue_index.catalog.reader.CHUNK", 3)
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
        ([2, 3], ["x", "y"], 2, CorruptIndexError, "id 2 was given out before, the next one is 3"),
        ([3, 4], ["x", "x"], 2, KeyConflictError, "'x' stand more than once"),
        ([3, 4], ["x", "k1"], 2, KeyConflictError, "'k1' are in the index already"),
        ([3, 4], ["x", "a\0b"], 2, InputError, "no text"),
        ([3, 4], ["x", "\ud800"], 2, InputError, "no text"),
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


def test_rows_that_are_not_json_and_losses_that_are_not_numbers(catalog: Catalog) -> None:
    with pytest.raises(InputError, match=r"'k0' cannot be kept as JSON"):
        catalog.commit_segment(segment("a", 1), [sample(0, row={"x": object()})])
    for bad in ("\0", "\ud800"):
        with pytest.raises(InputError, match="no text"):
            catalog.known(["fine", bad])
    with pytest.raises(ValueError, match="loss nan"):
        catalog.commit_segment(segment("a", 1), [replace(sample(0), loss=float("nan"))])
    assert catalog.segments() == []


def test_the_database_itself_keeps_live_keys_apart(catalog: Catalog, url: str) -> None:
    add(catalog, "a", range(2))
    with pytest.raises(IntegrityError, match=r"UNIQUE|duplicate key"):
        change(url, "UPDATE samples SET key = 'k0'")


# -- removing and replacing --------------------------------------------------------------------


def test_removed_is_removed_and_its_key_is_free(catalog: Catalog) -> None:
    samples = add(catalog, "a", range(4)) + add(catalog, "b", range(4, 6))
    assert catalog.remove(["k1", "k5", "nobody", "k1"]).tolist() == [1, 5]
    generation = catalog.generation()
    assert catalog.remove(["k1", "k5"]).tolist() == []
    assert catalog.generation() == generation
    assert catalog.count() == 4
    assert catalog.removed_ids().tolist() == [1, 5]
    assert catalog.live_ids("a.faiss").tolist() == [0, 2, 3]
    assert catalog.live_ids("b.faiss").tolist() == [4]
    assert catalog.segment_ids("b.faiss").tolist() == [4, 5]
    assert catalog.known(["k0", "k1"]) == {"k0": "hash0"}
    assert [s.id for s in catalog.iterate()] == catalog.figures().ids.tolist() == [0, 2, 3, 4]
    # A reader that opened before can still name its hit.
    assert catalog.samples([1]) == {1: samples[1]}
    again = sample(6, "k1")
    catalog.commit_segment(segment("c", 1), [again])
    assert catalog.samples([1, 6]) == {1: samples[1], 6: again}
    assert catalog.ids_of(["k1"]) == {"k1": 6}


def test_replacing_is_one_transaction(catalog: Catalog) -> None:
    add(catalog, "a", range(3))
    new = sample(3, "k1")
    catalog.commit_segment(segment("b", 1), [new], replaces=[1])
    assert catalog.ids_of(["k0", "k1", "k2"]) == {"k0": 0, "k1": 3, "k2": 2}
    with pytest.raises(CorruptIndexError, match="samples 1 are not live"):
        catalog.commit_segment(segment("c", 1), [sample(4, "k1")], replaces=[1])
    with pytest.raises(KeyConflictError, match="k1"):
        catalog.commit_segment(segment("c", 1), [sample(4, "k1")], replaces=[0])
    assert catalog.removed_ids().tolist() == [1]
    assert catalog.count() == 3


def test_a_segment_takes_the_place_of_others(catalog: Catalog) -> None:
    for name, ids in (("a", range(4)), ("b", range(4, 6)), ("c", range(6, 7))):
        add(catalog, name, ids)
    live = [s for s in catalog.iterate() if s.id not in (1, 5)]
    catalog.remove(["k1", "k5"])
    before = catalog.generation()
    with pytest.raises(CorruptIndexError, match=r"2 segments with 5 live .* has 2 with 4"):
        catalog.replace_segments(["a.faiss", "b.faiss"], segment("d", 5))
    with pytest.raises(CorruptIndexError, match=r"2 segments with 4 live .* has 1 with 3"):
        catalog.replace_segments(["a.faiss", "nothing.faiss"], segment("d", 4))
    assert catalog.generation() == before
    catalog.replace_segments(["a.faiss", "b.faiss"], segment("d", 4), retained_energy=0.5)
    assert catalog.segments() == [segment("c", 1), segment("d", 4)]
    assert catalog.segment_ids("d.faiss").tolist() == [0, 2, 3, 4]
    assert catalog.retained_energy() == {"d.faiss": 0.5}
    assert list(catalog.iterate()) == live
    assert len(catalog.removed_ids()) == 0
    with pytest.raises(CorruptIndexError, match="samples 1 have no row"):
        catalog.samples([0, 1])
    assert catalog.generation() == catalog.snapshot().generation == before + 1
    catalog.remove(["k6"])
    catalog.replace_segments(["c.faiss"], None)
    assert catalog.segments() == [segment("d", 4)]
    assert catalog.next_id() == 7
    catalog.vacuum()
    assert catalog.check() == []


def test_a_snapshot_is_of_one_moment(catalog: Catalog) -> None:
    add(catalog, "a", range(4))
    catalog.remove(["k2"])
    first = catalog.snapshot()
    assert (first.segments, first.count) == ([segment("a", 4)], 3)
    assert first.removed.tolist() == [2]
    add(catalog, "b", range(4, 5))
    second = catalog.snapshot()
    assert second.generation == catalog.generation() == first.generation + 1
    assert second.count == 4


def test_a_reader_sees_one_moment_while_another_writes(catalog: Catalog, url: str) -> None:
    add(catalog, "a", range(2))
    engine = make_engine(url)
    count = "SELECT count(*) FROM samples"
    with reading(engine) as connection:
        assert connection.exec_driver_sql(count).scalar() == 2
        add(catalog, "b", range(2, 4))
        assert catalog.count() == 4
        assert connection.exec_driver_sql(count).scalar() == 2
    with reading(engine) as connection:
        assert connection.exec_driver_sql(count).scalar() == 4
    engine.dispose()


def test_a_second_writer_is_told_so(
    catalog: Catalog, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(catalog, "a", range(3))
    monkeypatch.setattr("forvalue_index.catalog.engine.BUSY_SECONDS", 0.01)
    engine = make_engine(url)
    place = r"catalog\.db" if engine.name == "sqlite" else "postgresql"
    with (
        Catalog.open(url) as second,
        writing(engine) as connection,
        pytest.raises(LockedError, match=place),
    ):
        connection.exec_driver_sql("UPDATE index_info SET next_id = next_id")
        second.remove(["k1"])
    engine.dispose()


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE samples SET row = replace(row, 'p1', 'px')",
        "UPDATE samples SET key = 'renamed' WHERE id = 1",
        "UPDATE samples SET id = 7 WHERE id = 1",
        "UPDATE samples SET loss = loss + 0.001 WHERE id = 1",
        "UPDATE samples SET truncated = 0 WHERE id = 1",
        "UPDATE samples SET removed_at = 'now' WHERE id = 1",
        "UPDATE samples SET removed_at = NULL WHERE id = 3",
        "DELETE FROM samples WHERE id = 1",
    ],
)
def test_a_row_changed_by_hand_is_refused(catalog: Catalog, url: str, edit: str) -> None:
    add(catalog, "a", range(4))
    catalog.remove(["k3"])
    assert len(catalog.samples(range(4))) == 4
    assert catalog.check() == []
    if "truncated = 0" in edit:
        edit = edit.replace("0", "(id = 0)")  # of the type that the database has for it
    assert change(url, edit) > 0
    with pytest.raises(CorruptIndexError, match=r"\b[137]\b"):
        catalog.samples([0, 1, 2, 3, *([7] if "id = 7" in edit else [])])
    if "DELETE" not in edit:
        (problem,) = catalog.check()
        assert re.search(r"sample [137]\b.* was changed", problem)
    if "DELETE" in edit or "removed_at" in edit:
        with pytest.raises(
            CorruptIndexError, match=r"[234] live and [012] removed.*committed were 3"
        ):
            catalog.snapshot()


def test_a_changed_fingerprint_is_refused(catalog: Catalog, url: str) -> None:
    change(url, "UPDATE index_info SET fingerprint = '{}'")
    with pytest.raises(CorruptIndexError, match="fingerprint"):
        Catalog.open(url)


# -- against a plain dict ----------------------------------------------------------------------

operations = st.lists(
    st.tuples(st.sampled_from(["add", "update", "remove", "reopen"]), st.sets(st.integers(0, 7))),
    max_size=12,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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


# -- the writer's lock -------------------------------------------------------------------------


def test_the_second_writer_learns_who_the_first_is(tmp_path: Path) -> None:
    with (
        WriterLock(tmp_path, "forvalue add rows.jsonl"),
        pytest.raises(
            LockedError, match=rf"process {os.getpid()} on .*forvalue add rows\.jsonl, since 20"
        ),
    ):
        WriterLock(tmp_path).acquire()
    with WriterLock(tmp_path, "another"), pytest.raises(LockedError, match="another"):
        WriterLock(tmp_path).acquire()
    with pytest.raises(ZeroDivisionError), WriterLock(tmp_path):
        _ = 1 / 0
    WriterLock(tmp_path).acquire()


def test_a_lock_that_cannot_be_written_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(OSError, match="No space"):
            WriterLock(tmp_path).acquire()
    with WriterLock(tmp_path) as lock:
        assert not lock.interrupted


def _hold(folder: Path, ready: multiprocessing.synchronize.Event) -> None:
    WriterLock(folder, "held").acquire()
    ready.set()
    time.sleep(60)


def test_a_killed_writer_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(LockedError, match=f"process {process.pid} .*held"):
        WriterLock(tmp_path).acquire()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with WriterLock(tmp_path):
        pass

"""What removes or replaces rows, seen by who reads meanwhile; and what is changed by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from helpers.catalogs import add, sample, segment
from sqlalchemy import create_engine, event
from sqlalchemy.exc import IntegrityError

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.engine import make_engine, reading, writing
from forvalue_index.errors import CorruptIndexError, KeyConflictError, LockedError
from forvalue_index.search.checked import CheckedFiles
from forvalue_index.store.fields import KeptFields

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


# -- changed by hand ---------------------------------------------------------------------------


def change(url: str, statement: str) -> int:
    """Runs SQL behind the catalogue's back; the number of rows it changed."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            return connection.exec_driver_sql(statement).rowcount
    finally:
        engine.dispose()


def test_the_database_itself_keeps_live_keys_apart(catalog: Catalog, url: str) -> None:
    add(catalog, "a", range(2))
    with pytest.raises(IntegrityError, match=r"UNIQUE|duplicate key"):
        change(url, "UPDATE samples SET key = 'k0'")


def test_rows_are_not_counted_at_each_generation(catalog: Catalog, url: str) -> None:
    add(catalog, "a", range(3))
    assert catalog.snapshot().count == 3
    counts: list[str] = []
    event.listen(
        catalog._engine,
        "before_cursor_execute",
        lambda *given: counts.append(given[2]) if "count(" in given[2] else None,
    )
    catalog.require_intact()
    for n in range(3, 6):
        with Catalog.open(url) as other:
            other.require_intact()
            add(other if n == 4 and "sqlite" not in url else catalog, f"b{n}", range(n, n + 1))
        assert catalog.snapshot().count == n + 1
        catalog.require_intact()
    assert counts == []
    # Whoever opens the catalogue counts, and so does who looks at the same generation again.
    assert change(url, "DELETE FROM samples WHERE id = 1") == 1
    with Catalog.open(url) as other:
        for opened in (other, catalog):
            with pytest.raises(CorruptIndexError, match="5 live and 0 removed"):
                opened.snapshot()


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
            CorruptIndexError, match=r"[234] live and [012] removed.*but 3.* committed"
        ):
            catalog.snapshot()


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE samples SET norm = norm + 1 WHERE id = 1",
        "UPDATE samples SET n_scored = 1000 WHERE id = 1",
        "UPDATE samples SET segment_id = 2 WHERE id = 1",
        "UPDATE samples SET key = 'renamed' WHERE id = 1",
        "UPDATE samples SET content_hash = '0' WHERE id = 1",
        "UPDATE samples SET row = replace(row, 'p1', 'px') WHERE id = 1",
        "UPDATE segments SET sha256 = 'x' WHERE id = 1",
        "UPDATE index_info SET next_id = 2",
        "UPDATE index_info SET next_id = 20",
        "UPDATE index_info SET live = live + 1",
        "UPDATE index_info SET generation = generation + 1",
        "DELETE FROM segments WHERE name = 'd.faiss'",
        "DROP INDEX uq_samples_live_key",
    ],
)
def test_nothing_that_was_changed_is_believed(
    catalog: Catalog, url: str, edit: str, tmp_path: Path
) -> None:
    add(catalog, "a", range(4))
    add(catalog, "b", range(4, 6))
    catalog.commit_segment(segment("c", 1), [sample(6)], replaces=[5])
    catalog.remove(["k6"])
    catalog.replace_segments(["c.faiss"], None)
    catalog.commit_segment(segment("d", 1), [sample(7)])
    if "DELETE" in edit:
        assert change(url, "DELETE FROM samples WHERE id = 7") == 1
    change(url, edit)
    with Catalog.open(url) as again:
        for ask in (
            lambda: KeptFields(CheckedFiles(tmp_path, tmp_path), again).where(
                again.segments(), ["n>=0"], nullcontext
            ),
            lambda: again.known(["k1"]),
            lambda: again.ids_of(["k1"]),
            lambda: again.fields(),
            lambda: list(again.iterate()),
            lambda: again.remove(["k2"]),
            lambda: again.commit_segment(segment("z", 1), [sample(8)]),
            lambda: again.replace_segments(["a.faiss"], None),
        ):
            with pytest.raises(CorruptIndexError):
                ask()
        if "norm" in edit or "n_scored" in edit or "segment_id" in edit or "UPDATE" not in edit:
            with pytest.raises(CorruptIndexError) if "INDEX" not in edit else nullcontext():
                again.figures()
        assert again.check() != []
    with closing_raw(url) as left:
        assert left == 7 - ("DELETE" in edit)  # nothing was written


@contextmanager
def closing_raw(url: str) -> Iterator[int]:
    """Gives the number of rows of samples."""
    engine = create_engine(url)
    with engine.connect() as connection:
        yield connection.exec_driver_sql("SELECT count(*) FROM samples").scalar_one()
    engine.dispose()


def test_a_changed_fingerprint_is_refused(catalog: Catalog, url: str) -> None:
    change(url, "UPDATE index_info SET fingerprint = '{}'")
    with pytest.raises(CorruptIndexError, match="fingerprint"):
        Catalog.open(url)

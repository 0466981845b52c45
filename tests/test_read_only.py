"""An index that a user may read and not write: in a shared folder, or on a read-only disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.faults import no_file_over
from helpers.indexes import SETTINGS, changed, every
from sqlalchemy import text

from forvalue_index import InfluenceIndex
from forvalue_index.catalog.engine import make_engine, reading
from forvalue_index.errors import CorruptIndexError, InputError, StorageError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row
from forvalue_index.search import checked

NOBODY = 65534


@contextmanager
def somebody_else() -> Iterator[None]:
    """Another user, for whom the modes of files hold; who is not root is one already."""
    if os.geteuid():
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def owned(rows: list[Row], lm: LanguageModel) -> Iterator[InfluenceIndex]:
    """An index that its owner has open, in a folder that everybody may read."""
    parent = Path(tempfile.mkdtemp())
    parent.chmod(0o755)
    with InfluenceIndex.build(parent / "index", rows[:20], lm, **SETTINGS)[0] as index:
        yield index
    shutil.rmtree(parent)


def close_to_others(directory: Path) -> None:
    """Takes the right to write from everybody; who is not root is no other user."""
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def open_to_owner(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_reader_that_cannot_write_hashes_each_segment_once(
    owned: InfluenceIndex, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has seen it cannot keep in the directory."""
    hashed: list[str] = []
    real = checked._require_hash

    def watched(path: Path, sha256: object) -> None:
        hashed.append(path.name)
        real(path, sha256)

    monkeypatch.setattr(checked, "_require_hash", watched)
    monkeypatch.setattr(checked, "_remember", lambda *_: None)
    for known in owned.directory.rglob("checked*.json"):  # what the owner wrote and so knows
        known.unlink()
    with InfluenceIndex.open(owned.directory) as index:
        assert len(index.flat.ids) == 20
        owned.add(rows[20:])
        index.store.snapshots.refresh()
        assert len(index.flat.ids) == 30
        assert len(hashed) == len(set(hashed)) == 2


def test_a_reader_needs_no_right_to_write(
    owned: InfluenceIndex, rows: list[Row], lm: LanguageModel
) -> None:
    expected, directory = every(owned, rows[0]), owned.directory
    owned.close()
    close_to_others(directory)
    before = sorted(directory.rglob("*"))
    with somebody_else(), InfluenceIndex.open(directory, model=lm) as index:
        assert not os.access(directory, os.W_OK)
        assert every(index, rows[0]) == expected
        assert len(list(index.rows())) == len(index) == 20
        assert index.verify() == []
        for write in (
            lambda: index.add(rows),
            lambda: index.remove(["row-3"]),
            index.compact,
            lambda: index.optimize("Flat"),
            lambda: InfluenceIndex.migrate(directory),
        ):
            with pytest.raises(StorageError, match=r"Permission denied\): .*; ask its owner"):
                write()
        assert every(index, rows[0]) == expected
    assert sorted(directory.rglob("*")) == before
    open_to_owner(directory)
    with InfluenceIndex.open(directory, model=lm) as index:
        assert index.remove(["row-3"]) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_what_is_written_during_a_read_without_locks_is_noticed(owned: InfluenceIndex) -> None:
    directory = owned.directory
    owned.close()
    with somebody_else():
        engine = make_engine(f"sqlite:///{directory / 'catalog.db'}")
    with (
        pytest.raises(CorruptIndexError, match="was written to while it was read"),
        reading(engine) as connection,
    ):
        count = text("SELECT live FROM index_info")
        assert connection.execute(count).scalar() == 20
        with InfluenceIndex.open(directory) as other:
            assert other.remove(["row-3"]) == 1
    with reading(engine) as connection:
        assert connection.execute(count).scalar() == 19


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_reader_sees_what_the_owner_writes(
    owned: InfluenceIndex, rows: list[Row], lm: LanguageModel
) -> None:
    with somebody_else():
        reader = InfluenceIndex.open(owned.directory, model=lm)
        assert len(reader) == 20
    owned.add(rows[20:25])
    with somebody_else():
        assert len(every(reader, rows[0])) == len(reader) == 25
        assert reader.get("row-24").row == rows[24]
    owned.add([changed(rows[3])], update=True)
    owned.remove(["row-4"])
    owned.close()  # with the last connection, the write-ahead log goes
    with somebody_else():
        found = {key: row for key, row, _ in every(reader, rows[0])}
        assert len(found) == len(reader) == 24
        assert found["row-3"] == changed(rows[3])
    with InfluenceIndex.open(owned.directory, model=lm) as again:
        again.compact()
    with somebody_else():
        assert {key: row for key, row, _ in every(reader, rows[0])} == found
        with pytest.raises(InputError, match="row-4"):
            reader.get("row-4")
        reader.close()


def test_an_index_is_read_and_not_written_where_there_is_no_room(
    owned: InfluenceIndex, rows: list[Row], lm: LanguageModel
) -> None:
    """SQLite has no room for the index of its log, though there is nothing in the log."""
    expected, directory = every(owned, rows[0]), owned.directory
    owned.close()
    with no_file_over(1000), InfluenceIndex.open(directory, model=lm) as index:
        assert every(index, rows[0]) == expected
        assert len(list(index.rows())) == len(index) == 20
        assert index.verify() == []
        with pytest.raises(StorageError, match=r"catalog\.db cannot be written .* make room and"):
            index.remove(["row-3"])
        reader = InfluenceIndex.open(directory, model=lm)
    assert (directory / "catalog.db-wal").stat().st_size == 0  # is left, and bars nobody
    close_to_others(directory)
    with somebody_else(), InfluenceIndex.open(directory, model=lm) as other:
        assert every(other, rows[0]) == expected
    open_to_owner(directory)
    with reader:  # there is room again
        assert reader.remove(["row-3"]) == 1
        assert len(reader) == 19


def test_no_reader_without_room_passes_over_what_is_in_the_log(
    owned: InfluenceIndex, tmp_path: Path
) -> None:
    owned.remove(["row-3"])
    copy = tmp_path / "copy"
    shutil.copytree(owned.directory, copy, ignore=shutil.ignore_patterns("*-shm"))
    assert (copy / "catalog.db-wal").stat().st_size
    with no_file_over(1000), pytest.raises(StorageError, match=r"catalog\.db cannot be written"):
        InfluenceIndex.open(copy)
    with InfluenceIndex.open(copy) as index:
        assert len(index) == 19


def test_a_catalogue_that_is_damaged_is_not_one_without_room(owned: InfluenceIndex) -> None:
    owned.close()
    (owned.directory / "catalog.db").write_bytes(b"no database at all" * 1000)
    with no_file_over(1000), pytest.raises(CorruptIndexError, match="cannot be read"):
        InfluenceIndex.open(owned.directory)

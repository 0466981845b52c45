"""Indexes that are made, or half made, in SQLite and in PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
from indexes import SETTINGS, every

from forvalue_index import InfluenceIndex
from forvalue_index.directory import is_index
from forvalue_index.errors import ForvalueError, IndexMissingError
from forvalue_index.forward.model import LanguageModel
from forvalue_index.records import Row

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_a_build_that_was_killed_at_its_very_beginning_goes_on(
    tmp_path: Path, rows: list[Row], lm: LanguageModel, database: str | None
) -> None:
    path = tmp_path / "index"
    (path / "segments").mkdir(parents=True)
    if database is None:
        (path / "catalog.db").touch()
    else:
        (path / "catalog.url").write_text(database)
    assert not is_index(path)
    with pytest.raises(ForvalueError):
        InfluenceIndex.open(path)
    index, report = InfluenceIndex.build(path, rows, lm, catalog=database, **SETTINGS)
    with index:
        assert report.added == 30


def test_a_build_that_fails_leaves_nothing(
    tmp_path: Path, rows: list[Row], lm: LanguageModel, database: str | None
) -> None:
    def stop(stage: str, *_: int) -> None:
        if stage == "encoding":
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            InfluenceIndex.build(
                tmp_path / "i", rows, lm, catalog=database, progress=stop, **SETTINGS
            )
        assert not (tmp_path / "i").exists()
    InfluenceIndex.build(tmp_path / "i", rows, lm, catalog=database, **SETTINGS)[0].close()


def test_a_postgresql_index_is_opened_by_its_directory(
    tmp_path: Path, rows: list[Row], lm: LanguageModel, database: str | None
) -> None:
    if database is None:
        pytest.skip("SQLite needs no URL")
    path = tmp_path / "index"
    with InfluenceIndex.build(path, rows, lm, catalog=database, **SETTINGS)[0] as index:
        expected = every(index, rows[0])
        assert index.info()["catalog"].startswith("postgresql+psycopg://tester@/")
    assert not (path / "catalog.db").exists()
    assert (path / "catalog.url").stat().st_mode & 0o777 == 0o600
    with InfluenceIndex.open(path, model=lm) as index:
        assert every(index, rows[0]) == expected
    with pytest.raises(IndexMissingError, match="holds a catalogue already"):
        InfluenceIndex.build(tmp_path / "other", rows, lm, catalog=database, **SETTINGS)
    assert not (tmp_path / "other").exists()
    with InfluenceIndex.open(path, model=lm) as index:
        assert len(index) == 30


def test_an_empty_index_that_another_process_fills(
    tmp_path: Path, rows: list[Row], lm: LanguageModel
) -> None:
    with InfluenceIndex.create(tmp_path / "i", lm, **SETTINGS) as early:
        with InfluenceIndex.open(tmp_path / "i", model=lm) as writer:
            writer.add(rows)
        assert len(early.query(rows[0], k=100)) == 30
        early.add({"id": "x", "prompt": "a", "response": "b"})
        assert early.verify() == []
        assert len(early.query(rows[0], k=100)) == 31

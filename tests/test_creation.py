"""Indexes that are made, or half made, in SQLite and in PostgreSQL."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from helpers.faults import no_file_over
from helpers.indexes import KEYED, SETTINGS, every

from forvalue_index import InfluenceIndex, VectorConfig
from forvalue_index.catalog.address import name_catalog
from forvalue_index.errors import ForvalueError, IndexMissingError, StorageError
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row
from forvalue_index.store.layout import is_index

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
        name_catalog(database)  # as the build that was killed did
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


def test_a_build_without_room_for_what_it_fits_from_says_so_and_leaves_nothing(
    tmp_path: Path, rows: list[Row], lm: LanguageModel
) -> None:
    wide: dict[str, Any] = {"format": KEYED, "vector": VectorConfig(dim=8, sketch_dim=1 << 14)}
    with no_file_over(1 << 16), pytest.raises(StorageError) as error:
        InfluenceIndex.build(tmp_path / "i", rows, lm, **wide)
    said = re.fullmatch(
        rf"{tempfile.gettempdir()} has no room for the ([\d,]+) bytes that fitting keeps there "
        r"\(File too large\): set TMPDIR to a folder with more space and run the command again",
        str(error.value),
    )
    assert said and not (tmp_path / "i").exists()
    with no_file_over(int(said[1].replace(",", ""))):
        InfluenceIndex.build(tmp_path / "i", rows, lm, **wide)[0].close()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system takes no blocks ahead")
def test_all_that_fitting_needs_is_taken_before_the_model_runs(
    tmp_path: Path, rows: list[Row], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write to a page without a block behind it would kill the process."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(Encoder, "read", lambda *_: pytest.fail("it ran"))
    with pytest.raises(StorageError, match=r"\(No space left on device\): set TMPDIR to a folder"):
        InfluenceIndex.build(tmp_path / "i", rows, lm, **SETTINGS)
    assert not (tmp_path / "i").exists()


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
    with pytest.raises(IndexMissingError, match="already holds a catalogue"):
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

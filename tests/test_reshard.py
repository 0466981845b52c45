"""The rows of a sharded index in another number of shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.indexes import NEW, SETTINGS

from forvalue_index import InfluenceIndex
from forvalue_index.errors import IndexMissingError, InputError, LockedError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.pipeline.session import Session
from forvalue_index.records import Row
from forvalue_index.store.manifest import read_manifest, shard_of
from forvalue_index.store.writer import Writer

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture
def directory(tmp_path: Path, rows: list[Row], lm: LanguageModel) -> Path:
    """An index of two shards, of which one row was removed."""
    index, _ = InfluenceIndex.build(tmp_path / "i", rows, lm, shards=2, **SETTINGS)
    with index:
        index.remove("row-7")
    return tmp_path / "i"


def held(directory: Path, lm: LanguageModel, rows: list[Row]) -> list[Any]:
    """All that an index answers, but for ids."""
    with InfluenceIndex.open(directory, model=lm) as index:
        assert index.verify() == []
        hits = [(hit.query, hit.key, hit.score) for hit in index.query(rows[:2], k=100)]
        words = [(hit.key, hit.score) for hit in index.search(rows[3]["prompt"])]
        figures = index.snapshot.figures()
        by_key = sorted(zip(*_figures(index, figures), strict=True))
        return [hits, words, by_key, [s.row for s in sorted(index.rows(), key=lambda s: s.key)]]


def _figures(index: InfluenceIndex, figures: Any) -> list[list[Any]]:
    keys = [sample.key for sample in index.stored(figures.ids)]
    return [keys, figures.norm.tolist(), figures.loss.tolist(), figures.n_scored.tolist()]


@pytest.mark.parametrize("shards", [1, 5])
def test_all_is_as_it_was(
    directory: Path,
    lm: LanguageModel,
    rows: list[Row],
    shards: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = held(directory, lm, rows)
    seen: list[tuple[str, int, int, int]] = []
    with InfluenceIndex.open(directory, model=lm) as reader:
        old = [hit.key for hit in reader.query(rows[0])]
        monkeypatch.setattr("forvalue_index.shards.reshard.PAGE", 4)
        monkeypatch.setattr(Session, "encode", lambda *_: pytest.fail("a forward pass"))
        assert InfluenceIndex.reshard(directory, shards, lambda *step: seen.append(step)) == 29
        with pytest.raises(IndexMissingError, match=f"has {shards} shards now: open it again"):
            len(reader.search("word"))
    assert seen[-1] == ("copying", 29, 29, 0)
    monkeypatch.undo()
    assert held(directory, lm, rows) == before
    manifest = read_manifest(directory)
    assert (manifest.shards, manifest.attached, manifest.dealt) == (shards, (*range(shards),), 1)
    assert [path.name for path in directory.glob("shards*/")] == ["shards-1"]
    with InfluenceIndex.open(directory, model=lm) as index:
        assert [hit.key for hit in index.query(rows[0])] == old
        for number, shard in enumerate(index.store.shards):
            assert all(shard_of(s.key, shards) == number for s in shard.catalog.iterate())
        assert index.add([NEW]).added == 1
    assert InfluenceIndex.reshard(directory, 3) == 30
    assert [path.name for path in directory.glob("shards*/")] == ["shards-2"]


def interrupted(directory: Path, shards: int, monkeypatch: pytest.MonkeyPatch, at: int) -> int:
    """Kills `reshard` at a commit; returns how many rows were copied before."""
    copy, copied = Writer.copy, list[int]()

    def dies(self: Writer, samples: Any, *rest: Any) -> None:
        if len(copied) == at:
            raise KeyboardInterrupt
        copy(self, samples, *rest)
        copied.append(len(samples))

    with monkeypatch.context() as patch:
        patch.setattr("forvalue_index.shards.reshard.PAGE", 4)
        patch.setattr(Writer, "copy", dies)
        with pytest.raises(KeyboardInterrupt):
            InfluenceIndex.reshard(directory, shards)
    return sum(copied)


def test_it_goes_on_where_it_was_killed(
    directory: Path, lm: LanguageModel, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = held(directory, lm, rows)
    done = interrupted(directory, 3, monkeypatch, 2)
    assert held(directory, lm, rows) == before
    copy, copied = Writer.copy, list[int]()

    def counted(self: Writer, samples: Any, *rest: Any) -> None:
        copied.append(len(samples))
        copy(self, samples, *rest)

    monkeypatch.setattr(Writer, "copy", counted)
    assert InfluenceIndex.reshard(directory, 3) == 29
    assert sum(copied) == 29 - done < 29
    assert held(directory, lm, rows) == before


def test_it_begins_again_if_something_was_written_meanwhile(
    directory: Path, lm: LanguageModel, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(directory, 3, monkeypatch, 4)
    with InfluenceIndex.open(directory, model=lm) as index:
        index.remove(["row-0", "row-1", "row-2", "row-3"])
        index.add([rows[4] | {"response": " other"}], update=True)
    before = held(directory, lm, rows)
    assert InfluenceIndex.reshard(directory, 3) == 25
    assert held(directory, lm, rows) == before


def test_what_cannot_be_dealt_out_is_refused(
    tmp_path: Path, directory: Path, lm: LanguageModel, rows: list[Row]
) -> None:
    assert InfluenceIndex.reshard(directory, 2) == 29
    assert read_manifest(directory).dealt == 0
    with pytest.raises(InputError, match="1 to 4096 shards, not 0"):
        InfluenceIndex.reshard(directory, 0)
    with (
        InfluenceIndex.open(directory) as index,
        index.store.shards[1].writer.lock(),
        pytest.raises(LockedError),
    ):
        InfluenceIndex.reshard(directory, 3)
    InfluenceIndex.build(tmp_path / "one", rows, lm, **SETTINGS)[0].close()
    with pytest.raises(IndexMissingError, match="is not an index of shards"):
        InfluenceIndex.reshard(tmp_path / "one", 3)

"""What one generation of an index takes over from the last: mapped segments and known hashes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.indexes import every

from forvalue_index import InfluenceIndex
from forvalue_index.errors import CorruptIndexError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row

pytestmark = pytest.mark.usefixtures("small_chunks")

NEW: Row = {"id": "new", "prompt": "some", "response": " words"}
OTHER: Row = {"id": "other", "prompt": "some other", "response": " words"}


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed whole, as long as the test runs."""
    names: list[str] = []
    digest = hashlib.file_digest

    def watched(file: Any, kind: str) -> Any:
        names.append(Path(f"/proc/self/fd/{file.fileno()}").readlink().name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    return names


def flip(path: Path) -> None:
    """Changes a byte in the middle of a file, in place."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def test_segments_stay_mapped_from_one_generation_to_the_next(
    index: InfluenceIndex, rows: list[Row], hashed: list[str]
) -> None:
    before = {opened.name: opened for opened in index.flat.opened}
    assert len(before) == 4
    index.add(NEW)
    assert len(every(index, rows[0])) == 31
    after = {opened.name: opened for opened in index.flat.opened}
    assert len(after) == 5
    assert all(after[name] is opened for name, opened in before.items())
    index.remove(["new"])  # a generation without a new segment
    assert len(every(index, rows[0])) == 30
    assert {o.name for o in index.flat.opened if after[o.name] is o} == set(after)
    assert hashed == []  # what was written here is known


def test_a_segment_whose_file_is_another_one_is_mapped_and_hashed_again(
    index: InfluenceIndex, rows: list[Row], hashed: list[str]
) -> None:
    expected, first = every(index, rows[0]), index.flat.opened[0]
    path = index.directory / "segments" / first.name
    shutil.copy(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)  # the same bytes, in another file
    index.add(NEW)
    assert [hit for hit in every(index, rows[0]) if hit[0] != "new"] == expected
    assert index.flat.opened[0] is not first
    assert hashed.count(first.name) == 1


def test_a_segment_that_is_damaged_while_it_is_mapped_is_not_taken_over(
    index: InfluenceIndex, rows: list[Row]
) -> None:
    every(index, rows[0])
    path = index.directory / "segments" / index.flat.opened[0].name
    flip(path)
    index.remove(["row-29"])
    with pytest.raises(CorruptIndexError, match=f"{path.name} was changed: its sha256"):
        every(index, rows[0])


def test_compacted_segments_are_let_go_of(index: InfluenceIndex, rows: list[Row]) -> None:
    every(index, rows[0])
    index.remove(["row-3"])
    index.compact()
    assert len(every(index, rows[0])) == 29
    mapped = Path("/proc/self/maps").read_text()
    names = [path.name for path in (index.directory / "segments").iterdir()]
    assert all(name in mapped for name in names)
    assert f"{index.directory}/segments/000000000000.faiss" not in mapped


def test_a_derived_index_is_hashed_once_whoever_asks_and_however_often(
    index: InfluenceIndex, rows: list[Row], lm: LanguageModel, hashed: list[str]
) -> None:
    index.optimize("IVF2,SQ8")
    [file] = (index.directory / "derived").glob("*.faiss")
    every(index, rows[0])
    assert hashed.count(file.name) == 1
    index.remove(["row-3"])
    index.add(NEW)
    assert len(every(index, rows[0])) == 30
    with InfluenceIndex.open(index.directory, model=lm) as again:
        assert len(every(again, rows[0])) == 30
    assert hashed.count(file.name) == 1
    assert index.verify() == []  # reads everything, whatever is remembered
    assert hashed.count(file.name) == 2


def test_a_derived_index_whose_file_changes_is_hashed_again(
    index: InfluenceIndex, rows: list[Row]
) -> None:
    index.optimize("IVF2,SQ8")
    every(index, rows[0])
    [file] = (index.directory / "derived").glob("*.faiss")
    flip(file)
    index.remove(["row-3"])
    with pytest.raises(CorruptIndexError, match=f"{file.name} is damaged"):
        every(index, rows[0])


def test_a_derived_index_is_extended_without_another_hash(
    index: InfluenceIndex, rows: list[Row], hashed: list[str]
) -> None:
    index.optimize("IVF2,SQ8")
    every(index, rows[0])
    [file] = (index.directory / "derived").glob("*.faiss")
    index.add(
        [NEW, OTHER, *({"id": str(i), "prompt": "p", "response": f" r{i}"} for i in range(5))]
    )
    [extended] = (index.directory / "derived").glob("*.faiss")
    assert extended != file
    assert len(every(index, rows[0])) == 37
    assert hashed.count(file.name) == hashed.count(extended.name) == 1

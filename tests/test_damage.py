"""A full disk, and damage: named, refused, and repaired where nothing is lost."""

from __future__ import annotations

import os
import re
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import faiss
import pytest
from helpers.indexes import SETTINGS, bytes_in, every

from forvalue_index import InfluenceIndex
from forvalue_index.errors import CorruptIndexError, StorageError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Hit, Row
from forvalue_index.search.ann_build import make_derived

pytestmark = pytest.mark.usefixtures("small_chunks")

# -- disk full ---------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["add", "compact"])
@pytest.mark.parametrize("limit", [200, 3_000, 60_000, 110_000])
def test_a_full_disk_is_one_line_and_changes_nothing(
    tmp_path: Path, rows: list[Row], lm: LanguageModel, step: str, limit: int
) -> None:
    """A limit on the size of files stands for the disk: the kernel refuses to write more."""
    path = tmp_path / "index"
    more = [{"id": f"m{i}", "prompt": "x" * 900, "response": f"b{i}"} for i in range(60)]
    with InfluenceIndex.build(path, rows, lm, **SETTINGS)[0] as index:
        index.remove(["row-1"])
        expected = every(index, rows[0])

        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        error = None
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            index.add(more) if step == "add" else index.compact()
        except StorageError as caught:
            error = str(caught)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if error is not None:
        assert "cannot be written" in error and "make room" in error and "\n" not in error
    with InfluenceIndex.open(path, model=lm) as index:
        assert index.verify() == []
        assert error is not None
        kept = [hit for hit in every(index, rows[0]) if hit[0].startswith("row-")]
        assert kept == expected
        index.add(more)
        index.compact()
        assert len(index) == 29 + 60


def test_the_storage_error_reaches_a_person_as_one_line(
    tmp_path: Path, rows: list[Row], lm: LanguageModel
) -> None:
    InfluenceIndex.build(tmp_path / "i", rows, lm, **SETTINGS)[0].close()
    with InfluenceIndex.open(tmp_path / "i") as index:
        index.remove(["row-1"])
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500));"
        "from forvalue_index.cli import main; main(['compact', '--index', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "i")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    assert "make room" in done.stderr


# -- damage ------------------------------------------------------------------------------------


def flip(path: Path, place: float = 0.5, keep_times: bool = False) -> None:
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(bytes(data))
    if keep_times:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def flip_scale(path: Path) -> None:
    """Flips a bit of a row's scale: the last bytes of its code."""
    index = faiss.read_index(str(path))
    codes = faiss.downcast_index(index.index)
    code = faiss.vector_to_array(codes.codes)[: codes.code_size].tobytes()
    data = path.read_bytes()
    assert data.count(code) == 1
    path.write_bytes(data.replace(code, code[:-2] + bytes([code[-2] ^ 1]) + code[-1:]))


def sql(directory: Path, statement: str) -> None:
    with closing(sqlite3.connect(directory / "catalog.db")) as raw:
        assert raw.execute(statement).rowcount > 0
        raw.commit()


def a_segment(directory: Path) -> Path:
    return sorted((directory / "segments").iterdir())[1]


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (lambda d: flip(a_segment(d)), r"000000000008\.faiss.*sha256"),
    "a flipped bit under the old time": (
        lambda d: flip(a_segment(d), keep_times=True),
        r"000000000008\.faiss.*sha256",
    ),
    "a flipped bit of a scale": (
        lambda d: flip_scale(a_segment(d)),
        r"000000000008\.faiss.*sha256",
    ),
    "a truncated segment": (
        lambda d: os.truncate(a_segment(d), 500),
        r"000000000008\.faiss.*\b500\b",
    ),
    "a missing segment": (lambda d: a_segment(d).unlink(), r"000000000008\.faiss is missing"),
    "a changed row": (
        lambda d: sql(d, "UPDATE samples SET row = replace(row, 'row-3', 'row-X') WHERE id = 3"),
        r"sample 3 .* was changed",
    ),
    "a lost row": (
        lambda d: sql(d, "DELETE FROM samples WHERE id = 3"),
        r"29 live and 0 removed samples, but 30 live.* committed",
    ),
    "a hidden row": (
        lambda d: sql(d, "UPDATE samples SET removed_at = 'now' WHERE id = 3"),
        r"29 live and 1 removed samples, but 30 live.* committed",
    ),
    "a changed segment row": (
        lambda d: sql(d, "UPDATE segments SET sha256 = 'x' WHERE id = 2"),
        r"000000000008\.faiss.*sha256",
    ),
    "a changed vectoriser": (
        lambda d: flip(next(d.glob("vectoriser-*"))),
        r"vectoriser-\w+\.safetensors is not what was committed",
    ),
    "a missing vectoriser": (
        lambda d: next(d.glob("vectoriser-*")).unlink(),
        r"vectoriser-\w+\.safetensors is missing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_a_query_refuses(
    tmp_path: Path, rows: list[Row], lm: LanguageModel, damage: str
) -> None:
    with InfluenceIndex.build(tmp_path / "index", rows, lm, **SETTINGS)[0] as index:
        assert len(index.query(rows[0], k=100)) == 30  # and remembers that all is intact
        assert index.verify() == []
    work, message = DAMAGE[damage]
    work(tmp_path / "index")
    with InfluenceIndex.open(tmp_path / "index", model=lm) as index:
        with pytest.raises(CorruptIndexError, match=message):
            index.query(rows[0], k=100)
        before = bytes_in(tmp_path / "index" / "segments")
        if "segment row" in damage:  # nobody knows which files count
            with pytest.raises(CorruptIndexError, match=message):
                index.repair()
        else:
            index.repair()
        assert bytes_in(tmp_path / "index" / "segments") == before
        assert any(re.search(message, problem) for problem in index.verify())
        if "segment" in damage or "bit" in damage or "lost" in damage or "hidden" in damage:
            if "row" in damage:
                with pytest.raises(CorruptIndexError, match=message):
                    index.remove(["row-9"])
            else:
                index.store.catalog.remove(["row-9"])
            with pytest.raises(CorruptIndexError):  # nor is damage given a new checksum
                index.compact()


def test_repair_removes_what_counts_for_nothing(index: InfluenceIndex, rows: list[Row]) -> None:
    expected = every(index, rows[0])
    derived = index.directory / "derived"
    make_derived(derived, index.flat, "Flat")
    flip(next(derived.glob("*.faiss")))
    strays = [
        index.directory / "segments" / "stray.faiss",
        index.directory / "segments" / "000000000999.faiss.tmp",
        index.directory / "vectoriser-0123456789abcdef.safetensors",
        derived / "dot-000000000000.faiss",
    ]
    for path in strays:
        path.write_bytes(b"x")
    (index.directory / "notes.txt").write_text("mine")
    problems = index.verify()
    assert all(any(str(path) in problem for problem in problems) for path in strays)
    assert any("dot-" in problem and "damaged" in problem for problem in problems)
    assert len(problems) == 5
    done = index.repair()
    assert len(done) == 5
    assert index.verify() == []
    assert not any(path.exists() for path in strays)
    assert (index.directory / "notes.txt").read_text() == "mine"
    assert every(index, rows[0]) == expected
    assert index.repair() == []


def test_what_a_killed_writer_left_is_no_damage(index: InfluenceIndex, rows: list[Row]) -> None:
    stray = index.directory / "segments" / "000000000030.faiss"
    (index.directory / "write.lock").write_text('{"pid": 1}')
    stray.write_bytes(b"half")
    assert index.verify() == []
    assert stray.exists()
    index.remove(["row-0"])
    assert not stray.exists()
    stray.write_bytes(b"half")
    assert len(index.verify()) == 1


def test_intact_segments_are_hashed_once(
    index: InfluenceIndex, rows: list[Row], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import forvalue_index.search.checked as intact

    hashed: list[str] = []
    original = intact._require_hash

    def count(path: Path, sha256: object) -> None:
        hashed.append(path.name)
        original(path, sha256)

    def ask() -> list[Hit]:
        with InfluenceIndex.open(index.directory, model=lm) as again:
            return again.query(rows[0])

    monkeypatch.setattr(intact, "_require_hash", count)
    ask()
    index.add({"id": "x", "prompt": "a", "response": "b"})
    ask()
    assert hashed == []  # what this package wrote itself is known
    (index.directory / "checked.json").write_text("{damaged")
    ask()
    assert len(hashed) == 5
    ask()
    assert len(hashed) == 5

"""A catalogue that was damaged or edited: the right answer or an error of this package."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers.indexes import SETTINGS

from forvalue_index import InfluenceIndex
from forvalue_index.analysis.values import sample_values
from forvalue_index.catalog import integrity, sealed_rows
from forvalue_index.errors import CorruptIndexError, ForvalueError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row

ASKED = {"prompt": "the cat", "response": " sat"}
NEW = {"id": "new", "prompt": "a dog", "response": " ran", "n": 99}
FLIPS = 40


@pytest.fixture(scope="module")
def sound(
    tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """An index of four segments and one removed row, and what it answers."""
    path = tmp_path_factory.mktemp("sound") / "index"
    words = ["red", "green", "blue", "grey", "pink", "black"]
    rows: list[Row] = [
        {
            "id": f"row-{i}",
            "prompt": f"{words[i % 6]} {words[i * 7 % 5]} {i}",
            "response": f" {words[i % 5]}" * (1 + i % 3),
            "n": i,
        }
        for i in range(30)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forvalue_index.pipeline.add.CHUNK", 8)
        with InfluenceIndex.build(path, rows, lm, **SETTINGS)[0] as index:
            index.remove(["row-29"])
    with InfluenceIndex.open(path, model=lm) as index:
        assert index.verify() == []
    shutil.copytree(path, copy := path.with_name("copy"))
    yield path, answers(copy, lm)


def answers(path: Path, lm: LanguageModel) -> dict[str, Any]:
    """What each way to ask gives: its answer, or the package's error as a text of one line."""
    asks: dict[str, Callable[[InfluenceIndex], Any]] = {
        "dot": lambda index: index.query(ASKED, k=5),
        "cosine": lambda index: index.query(ASKED, k=5, metric="cosine"),
        "per-token": lambda index: index.query(ASKED, k=5, metric="per-token"),
        "where": lambda index: index.query(ASKED, k=40, where="n>=3"),
        "list": lambda index: list(index.rows()),
        "list where": lambda index: list(index.rows("n<20")),
        "get": lambda index: [index.get(f"row-{i}") for i in (0, 3, 28)],
        "score": lambda index: _lists(sample_values(index, [ASKED])),
        "info": lambda index: (len(index), index.info()["removed"], index.info()["segments"]),
        "verify": lambda index: index.verify(),
        "add": _add,
    }
    found: dict[str, Any] = {}
    for name, ask in asks.items():
        try:
            with InfluenceIndex.open(path, model=lm) as index:
                found[name] = ask(index)
        except ForvalueError as error:
            found[name] = str(error)
            assert "\n" not in found[name], found[name]
        if name == "score" and not isinstance(found[name], str):
            assert len(found[name]) == 3
    return found


def _lists(found: Any) -> list[Any]:
    return [array.tolist() for array in (found.ids, found.value, found.loss)]


def _add(index: InfluenceIndex) -> Any:
    index.add([NEW, {"id": "row-3", "prompt": "grey green 3", "response": " grey", "n": 3}])
    return len(index), [(sample.id, sample.key) for sample in index.rows()]


def edit(path: Path, *statements: str) -> None:
    """Runs SQL behind the catalogue's back, by a program that heeds no foreign key."""
    with closing(sqlite3.connect(path / "catalog.db")) as raw:
        for statement in statements:
            assert raw.execute(statement).rowcount != 0, statement
        raw.commit()


def sample(change: str, where: str = "id = 3") -> str:
    return f"UPDATE samples SET {change} WHERE {where}"


COLUMNS = (
    "segment_id, n_tokens, n_scored, truncated, loss, norm, removed_at, checksum, row, content_hash"
)
EDITS: dict[str, tuple[str, ...]] = {
    "norm": (sample("norm = norm * 100", "id = COSINE"),),  # of the best hit
    "the norms of two rows": (sample("norm = norm * 2", "id < 2"),),
    "n_scored": (sample("n_scored = 1000", "id = PER_TOKEN"),),
    "n_tokens": (sample("n_tokens = 1000"),),
    "loss": (sample("loss = loss + 1"),),
    "a field of a row": (sample("""row = replace(row, '"n":3', '"n":1')"""),),
    "a field of two rows": (sample("""row = replace(row, '"n":', '"m":')""", "id < 2"),),
    "removed": (sample("removed_at = 'now'"),),
    "shown again": (sample("removed_at = NULL", "id = 29"),),
    "removed instead": (
        sample("removed_at = NULL", "id = 29"),
        sample("removed_at = 'now'"),
    ),
    "key": (sample("key = 'other'"),),
    "two keys": (
        sample("key = 'tmp'"),
        sample("key = 'row-3'", "id = 4"),
        sample("key = 'row-4'"),
    ),
    "content_hash": (sample("content_hash = '0'"),),
    "checksum": (sample("checksum = '0'"),),
    "segment of a row": (sample("segment_id = 2"),),
    "a segment that is not there": (sample("segment_id = 77"),),
    "id": (sample("id = 77"),),
    "deleted row": ("DELETE FROM samples WHERE id = 3",),
    "deleted tombstone": ("DELETE FROM samples WHERE id = 29",),
    "row twice": (
        f"INSERT INTO samples (id, key, {COLUMNS}) "
        f"SELECT 77, 'twin', {COLUMNS} FROM samples WHERE id = 3",
    ),
    "row twice for one that is lost": (
        "DELETE FROM samples WHERE id = 4",
        f"INSERT INTO samples (id, key, {COLUMNS}) "
        f"SELECT 4, 'twin', {COLUMNS} FROM samples WHERE id = 3",
    ),
    "text in norm": (sample("norm = 'long'"),),
    "text in n_scored": (sample("n_scored = 'many'"),),
    "a large number in n_scored": (sample("n_scored = 9e99"),),
    "bytes in removed_at": (sample("removed_at = X'00'"),),
    "bytes in a key": (sample("key = CAST(key AS BLOB)"),),
    "bytes in a row": (sample("row = CAST(row AS BLOB)"),),
    "a key that is not UTF-8": (sample("key = CAST(X'ff41' AS TEXT)"),),
    "a row that is not UTF-8": (sample("""row = CAST(X'7b22ff223a317d' AS TEXT)"""),),
    "a row that is not JSON": (sample("row = '{'"),),
    "a row that is a list": (sample("row = '[]'"),),
    "name of a segment": ("UPDATE segments SET name = 'x.faiss' WHERE id = 2",),
    "ntotal of a segment": ("UPDATE segments SET ntotal = 9 WHERE id = 2",),
    "two ntotals": (
        "UPDATE segments SET ntotal = 9 WHERE id = 2",
        "UPDATE segments SET ntotal = 7 WHERE id = 1",
    ),
    "sha256 of a segment": ("UPDATE segments SET sha256 = 'x' WHERE id = 2",),
    "bytes of a segment": ("UPDATE segments SET bytes = 'many' WHERE id = 2",),
    "energy of a segment": ("UPDATE segments SET retained_energy = 0.5 WHERE id = 2",),
    "id of a segment": ("UPDATE segments SET id = 77 WHERE id = 2",),
    "digest of a segment": ("UPDATE segments SET figures = texts WHERE id = 2",),
    "a name that is not UTF-8": (
        "UPDATE segments SET name = CAST(X'ff2e6661697373' AS TEXT) WHERE id = 2",
    ),
    "deleted segment": ("DELETE FROM segments WHERE id = 2",),
    "deleted segment with its rows": (
        "DELETE FROM segments WHERE id = 2",
        "DELETE FROM samples WHERE segment_id = 2",
        "UPDATE index_info SET live = live - 8",
    ),
    "generation": ("UPDATE index_info SET generation = generation + 1",),
    "text in generation": ("UPDATE index_info SET generation = 'next'",),
    "live": ("UPDATE index_info SET live = live + 1",),
    "next_id back": ("UPDATE index_info SET next_id = 2",),
    "next_id forward": ("UPDATE index_info SET next_id = 10000",),
    "a large next_id": ("UPDATE index_info SET next_id = 9e99",),
    "format": ("UPDATE index_info SET format = 'x'",),
    "config": ("UPDATE index_info SET config = '{}'",),
    "bytes in config": ("UPDATE index_info SET config = X'00'",),
    "fingerprint": ("UPDATE index_info SET fingerprint = '{}'",),
    "no index_info": ("DELETE FROM index_info",),
    "revision twice": ("INSERT INTO alembic_version VALUES ('0001')",),
    "no revision": ("DELETE FROM alembic_version",),
    "a revision that is not UTF-8": (
        "UPDATE alembic_version SET version_num = CAST(X'ff' AS TEXT)",
    ),
    "an older revision": ("UPDATE alembic_version SET version_num = '0002'",),
    "dropped index": ("DROP INDEX uq_samples_live_key",),
    "dropped column": ("ALTER TABLE samples DROP COLUMN loss",),
    "dropped table": ("DROP TABLE segments",),
    "dropped rows": ("DROP TABLE samples",),
    "dropped info": ("DROP TABLE index_info",),
}


BEST = {"COSINE": "cosine", "PER_TOKEN": "per-token"}


def _with(statement: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        statement = statement.replace(word, value)
    return statement


def held(found: dict[str, Any], expected: dict[str, Any]) -> int:
    """Holds answers to those of the sound index; returns how many are errors."""
    errors = 0
    for name, answer in found.items():
        if isinstance(answer, str):
            errors += 1
        elif name != "verify":
            assert answer == expected[name], name
    return errors


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_gives_no_other_answer(
    tmp_path: Path, lm: LanguageModel, sound: tuple[Path, dict[str, Any]], what: str
) -> None:
    original, expected = sound
    assert not any(isinstance(answer, str) for answer in expected.values()), expected
    shutil.copytree(original, path := tmp_path / "index")
    best = {word: str(expected[rank][0].id) for word, rank in BEST.items()}
    edit(path, *(_with(statement, best) for statement in EDITS[what]))
    found = answers(path, lm)
    held(found, expected)
    assert found["verify"], "verify names no problem"


def test_a_flipped_bit_gives_no_other_answer(
    tmp_path: Path, lm: LanguageModel, sound: tuple[Path, dict[str, Any]]
) -> None:
    original, expected = sound
    generator, errors = random.Random(0), 0
    for number in range(FLIPS):
        shutil.copytree(original, path := tmp_path / str(number))
        data = bytearray((path / "catalog.db").read_bytes())
        place, bit = generator.randrange(len(data)), generator.randrange(8)
        data[place] ^= 1 << bit
        (path / "catalog.db").write_bytes(bytes(data))
        try:
            errors += held(answers(path, lm), expected)
        except Exception as error:
            raise AssertionError(f"bit {bit} of byte {place}") from error
    assert errors > FLIPS / 2  # some bits are of free pages


# -- what is remembered ----------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many segments' texts were read, each time that some were."""
    counts: list[int] = []
    original = sealed_rows.text_seals

    def count(connection: Any, segments: Any) -> Any:
        counts.append(len(segments))
        return original(connection, segments)

    monkeypatch.setattr(sealed_rows, "text_seals", count)
    return counts


def test_rows_are_read_whole_once(
    tmp_path: Path, lm: LanguageModel, sound: tuple[Path, dict[str, Any]], read: list[int]
) -> None:
    shutil.copytree(sound[0], path := tmp_path / "index")
    with InfluenceIndex.open(path, model=lm) as index, InfluenceIndex.open(path) as other:
        for _ in range(3):
            assert len(list(index.rows("n>=3"))) == 26
        assert read == [4]  # other files than those that were read before
        index.add(NEW)  # of its own
        index.remove(["row-5"])
        assert len(list(index.rows("n>=3"))) == 26
        assert len(list(other.rows("n>=3"))) == 26  # as the writer remembers
        assert read == [4]
        index.compact()
        assert len(list(other.rows("n>=3"))) == 26
    remembered = path / integrity.MEMORY
    read.clear()
    with InfluenceIndex.open(path) as index:
        assert len(list(index.rows("n>=3"))) == 26
        assert read == []  # nor has closing changed what is known
        remembered.write_text("[" * 100_000)
        index.close()
    with InfluenceIndex.open(path) as index:
        assert len(list(index.rows("n>=3"))) == 26


def test_rows_are_not_read_again_when_root_opens_the_log(
    tmp_path: Path, lm: LanguageModel, sound: tuple[Path, dict[str, Any]], read: list[int]
) -> None:
    """SQLite of root gives the log to the owner of the database, who may have it already."""
    shutil.copytree(sound[0], path := tmp_path / "index")
    with InfluenceIndex.open(path, model=lm) as index:
        index.add(NEW)
        read.clear()
        log = path / "catalog.db-wal"
        assert log.stat().st_size
        os.chown(log, log.stat().st_uid, log.stat().st_gid)
        assert len(list(index.rows("n>=3"))) == 27
        assert read == []


def test_of_new_segments_only_they_are_read(
    tmp_path: Path, lm: LanguageModel, sound: tuple[Path, dict[str, Any]], read: list[int]
) -> None:
    shutil.copytree(sound[0], path := tmp_path / "index")
    with InfluenceIndex.open(path) as reader, InfluenceIndex.open(path, model=lm) as writer:
        assert len(list(reader.rows("n>=3"))) == 26
        writer.add(NEW)
        (path / integrity.MEMORY).unlink()  # as if it could not be written
        read.clear()
        assert len(list(reader.rows("n>=3"))) == 27
        assert read == [1]


def test_an_edit_under_an_open_index_is_found(
    tmp_path: Path, lm: LanguageModel, sound: tuple[Path, dict[str, Any]]
) -> None:
    shutil.copytree(sound[0], path := tmp_path / "index")
    with InfluenceIndex.open(path, model=lm) as index:
        assert len(list(index.rows("n>=3"))) == 26
        edit(path, sample("""row = replace(row, '"n":3', '"n":1')"""))
        for ask in (lambda: list(index.rows("n>=3")), lambda: index.add(NEW)):
            with pytest.raises(CorruptIndexError, match=r"000000000000\.faiss.*row"):
                ask()
        with pytest.raises(CorruptIndexError, match=r"000000000000\.faiss.*row"):
            index.remove(["row-7"])


def test_a_trigger_is_found_before_it_does_anything(
    tmp_path: Path, lm: LanguageModel, sound: tuple[Path, dict[str, Any]]
) -> None:
    shutil.copytree(sound[0], path := tmp_path / "index")
    with closing(sqlite3.connect(path / "catalog.db")) as database:
        database.execute(
            "CREATE TRIGGER empty AFTER UPDATE ON samples BEGIN DELETE FROM samples; END"
        )
    with InfluenceIndex.open(path, model=lm) as index:
        assert "trigger empty" in "".join(index.verify())
        for write in (lambda: index.remove(["row-5"]), lambda: index.add(NEW)):
            with pytest.raises(CorruptIndexError, match="trigger empty, which no index has"):
                write()
        assert len(index.query(ASKED, k=100)) == 29


# -- what is derived -------------------------------------------------------------------------------

DERIVED: dict[str, tuple[str, Any]] = {
    "no factor": ("k_factor", 0),
    "text for a factor": ("k_factor", "x"),
    "a factor with a fraction": ("k_factor", 1.5),
    "true for a factor": ("k_factor", True),
    "a large number": ("k_factor", 2**80),
    "no segments": ("segments", None),
    "a list of segments": ("segments", []),
    "a number for a hash": ("segments", {"a.faiss": 1}),
    "no file": ("file", None),
    "a file elsewhere": ("file", "../dot.faiss"),
    "a file of another kind": ("file", "dot.json"),
    "another name": ("name", "cosine"),
    "another metric": ("metric", "best"),
    "a negative size": ("bytes", -1),
    "no vectors": ("ntotal", 0),
    "not a number": ("scale", float("nan")),
    "infinity": ("target", float("inf")),
    "no proponents": ("proponents", None),
    "an effort of nothing": ("opponents", {"effort": 0}),
    "text for a truth": ("proponents", {"flat": "no"}),
    "a key that nobody knows": ("colour", 1),
}


@pytest.fixture(scope="module")
def derived(sound: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    shutil.copytree(sound[0], path := tmp_path_factory.mktemp("derived") / "index")
    with InfluenceIndex.open(path) as index:
        index.optimize("IVF2,SQ8")
    return path


@pytest.mark.parametrize("what", DERIVED)
def test_a_damaged_description_is_named(
    tmp_path: Path,
    lm: LanguageModel,
    derived: Path,
    sound: tuple[Path, dict[str, Any]],
    what: str,
) -> None:
    shutil.copytree(derived, path := tmp_path / "index")
    file, (name, value) = path / "derived" / "dot.json", DERIVED[what]
    described = json.loads(file.read_bytes())
    described[name] = (
        described[name] | value if name in ("proponents", "opponents") and value else value
    )
    file.write_text(json.dumps(described))
    with InfluenceIndex.open(path, model=lm) as index:
        with pytest.raises(CorruptIndexError, match=r"dot\.json is damaged") as caught:
            index.query(ASKED, k=5)
        assert "\n" not in str(caught.value)
        assert index.query(ASKED, k=5, flat=True) == sound[1]["dot"]
        assert any("dot.json is damaged" in problem for problem in index.verify())
        assert index.info()["derived"] == []
        assert any("removed" in line for line in index.repair())
        assert index.verify() == []
        assert index.query(ASKED, k=5) == sound[1]["dot"]


def test_other_damage_of_what_is_derived_and_remembered(
    tmp_path: Path, lm: LanguageModel, derived: Path, sound: tuple[Path, dict[str, Any]]
) -> None:
    shutil.copytree(derived, path := tmp_path / "index")
    file = path / "derived" / "dot.json"
    for text in (b"[" * 100_000, b"\xff", b"null", b"[]", b"{}"):
        file.write_bytes(text)
        with InfluenceIndex.open(path, model=lm) as index:
            with pytest.raises(CorruptIndexError, match=r"dot\.json is damaged"):
                index.query(ASKED)
            assert index.verify()
    file.unlink()
    (path / "derived" / "some words.json").write_text("{}")  # nobody's
    for text in ("[]", "3", '{"000000000000.faiss": 3}', "[" * 100_000):
        (path / "checked.json").write_text(text)
        with InfluenceIndex.open(path, model=lm) as index:
            assert index.query(ASKED, k=5) == sound[1]["dot"]
            assert index.info()["derived"] == []
    file.mkdir()  # a folder is no derived index
    with InfluenceIndex.open(path, model=lm) as index:
        assert [".faiss was never committed" in problem for problem in index.verify()] == [True]
        assert index.query(ASKED, k=5) == sound[1]["dot"]

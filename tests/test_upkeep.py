"""Removing, compacting, verifying: what is gone is gone, what is damaged is named."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, VectorConfig, upkeep
from forvalue_index.catalog.catalog import Catalog
from forvalue_index.directory import is_index
from forvalue_index.errors import (
    CorruptIndexError,
    ForvalueError,
    IndexMissingError,
    InputError,
    KeyConflictError,
    LockedError,
    StorageError,
)
from forvalue_index.forward.model import LanguageModel, load_model
from forvalue_index.records import Hit, Row
from forvalue_index.search.making import make_derived
from forvalue_index.upkeep import plan

SETTINGS: dict[str, Any] = {
    "format": FormatConfig(key_field="id"),
    "vector": VectorConfig(dim=64, sketch_dim=512),
}
CHUNK = 8


class Killed(BaseException):
    """What the process is ended by, in a test that goes on after it."""


@pytest.fixture(scope="module")
def lm(model_dir: Path) -> LanguageModel:
    return load_model(ModelConfig(str(model_dir)), "cpu")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forvalue_index.adding.CHUNK", CHUNK)


@pytest.fixture
def index(tmp_path: Path, rows: list[Row], lm: LanguageModel) -> Iterator[InfluenceIndex]:
    with InfluenceIndex.build(tmp_path / "index", rows, lm, **SETTINGS)[0] as index:
        yield index


@pytest.fixture
def anywhere(
    tmp_path: Path, rows: list[Row], lm: LanguageModel, database: str | None
) -> Iterator[InfluenceIndex]:
    """An index whose rows are in SQLite, then in PostgreSQL."""
    built, _ = InfluenceIndex.build(tmp_path / "index", rows, lm, catalog=database, **SETTINGS)
    with built as index:
        yield index


def every(index: InfluenceIndex, row: Row) -> list[tuple[str, Row, float]]:
    return [(hit.key, hit.sample, hit.score) for hit in index.query(row, k=1000)]


def changed(row: Row, text: str = " otherwise") -> Row:
    return row | {"response": text}


def bytes_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


# -- adding, updating, removing ----------------------------------------------------------------


def test_an_update_takes_the_place_of_the_row(anywhere: InfluenceIndex, rows: list[Row]) -> None:
    index, new = anywhere, [changed(rows[3]), changed(rows[20]), rows[7]]
    with pytest.raises(KeyConflictError, match=r"'row-3' is .*other content: give --update"):
        index.add(new)
    report = index.add(new, update=True)
    assert (report.added, report.updated, report.skipped, report.samples) == (2, 2, 1, 30)
    found = {key: sample for key, sample, _ in every(index, rows[0])}
    assert found == {row["id"]: row for row in [*rows, *new]}
    assert index.info()["removed"] == 2
    again = index.add(new, update=True)
    assert (again.added, again.updated, again.skipped) == (0, 0, 3)
    fresh = index.vectors(index.samples(new[0]))[0]
    assert np.allclose(index.flat.vectors([index.get("row-3").id])[0], fresh, rtol=2e-3, atol=1e-2)


def test_what_is_removed_is_in_no_answer_of_any_reader(
    anywhere: InfluenceIndex, rows: list[Row], lm: LanguageModel
) -> None:
    with InfluenceIndex.open(anywhere.directory, model=lm) as reader:
        best = reader.query(rows[0], k=1)[0].key
        assert anywhere.remove([best, "nobody", best]) == 1
        assert anywhere.remove([best]) == 0
        for rank in ("dot", "cosine", "per-token"):
            hits = reader.query(rows[0], k=1000, rank=rank)
            assert sorted(hit.key for hit in hits) == sorted(
                row["id"] for row in rows if row["id"] != best
            )
        assert anywhere.remove(where=["n>=20"]) == 10 - (best in {r["id"] for r in rows[20:]})
        assert max(hit.sample["n"] for hit in reader.query(rows[0], k=1000)) == 19
        ids, _ = reader.scores(reader.samples(rows[0]))
        assert len(ids) == len(reader) == len(list(reader.rows()))
    with pytest.raises(InputError, match="one of them"):
        anywhere.remove(["a"], where=["n=1"])
    assert anywhere.remove([]) == 0
    assert anywhere.add(rows).added == 30 - len(ids)


def test_rows_by_page_and_condition(anywhere: InfluenceIndex, rows: list[Row]) -> None:
    anywhere.remove(["row-2"])
    first = list(anywhere.rows(limit=4))
    assert [sample.key for sample in first] == ["row-0", "row-1", "row-3", "row-4"]
    rest = list(anywhere.rows(after=first[-1].id))
    assert [sample.row for sample in rest] == rows[5:]
    found = anywhere.rows(["n>=10", "n<20"], after=11, limit=3)
    assert [sample.row["n"] for sample in found] == [12, 13, 14]
    assert anywhere.get("row-9").row == rows[9]
    with pytest.raises(InputError, match=r"no sample .* has key 'row-2': see `forvalue list`"):
        anywhere.get("row-2")


def test_an_export_holds_influences(
    anywhere: InfluenceIndex, rows: list[Row], tmp_path: Path
) -> None:
    anywhere.remove(["row-5"])
    shape = anywhere.export(tmp_path / "v.npy", tmp_path / "r.jsonl", where=["n<10"])
    vectors = np.load(tmp_path / "v.npy")
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert shape == vectors.shape == (9, 64)
    assert [line["row"] for line in lines] == [row for row in rows[:10] if row["n"] != 5]
    ids, scores = anywhere.scores(anywhere.samples(rows[2]))
    own = scores[0][np.isin(ids, [line["id"] for line in lines])]
    np.testing.assert_allclose(vectors @ vectors[2], own, rtol=1e-2, atol=1e-2 * own.max())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "r.jsonl", "v.npy"]
    with pytest.raises(StorageError, match="cannot be written"):
        anywhere.export(tmp_path / "no" / "v.npy", tmp_path / "r2.jsonl")


def test_a_second_writer_is_told_who_the_first_is(
    index: InfluenceIndex, rows: list[Row], lm: LanguageModel
) -> None:
    with index.store.lock(), InfluenceIndex.open(index.directory, model=lm) as second:
        for write in (
            lambda: second.add(changed(rows[0]), update=True),
            lambda: second.remove(["row-1"]),
            second.compact,
            second.repair,
        ):
            with pytest.raises(LockedError, match=f"process {os.getpid()} on"):
                write()
        assert len(second.query(rows[0], k=100)) == 30
        with pytest.raises(LockedError):  # a build finds it, and does not delete it
            InfluenceIndex.build(
                index.directory,
                [*rows, {"id": "x", "prompt": "a", "response": "b"}],
                lm,
                **SETTINGS,
            )
    assert len(index) == 30


# -- compaction --------------------------------------------------------------------------------


def test_compaction_leaves_nothing_of_what_was_removed(
    anywhere: InfluenceIndex, rows: list[Row], database: str | None
) -> None:
    secret = [
        {"id": f"s{i}", "prompt": f"Zqx{i} marker", "response": f"wvu{i} {'pad ' * 5}", "n": 99}
        for i in range(12)
    ]
    anywhere.add(secret)
    ids = [anywhere.get(row["id"]).id for row in secret]
    vectors = anywhere.flat.vectors(ids).astype(np.float16)
    make_derived(anywhere.directory / "derived", anywhere.flat, "Flat")
    before = every(anywhere, rows[0])
    texts = [row["prompt"].encode() for row in secret]
    assert all(vector.tobytes() in bytes_in(anywhere.directory) for vector in vectors)
    anywhere.add(changed(secret[0]), update=True)
    anywhere.remove(where=["n=99"])
    report = anywhere.compact()
    assert (report.removed, report.segments) == (13, 1)
    left = bytes_in(anywhere.directory)
    assert not any(vector.tobytes() in left for vector in vectors)
    assert not any(vector.astype(np.float32).tobytes() in left for vector in vectors)
    if database is None:
        assert rows[0]["prompt"].encode() in left
        assert not any(text in left for text in texts)
    assert anywhere.verify() == []
    assert every(anywhere, rows[0]) == [hit for hit in before if hit[1]["n"] != 99]
    assert anywhere.info()["removed"] == 0
    with pytest.raises(CorruptIndexError, match="no row"):
        anywhere.store.samples(ids)
    # Ids are not given out again.
    anywhere.add(secret[:1])
    assert anywhere.get("s0").id > max(ids)


def test_all_can_be_removed_and_the_index_lives_on(
    anywhere: InfluenceIndex, rows: list[Row]
) -> None:
    anywhere.remove(row["id"] for row in rows)
    assert anywhere.query(rows[0]) == []
    assert anywhere.query(rows[0], rank="cosine") == []
    assert anywhere.compact().segments == 0
    assert list((anywhere.directory / "segments").iterdir()) == []
    assert anywhere.verify() == []
    anywhere.add(rows[:3])
    assert len(anywhere.query(rows[0], k=9)) == 3


def test_scores_are_the_same_to_the_bit_after_a_compaction(
    index: InfluenceIndex, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "TARGET", 12 * 64 * 2)
    index.remove(["row-1", "row-9", "row-29"])
    before = every(index, rows[0])
    report = index.compact()
    assert (report.removed, report.rewritten, report.segments) == (3, 3, 3)
    assert every(index, rows[0]) == before
    unchanged = {path.stat().st_ino for path in (index.directory / "segments").iterdir()}
    assert index.compact().rewritten == 0
    assert {path.stat().st_ino for path in (index.directory / "segments").iterdir()} == unchanged


@pytest.mark.parametrize(
    ("segments", "groups"),
    [
        ({}, []),
        ({"a": (10, 10)}, []),
        ({"a": (2, 2)}, []),
        ({"a": (2, 1)}, [["a"]]),
        ({"a": (2, 2), "b": (10, 10), "c": (3, 3)}, [["a", "c"]]),
        ({"a": (10, 9), "b": (4, 4), "c": (4, 4)}, [["a"], ["b", "c"]]),
        ({"a": (10, 0)}, [["a"]]),
        ({"a": (4, 4), "b": (4, 4), "c": (4, 4), "d": (3, 3)}, [["a", "b"], ["c", "d"]]),
    ],
)
def test_the_plan_of_a_compaction(
    segments: dict[str, tuple[int, int]], groups: list[list[str]]
) -> None:
    assert plan(segments, 10) == groups


def test_readers_go_on_during_a_compaction(
    index: InfluenceIndex, rows: list[Row], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step: one that has it open, and one that opens it then."""
    long = InfluenceIndex.open(index.directory, model=lm)
    index.remove(["row-1", "row-12"])
    expected, steps = every(index, rows[0]), 0

    def step(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            for moment in ("before", "after"):
                result = original(*arguments, **options) if moment == "after" else None
                steps += 1
                assert every(long, rows[0]) == expected
                with InfluenceIndex.open(index.directory, model=lm) as fresh:
                    assert every(fresh, rows[0]) == expected
            return result

        return wrapped

    monkeypatch.setattr(upkeep, "write_segment", step(upkeep.write_segment))
    monkeypatch.setattr(Catalog, "replace_segments", step(Catalog.replace_segments))
    monkeypatch.setattr(Catalog, "vacuum", step(Catalog.vacuum))
    index.compact()
    monkeypatch.undo()
    assert steps == 6
    assert every(long, rows[0]) == expected
    long.close()


def test_a_reader_between_snapshot_and_files_looks_again(
    index: InfluenceIndex, rows: list[Row], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.remove(["row-1"])
    expected = every(index, rows[0])
    original, compactions = Catalog.snapshot, 0

    def late(self: Catalog) -> Any:
        nonlocal compactions
        snapshot = original(self)
        compactions += 1
        if compactions == 1:
            index.compact()
        return snapshot

    with InfluenceIndex.open(index.directory, model=lm) as reader:
        monkeypatch.setattr(Catalog, "snapshot", late)
        assert every(reader, rows[0]) == expected
    assert compactions > 1


def test_rows_that_go_while_a_query_runs(
    index: InfluenceIndex, rows: list[Row], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Catalog.samples, 0

    def late(self: Catalog, ids: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            with InfluenceIndex.open(index.directory, model=lm) as writer:
                writer.remove(["row-1"])
                writer.compact()
        return original(self, ids)

    monkeypatch.setattr(Catalog, "samples", late)
    assert "row-1" not in {key for key, _, _ in every(index, rows[0])}
    assert calls == 2


@pytest.mark.parametrize("target", ["os.fsync", "os.replace", "os.unlink", "commit"])
@pytest.mark.parametrize("after", [False, True])
def test_a_compaction_that_dies_anywhere_is_ended_by_the_next(
    tmp_path: Path,
    rows: list[Row],
    lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    after: bool,
) -> None:
    monkeypatch.setattr(upkeep, "TARGET", 10 * 64 * 2)
    name = "sqlalchemy.engine.default.DefaultDialect.do_commit" if target == "commit" else target
    with InfluenceIndex.build(tmp_path / "0", rows, lm, **SETTINGS)[0] as index:
        index.remove(["row-1", "row-29"])
        expected = every(index, rows[0])
    deaths = 0
    for number in range(1, 100):
        path = shutil.copytree(tmp_path / "0", tmp_path / str(number))
        with InfluenceIndex.open(path, model=lm) as index:
            with monkeypatch.context() as patch:
                die_at(patch, name, number, after)
                try:
                    index.compact()
                except Killed:
                    deaths += 1
                else:
                    break
            assert every(index, rows[0]) == expected
            assert index.verify() == []
            assert index.compact().segments == 4
            assert every(index, rows[0]) == expected
            assert index.verify() == []
            assert rows[1]["prompt"].encode() not in bytes_in(path)
    assert deaths >= 2


def die_at(patch: pytest.MonkeyPatch, name: str, number: int, after: bool) -> None:
    """The n-th call of a function or method is the last."""
    place, _, attribute = name.rpartition(".")
    original, calls = resolve_name(name), 0

    def patched(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != number:
            return original(*arguments, **options)
        try:
            if after:
                original(*arguments, **options)
        finally:
            raise Killed

    patch.setattr(resolve_name(place), attribute, patched)


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


# -- damage ------------------------------------------------------------------------------------


def flip(path: Path, place: float = 0.5, keep_times: bool = False) -> None:
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(bytes(data))
    if keep_times:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


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
        r"29 live and 0 removed samples, committed were 30 live",
    ),
    "a hidden row": (
        lambda d: sql(d, "UPDATE samples SET removed_at = 'now' WHERE id = 3"),
        r"29 live and 1 removed samples, committed were 30 live",
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
        index.repair()
        assert bytes_in(tmp_path / "index" / "segments") == before
        assert any(re.search(message, problem) for problem in index.verify())
        if "segment" in damage or "bit" in damage or "lost" in damage or "hidden" in damage:
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
    import forvalue_index.search.intact as intact

    hashed: list[str] = []
    original = intact._require_hash

    def count(path: Path, segment: Any) -> None:
        hashed.append(path.name)
        original(path, segment)

    def ask() -> list[Hit]:
        with InfluenceIndex.open(index.directory, model=lm) as again:
            return again.query(rows[0])

    monkeypatch.setattr(intact, "_require_hash", count)
    ask()
    assert len(hashed) == 4
    ask()
    assert len(hashed) == 4
    index.add({"id": "x", "prompt": "a", "response": "b"})
    ask()
    assert hashed[4:] == ["000000000030.faiss"]
    (index.directory / "checked.json").write_text("{damaged")
    ask()
    assert len(hashed) == 10


# -- creation and PostgreSQL -------------------------------------------------------------------


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

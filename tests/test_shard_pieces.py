"""A sharded index that is built piece by piece: learn, build --shard, attach."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers.cli import run_well
from helpers.indexes import SETTINGS

from forvalue_index import InfluenceIndex
from forvalue_index.cli import main
from forvalue_index.errors import (
    CorruptIndexError,
    ForvalueError,
    IndexMissingError,
    InputError,
    KeyConflictError,
    LockedError,
    RowError,
)
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row
from forvalue_index.shards.store import open_or_create_shard
from forvalue_index.store.manifest import read_manifest, shard_of

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture
def learned(tmp_path: Path, rows: list[Row], lm: LanguageModel) -> Path:
    """An index that waits for its three shards."""
    assert InfluenceIndex.learn(tmp_path / "i", rows, lm, 3, **SETTINGS) is None
    return tmp_path / "i"


def fill(directory: Path, rows: Any, lm: LanguageModel, *numbers: int) -> list[int]:
    """Builds shards; returns how many rows each got."""
    return [
        InfluenceIndex.build_shard(directory, rows, f"{n}/3", lm, **SETTINGS).added for n in numbers
    ]


def all_hits(index: InfluenceIndex, row: Row) -> list[tuple[str, float]]:
    return [(hit.key, hit.score) for hit in index.query(row, k=100)]


def test_pieces_are_what_one_build_makes(
    tmp_path: Path, learned: Path, rows: list[Row], lm: LanguageModel
) -> None:
    counts = fill(learned, rows, lm, 2, 0, 1)
    assert sum(counts) == 30
    assert counts[1] == sum(shard_of(row["id"], 3) == 0 for row in rows)
    assert InfluenceIndex.attach(learned) == []
    with (
        InfluenceIndex.build(tmp_path / "one", rows, lm, **SETTINGS)[0] as one,
        InfluenceIndex.open(learned, model=lm) as index,
    ):
        # Alone, rows are encoded in other batches, which changes the last digits.
        found, expected = all_hits(index, rows[0]), all_hits(one, rows[0])
        assert [key for key, _ in found] == [key for key, _ in expected]
        assert [score for _, score in found] == pytest.approx([s for _, s in expected], rel=1e-2)
        assert index.store.fingerprint == one.store.fingerprint
        assert index.verify() == []
        assert (index.add(rows).skipped, index.add(rows).added) == (30, 0)


def test_a_shard_goes_on_where_it_was_killed(
    learned: Path, rows: list[Row], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forvalue_index.store.writer import Writer

    commit = Writer.commit

    def dies_after_one(self: Writer, *arguments: Any) -> None:
        monkeypatch.setattr(Writer, "commit", lambda *_: pytest.fail("dies"))
        commit(self, *arguments)

    monkeypatch.setattr("forvalue_index.pipeline.add.CHUNK", 3)
    monkeypatch.setattr(Writer, "commit", dies_after_one)
    with pytest.raises(pytest.fail.Exception):
        fill(learned, rows, lm, 1)
    monkeypatch.setattr(Writer, "commit", commit)
    report = InfluenceIndex.build_shard(learned, rows, "1/3", lm, **SETTINGS)
    assert report.skipped == 3
    assert report.added == sum(shard_of(row["id"], 3) == 1 for row in rows) - 3 > 0


def test_a_shard_that_was_killed_before_it_was_taught(
    learned: Path, rows: list[Row], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("forvalue_index.shards.store.teach", lambda *_: pytest.fail("dies"))
        with pytest.raises(pytest.fail.Exception):
            fill(learned, rows, lm, 1)
    with (
        InfluenceIndex.open(learned / "shards" / "0001", model=lm) as shard,
        pytest.raises(InputError, match="is a shard, which learns nothing by itself"),
    ):
        shard.add([row for row in rows if shard_of(row["id"], 3) == 1])
    fill(learned, rows, lm, 0, 1, 2)
    assert InfluenceIndex.attach(learned) == []


def test_an_index_that_lacks_shards_says_which(
    learned: Path, rows: list[Row], lm: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    fill(learned, rows, lm, 0, 1)
    with pytest.raises(IndexMissingError, match=r"shard 0 of 3 is not attached .* --shard 0/3"):
        InfluenceIndex.open(learned)
    assert InfluenceIndex.attach(learned) == [2]
    with pytest.raises(IndexMissingError, match="shard 2 of 3 is not attached"):
        InfluenceIndex.open(learned)
    with InfluenceIndex.open(learned, model=lm, partial=True) as index:
        keys = {key for key, _ in all_hits(index, rows[0])}
        assert keys == {row["id"] for row in rows if shard_of(row["id"], 3) != 2}
    assert "answering without shard 2 of 3" in caplog.text


def test_a_shard_without_rows_is_a_shard(learned: Path, rows: list[Row], lm: LanguageModel) -> None:
    few = [row for row in rows if shard_of(row["id"], 3) != 1]
    assert fill(learned, few, lm, 0, 1, 2)[1] == 0
    assert InfluenceIndex.attach(learned) == []
    with InfluenceIndex.open(learned, model=lm) as index:
        assert len(all_hits(index, rows[0])) == len(index) == len(few)
        assert index.verify() == []


def test_shards_come_from_copies(
    tmp_path: Path, learned: Path, rows: list[Row], lm: LanguageModel
) -> None:
    copies = [tmp_path / f"scratch{n}" for n in range(3)]
    for number, copy in enumerate(copies):
        shutil.copytree(learned, copy)
        fill(copy, rows, lm, number)
    assert InfluenceIndex.attach(learned, copies[:1]) == [1, 2]
    with pytest.raises(InputError, match=r"has no shard that .* it lacks shards \[1, 2\]"):
        InfluenceIndex.attach(learned, copies[:1])
    with open_or_create_shard(copies[1], 1).writer.lock(), pytest.raises(LockedError):
        InfluenceIndex.attach(learned, copies[1:])
    assert InfluenceIndex.attach(learned, copies[1:]) == []
    with InfluenceIndex.open(learned, model=lm) as index:
        assert len(index) == 30
        assert index.verify() == []
    assert not list(learned.rglob("*.copying"))


def test_shards_of_another_index_are_refused(
    tmp_path: Path, learned: Path, rows: list[Row], lm: LanguageModel
) -> None:
    InfluenceIndex.learn(tmp_path / "other", rows[:20], lm, 3, **SETTINGS)
    fill(tmp_path / "other", rows, lm, 0)
    with pytest.raises(InputError, match="was not made from"):
        InfluenceIndex.attach(learned, [tmp_path / "other"])
    shutil.copytree(tmp_path / "other" / "shards" / "0000", learned / "shards" / "0000")
    with pytest.raises(CorruptIndexError, match=r"is not shard 0 of 3 of this index .*vectoriser"):
        InfluenceIndex.attach(learned)


@pytest.mark.parametrize(
    ("shard", "error", "message"),
    [
        ("3/3", InputError, "'3/3' is no shard"),
        ("1/4", IndexMissingError, "holds 3 shards, not 4"),
    ],
)
def test_a_shard_that_is_none_is_refused(
    learned: Path,
    rows: list[Row],
    lm: LanguageModel,
    shard: str,
    error: type[ForvalueError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        InfluenceIndex.build_shard(learned, rows, shard, lm, **SETTINGS)
    with pytest.raises(IndexMissingError, match="is not empty"):
        InfluenceIndex.learn(learned, rows, lm, 3, **SETTINGS)
    with pytest.raises(IndexMissingError, match=r"is not an index of shards.*learn --shards 3"):
        InfluenceIndex.build_shard(learned / "x", rows, "1/3", lm, **SETTINGS)


def test_bad_rows_and_keys_twice_are_found_by_their_shard(
    learned: Path, rows: list[Row], lm: LanguageModel
) -> None:
    number = shard_of(rows[4]["id"], 3)
    with pytest.raises(KeyConflictError, match="row 31: key 'row-4' already occurs at row 5"):
        fill(learned, [*rows, rows[4]], lm, number)
    bad, failed = [*rows, {"id": 7}], []
    for n in range(3):
        try:
            fill(learned, bad, lm, n)
        except RowError as error:
            failed.append(str(error))
    assert len(failed) == 1
    assert "row 31" in failed[0]


@pytest.fixture
def folder(
    tmp_path: Path, model_dir: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    (tmp_path / "model").symlink_to(model_dir)
    for n in range(2):
        lines = [json.dumps(row) for row in rows[n::2]]
        (tmp_path / f"part-{n}.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def run(command: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, command.split())
    assert done.exit_code == code, done.output
    return done.output


def test_the_commands_of_a_job_script(folder: Path) -> None:
    common = "part-*.jsonl --index i --model model --key-field id --dim 64 --sketch-dim 512"
    assert "i waits for its 2 shards" in run(f"learn {common} --shards 2")
    run(f"build {common} --shard 0/2")
    assert "i still lacks shards 1" in run("attach --index i")
    assert "shard 1 of 2 is not attached" in run("query --index i --prompt a --response b", 1)
    found = run("query --index i --prompt a --response b --partial --json -k 30")
    assert len(found.splitlines()) in range(5, 29)
    assert "holds an index made with other settings (dim: 64)" in run(
        f"build {common.replace('64', '32')} --shard 1/2", 1
    )
    run(f"build {common} --shard 1/2")
    assert "i has all its shards" in run("attach --index i")
    assert "30 samples, all sound" in run("verify --index i")
    assert json.loads(run("info --index i --json"))["shards"] == 2
    assert "30 samples added" in run(f"build {common.replace('index i', 'index j')} --shards 2")
    assert read_manifest(folder / "j").attached == (0, 1)
    assert "--shard goes without" in run(f"build {common} --shard 1/2 --shards 2", 2)
    assert "give --shards N" in run(f"learn {common}", 2)


def test_the_job_script_of_the_documentation(folder: Path) -> None:
    """It is run by bash as it stands in the page; of its 64 shards, three are made here."""
    page = (Path(__file__).parents[1] / "docs" / "shards.md").read_text()
    [script] = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH .*?)```", page, re.DOTALL)
    (learn,) = re.findall(r"^forvalue learn .*--shards 64$", page, re.MULTILINE)
    (folder / "data").mkdir()
    for part in folder.glob("part-*.jsonl"):
        part.rename(folder / "data" / part.name)
    (folder / "my-model").symlink_to(folder / "model")
    (folder / "bin").mkdir()
    (folder / "bin" / "forvalue").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (folder / "bin" / "forvalue").chmod(0o755)

    def by_bash(text: str, **variables: str) -> str:
        """Runs the command that a script gives, in this process."""
        known = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"} | variables
        done = subprocess.run(
            ["bash", "-euc", text], env=known, capture_output=True, text=True, check=True
        )
        arguments = [*done.stdout.splitlines(), "--dim", "64", "--sketch-dim", "512"]
        return run_well(*arguments)

    by_bash(learn.replace("--shards 64", "--shards 3"))
    for task in (2, 0, 0, 1):  # one of them is queued again
        by_bash(script.replace("/64", "/3"), SLURM_ARRAY_TASK_ID=str(task))
    run("attach --index my.shards")
    with InfluenceIndex.open(folder / "my.shards") as index:
        assert len(index) == 30 and index.verify() == []
        assert [len(shard) > 0 for shard in index.store.shards] == [True] * 3

"""Results that are written to URLs: with fsspec's own memory."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from helpers.cli import assert_one_line, run, run_well, write
from helpers.indexes import exported
from huggingface_hub import HfFileSystem

from forvalue_index import InfluenceIndex
from forvalue_index.data.upload import destination_of, written
from forvalue_index.data.writers import write_rows
from forvalue_index.errors import InputError, StorageError
from forvalue_index.records import Row

TARGETS: list[Row] = [{"prompt": "a b", "response": " c"}, {"prompt": "x", "response": " y"}]


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    for name in files.ls("/"):
        files.rm(name["name"], recursive=True)


@pytest.fixture
def asked(index: InfluenceIndex, tmp_path: Path) -> tuple[Any, ...]:
    return ("--index", index.directory, "--data", write(tmp_path / "targets.jsonl", TARGETS))


def test_what_commands_write_is_at_the_url(
    memory: Any, index: InfluenceIndex, asked: tuple[Any, ...], tmp_path: Path
) -> None:
    here = tmp_path / "values.jsonl"
    run_well("score", *asked, "--output", here)
    run_well("score", *asked, "--output", "memory://out/values.jsonl")
    assert memory.cat("/out/values.jsonl") == here.read_bytes() and here.stat().st_size > 3000
    run_well(
        "select", *asked, "--budget", 5, "--output", "memory://out/chosen.csv",
        "--dataset", "memory://out/kept.parquet", "--report", "memory://out/report.json",
    )  # fmt: skip
    assert len(memory.cat("/out/chosen.csv").splitlines()) == 6
    kept = pyarrow.parquet.read_table(io.BytesIO(memory.cat("/out/kept.parquet")))
    assert sum(kept["keep"].to_pylist()) == 5 and len(kept) == 30
    assert json.loads(memory.cat("/out/report.json"))["chosen"] == 5
    run_well(
        "audit", *asked[:2], "--top", 3,
        "--output", "memory://out/found.jsonl", "--html", "memory://out/page.html",
    )  # fmt: skip
    assert memory.cat("/out/found.jsonl") and b"<html" in memory.cat("/out/page.html")
    run_well(
        "export", *asked[:2],
        "--vectors", "memory://out/v.npy", "--rows", f"file://{tmp_path}/rows.jsonl",
    )  # fmt: skip
    rows, vectors = exported(index, tmp_path)
    assert np.array_equal(np.load(io.BytesIO(memory.cat("/out/v.npy"))), vectors)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_a_chart_is_at_the_url(
    memory: Any, asked: tuple[Any, ...], rows: list[Row], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    data = write(tmp_path / "queries.jsonl", rows[:3])
    asked = ("evaluate", "recall", *asked[:2], "--data", data, "--gold-field", "id", "--plot")
    run_well(*asked, "memory://out/chart.png")
    assert memory.cat("/out/chart.png").startswith(b"\x89PNG")
    message = "is not on this machine: give --allow-remote to write there"
    assert_one_line(run(*asked, "s3://bucket/chart.png"), message)
    assert_one_line(run(*asked, "memory://out/chart.jpg"), "must end in .png")


def test_a_system_without_transactions_is_written_to(memory: Any) -> None:
    """As that of the hub, whose files are one commit each."""
    with pytest.raises(NotImplementedError):
        _ = HfFileSystem().transaction

    class Plain(MemoryFileSystem):
        protocol = ("plain",)

        @property
        def transaction(self) -> Any:
            raise NotImplementedError

    fsspec.register_implementation("plain", Plain, clobber=True)
    with written("plain://out/a.txt", allow_remote=True) as file:
        file.write_text("all of it")
    assert fsspec.filesystem("plain").cat("plain://out/a.txt") == b"all of it"


def test_keys_are_read_from_a_url(memory: Any, index: InfluenceIndex) -> None:
    memory.pipe("/in/drop.txt", b"row-1\r\nrow-2\n\nnothing\n")
    asked = ("remove", "--index", index.directory, "--keys-file")
    found = run(*asked, "memory://in/drop.txt")
    assert len(index) == 28
    assert "1 key not found" in found.stderr
    memory.pipe("/in/bad.txt", b"\xff")
    for url, message in (
        ("memory://in/bad.txt", "memory://in/bad.txt cannot be read (UnicodeDecodeError"),
        ("memory://in/none.txt", "memory://in/none.txt cannot be read (FileNotFoundError"),
        ("s3://bucket/drop.txt", "is not on this machine: give --allow-remote to fetch it"),
    ):
        assert_one_line(run(*asked, url), message)
    assert len(index) == 28


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/values.jsonl", "is not on this machine: give --allow-remote to write there"),
        ("https://example.org/values.jsonl", "nothing can be written to a web address"),
        ("memory://out/values.txt", "must end in .jsonl, .csv, .parquet"),
    ],
)
def test_nothing_is_connected_unasked_and_nothing_run_in_vain(
    asked: tuple[Any, ...], url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InfluenceIndex, "score", lambda *_, **__: pytest.fail("it ran"))
    assert_one_line(run("score", *asked, "--output", url), message)


def test_the_index_asks_before_it_writes_elsewhere(index: InfluenceIndex, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allow_remote=True"):
        index.export(tmp_path / "v.npy", "gs://bucket/rows.jsonl")
    assert not (tmp_path / "v.npy").exists()


def test_a_url_never_has_half_of_a_file(memory: Any) -> None:
    memory.pipe("/out/a.jsonl", b"before")

    def broken() -> Iterator[Row]:
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), written("memory://out/a.jsonl") as file:
        folder = file.parent
        write_rows(file, broken())
    assert memory.cat("/out/a.jsonl") == b"before" and not folder.exists()


def test_what_cannot_be_sent_stays_here(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(self: MemoryFileSystem, *_: object) -> None:
        with self.open("/out/a.jsonl", "wb") as file:
            file.write(b"half")
            raise PermissionError("not yours")

    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    with (
        pytest.raises(StorageError, match=r"memory://out/a\.jsonl cannot be written") as raised,
        written("memory://out/a.jsonl") as file,
    ):
        write_rows(file, [{"a": 1}])
    assert not memory.exists("/out/a.jsonl")
    kept = Path(str(raised.value).rpartition(" is in ")[2])
    assert kept == file and kept.read_text() == '{"a": 1}\n'
    kept.unlink()
    kept.parent.rmdir()


def test_paths_are_no_urls() -> None:
    assert destination_of("file:///a/b.csv") == Path("/a/b.csv")
    assert destination_of("a/b.csv") == Path("a/b.csv")
    assert destination_of("s3://a/b.csv") == "s3://a/b.csv"

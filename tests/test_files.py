"""What is written is there whole or not at all; what is read is a file, or a pipe that ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.faults import no_file_over, no_hang
from helpers.indexes import NEW, SETTINGS

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.analysis.evaluate.plots import bars
from forvalue_index.catalog.address import name_catalog
from forvalue_index.cli import main
from forvalue_index.data.ingest import Rejects
from forvalue_index.data.sources import open_rows
from forvalue_index.data.writers import write_rows, write_text
from forvalue_index.errors import ForvalueError, RowError, StorageError, one_line
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row
from forvalue_index.search.ann_files import read_info, write_info
from forvalue_index.search.segment import write_segment
from forvalue_index.system.files import (
    atomic_write,
    open_input,
    open_own,
    open_regular,
    require_no_special,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- written whole -----------------------------------------------------------------------------


def write(path: Path, data: bytes = b"new", **options: Any) -> None:
    with atomic_write(path, **options) as file:
        file.write(data)


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_write(path, mode=0o600) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o600
    with atomic_write(path, text=True) as file:
        file.write("é\udc80\n")
    assert path.read_bytes() == b"\xc3\xa9?\n"
    write(path, named=lambda: tmp_path / "b")
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("step", ["write", "os.fsync", "os.replace"])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if step != "write":
        monkeypatch.setattr(step, full)
    with pytest.raises(OSError), no_file_over(1000 if step == "write" else 1 << 20):
        write(path, b"x" * 100_000)
    assert names(tmp_path) == ["a"] and path.read_bytes() == b"old"


def test_the_name_is_safe_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", noted)
    write(tmp_path / "a")
    assert synced[0].startswith(str(tmp_path / "a.")) and synced[1:] == [str(tmp_path)]


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_only_a_regular_file_is_replaced(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "a", tmp_path / "target"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    if kind == "link":
        target.write_bytes(b"old")
    before = names(tmp_path)
    with pytest.raises(OSError, match="it is not a regular file"):
        write(path)
    assert names(tmp_path) == before
    assert kind != "link" or target.read_bytes() == b"old"


class _Figure:
    mean, se = 0.5, 0.1


def _save_rejects(path: Path) -> None:
    with Rejects("skip") as rejects:
        rejects.add(RowError("rows.jsonl:1", "x" * 5000), None)
        rejects.save(path)


ROWS: list[dict[str, Any]] = [{"a": f"text {i}" * 20, "b": i} for i in range(2000)]
WRITERS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lambda path: write_rows(path, ROWS),
    "rows.csv": lambda path: write_rows(path, ROWS),
    "rows.parquet": lambda path: write_rows(path, [{"a": os.urandom(99).hex()} for _ in ROWS]),
    "page.html": lambda path: write_text(path, "x" * 100_000),
    "plot.png": lambda path: bars(path, {"a": _Methods()}, {"figure": "b"}, "title"),
    "rejects.jsonl": _save_rejects,
    "a.faiss": lambda path: write_segment(
        path.parent, path.name, np.arange(99), np.ones((99, 99), np.float32), 16
    ),
}


class _Methods:
    figure = _Figure()


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("what was there")
    if name == "rows.parquet":
        pytest.importorskip("pyarrow")
    if name == "plot.png":
        pytest.importorskip("matplotlib")
    # Some spool their rows into a file first, which has to find room.
    limit = {"rows.csv": 250_000, "rows.parquet": 150_000, "rejects.jsonl": 4000}.get(name, 1000)
    with pytest.raises((StorageError, OSError)), no_file_over(limit):
        WRITERS[name](path)
    assert names(tmp_path) == [name] and path.read_text() == "what was there"
    WRITERS[name](path)
    assert names(tmp_path) == [name] and path.stat().st_size > limit


def test_a_full_disk_leaves_the_page_of_an_explanation(
    index: InfluenceIndex, tmp_path: Path, model_dir: Path
) -> None:
    index.close()
    page = tmp_path / "out" / "page.html"
    page.parent.mkdir()
    command = ["explain", "--index", str(index.directory), "--model", str(model_dir)]
    command += ["--prompt", "a", "--response", "bc", "--html", str(page)]
    for before in (None, "what was there"):
        if before is not None:
            page.write_text(before)
        with no_file_over(1000):
            done = CliRunner().invoke(main, command)
        assert done.exit_code == 1 and done.stderr.count("\n") == 1, done.output
        assert f"Error: {page} cannot be written: File too large" in done.stderr
        assert names(page.parent) == ([] if before is None else ["page.html"])
        assert before is None or page.read_text() == before
    assert CliRunner().invoke(main, command).exit_code == 0
    assert page.read_text().rstrip().endswith("</html>")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", [["info"], ["list"], ["list", "--json"]])
def test_what_is_printed_to_a_full_disk_is_one_line_of_error(
    index: InfluenceIndex, command: list[str]
) -> None:
    index.close()
    command = [sys.executable, "-m", "forvalue_index", *command, "--index", str(index.directory)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: what is printed cannot be written (No space left on device): make room and run "
        "the command again\n"
    )


def test_a_full_disk_leaves_both_files_of_an_export(
    lm: LanguageModel, rows: list[Row], tmp_path: Path
) -> None:
    vector = VectorConfig(dim=8, sketch_dim=512)  # so that the vectors are shorter than the rows
    index, _ = InfluenceIndex.build(tmp_path / "index", rows, lm, vector=vector)
    folder = tmp_path / "out"
    folder.mkdir()
    vectors, lines = folder / "v.npy", folder / "r.jsonl"
    for path in (vectors, lines):
        path.write_text("what was there")
    for limit in (1000, 2000):  # too little for the first, and for the second
        with pytest.raises(StorageError), no_file_over(limit):
            index.export(vectors, lines)
        assert names(folder) == ["r.jsonl", "v.npy"]
        assert {path.read_text() for path in (vectors, lines)} == {"what was there"}
    assert index.export(vectors, lines) == (30, 8)
    assert vectors.stat().st_size < 2000 < lines.stat().st_size
    index.close()


def test_an_export_that_cannot_be_says_why(index: InfluenceIndex, tmp_path: Path) -> None:
    link = tmp_path / "link.npy"
    link.symlink_to(tmp_path / "v.npy")
    for vectors in (link, tmp_path / "not there" / "v.npy"):
        with pytest.raises(StorageError, match=r"cannot be written .* put that right and run"):
            index.export(vectors, tmp_path / "r.jsonl")


def test_a_full_disk_leaves_what_a_derived_index_is(index: InfluenceIndex) -> None:
    index.optimize("SQ8")
    folder = index.directory / "derived"
    info, before = read_info(folder, "dot"), names(folder)
    with pytest.raises(OSError), no_file_over(100):
        write_info(folder, info)
    assert read_info(folder, "dot") == info and names(folder) == before


def test_without_room_a_catalogue_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    name_catalog("postgresql://h/one")
    with pytest.raises(StorageError, match="set FORVALUE_CATALOG"), no_file_over(30):
        name_catalog("postgresql://h/two")
    file = tmp_path / "forvalue" / "catalogs"
    assert file.read_text() == "postgresql://h/one\n" and len(names(file.parent)) == 1


# -- pipes and devices -------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("forvalue_index.system.files.PIPE_SECONDS", 0.2)
    with no_hang():
        yield


@pytest.fixture
def pipe(tmp_path: Path, impatient: None) -> Path:
    """A pipe into which nobody writes."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    return tmp_path / "pipe.jsonl"


def test_a_pipe_without_a_writer_is_an_error(pipe: Path) -> None:
    with pytest.raises(OSError, match="nothing writes to this pipe"):
        open_input(pipe)
    for opened in (open_regular, open_own):
        with pytest.raises(OSError, match="it is not a regular file"):
            opened(pipe)
        with pytest.raises(OSError):
            opened(Path("/dev/null"))


def test_every_option_that_names_a_file_refuses_a_pipe_without_a_writer(
    pipe: Path, tmp_path: Path, index: InfluenceIndex, model_dir: Path
) -> None:
    index.close()
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(NEW) + "\n")
    at, model = ["--index", str(index.directory)], ["--model", str(model_dir)]
    build = ["build", "--index", str(tmp_path / "new"), *model]
    for command in (
        [*build, str(pipe)],
        [*build, str(pipe.with_name("pipe*"))],
        [*build, str(data), "--template", str(pipe)],
        [*build, str(data), "--chat", "--chat-template", str(pipe)],
        ["add", str(pipe), *at],
        ["remove", *at, "--keys-file", str(pipe)],
        ["query", *at, "--data", str(pipe)],
        ["score", *at, "--data", str(pipe)],
        ["preview", str(pipe), *model],
    ):
        done = CliRunner().invoke(main, command)
        assert done.exit_code in (1, 2), (command, done.output)
        assert "nothing writes to this pipe" in done.output, (command, done.output)
    done = CliRunner().invoke(main, [*build, "/dev/zero"])
    assert done.exit_code == 1 and "/dev/zero is not a regular file" in done.output


def test_a_pipe_with_a_writer_is_read(
    pipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_index.system.files.PIPE_SECONDS", 20)

    def late() -> None:
        time.sleep(0.3)
        with pipe.open("w") as out:
            time.sleep(0.3)  # open, and nothing to read yet
            out.write(json.dumps(NEW) + "\n")

    writer = threading.Thread(target=late)
    writer.start()
    assert [row for _, row in open_rows(str(pipe)).outcomes()] == [NEW]
    writer.join()
    reading, writing = os.pipe()
    os.write(writing, json.dumps(NEW).encode())
    os.close(writing)  # as <(...) whose program has ended
    assert [row for _, row in open_rows(f"/dev/fd/{reading}").outcomes()] == [NEW]
    os.close(reading)


def test_a_pipe_among_the_files_of_a_folder_is_an_error(
    pipe: Path, tmp_path: Path, model_dir: Path, lm: LanguageModel
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in model_dir.iterdir():
        (model / path.name).symlink_to(path)  # as in the hub's cache
    with InfluenceIndex.create(tmp_path / "good", model, **SETTINGS):
        pass
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).rename(model / "kept")
        os.mkfifo(model / name)
        with pytest.raises(ForvalueError, match="it is not a regular file"):
            InfluenceIndex.create(tmp_path / "i", model, **SETTINGS)
        (model / "kept").replace(model / name)
    (model / ".git").mkdir()
    os.mkfifo(model / ".git" / "daemon.ipc")  # a clone that git watches
    require_no_special(model)
    folder = tmp_path / "data"
    folder.mkdir()
    os.mkfifo(folder / "state.json")
    (folder / "dataset_dict.json").write_text("{}")
    with pytest.raises(ForvalueError, match="it is not a regular file"):
        open_rows(str(folder))


def test_a_pipe_in_the_place_of_an_adapter_or_an_image_is_an_error(
    pipe: Path, tmp_path: Path, model_dir: Path
) -> None:
    from forvalue_index import ModelConfig
    from forvalue_index.picture import read

    with pytest.raises(RowError, match="it is not a regular file"):
        read(pipe, "row 1")
    pytest.importorskip("peft")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    os.mkfifo(adapter / "adapter_config.json")
    config = ModelConfig(str(model_dir), adapters=(str(adapter),))
    with pytest.raises(ForvalueError, match="it is not a regular file"):
        InfluenceIndex.create(tmp_path / "i", config, format=FormatConfig())


@pytest.mark.parametrize("part", [" ", "x://u:", "\n", " \n", "pwd", "password=", "a@"])
def test_a_message_costs_time_linear_in_its_length(part: str) -> None:
    start = time.process_time()
    assert "\n" not in one_line("a" + part * 200_000 + "b")
    assert time.process_time() - start < 5  # backtracking takes minutes

"""Tables and data sets: the same rows from every reader."""

from __future__ import annotations

import datetime
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.cli import run
from helpers.faults import no_file_over
from helpers.indexes import SMALL, exported
from helpers.row_files import WRITERS, to_csv, to_folder, to_jsonl

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.data import hub
from forvalue_index.data.sources import open_rows
from forvalue_index.errors import DependencyError, InputError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row


@pytest.fixture(autouse=True)
def quiet(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf")
    datasets.disable_progress_bars()


@pytest.fixture()
def texts(rows: list[Row]) -> list[Row]:
    """Rows whose values are all text: what every kind of file can hold."""
    tricky = {"id": 'é,"\t', "prompt": 'two\nlines, "quoted"', "response": " a;b\tc", "n": ""}
    return [{name: str(value) for name, value in row.items()} for row in rows] + [tricky]


# -- the same rows from every reader -----------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_every_reader_gives_the_same_index(
    kind: str, tmp_path: Path, lm: LanguageModel, texts: list[Row]
) -> None:
    plain = to_jsonl(tmp_path / "rows.jsonl", texts)
    path = WRITERS[kind](tmp_path / f"rows.{kind}", texts)
    assert [row for _, row in open_rows(path)] == texts
    expected, report = InfluenceIndex.build(tmp_path / "a", plain, lm, vector=SMALL)
    found, same = InfluenceIndex.build(tmp_path / "b", path, lm, vector=SMALL)
    assert same == report
    with expected, found:
        rows, vectors = exported(expected, tmp_path)
        other_rows, other_vectors = exported(found, tmp_path)
        assert len(rows) == len(texts)
        assert other_rows == rows
        assert np.array_equal(other_vectors, vectors)
        assert found.add(plain).added == 0  # the keys meet
        longer = found.add([*texts, texts[0] | {"n": "other"}])  # and could have failed to
        assert (longer.added, longer.skipped) == (1, len(texts))


def test_numbers_are_text_in_csv_alone(tmp_path: Path, rows: list[Row]) -> None:
    typed = [WRITERS[kind](tmp_path / f"rows.{kind}", rows) for kind in WRITERS if "sv" not in kind]
    for path in typed:
        assert [row for _, row in open_rows(path)] == rows
    ((_, first), *_) = open_rows(to_csv(tmp_path / "rows.csv", rows))
    assert first == rows[0] | {"n": "0"}


# -- tables and data sets ----------------------------------------------------------------------


def test_rows_of_tables_have_the_form_of_json(tmp_path: Path) -> None:
    at = datetime.datetime(2024, 5, 6, 7, 8, 9, 1000)
    row = {"text": "a", "at": at, "raw": b"\xff", "x": float("nan"), "turns": [{"role": "user"}]}
    path = tmp_path / "a.parquet"
    table = pa.Table.from_pylist([row, {"text": "b"}])
    table = table.append_column("ns", pa.array([at, None], pa.timestamp("ns", "UTC")))
    pq.write_table(table.append_column("d", pa.array(["x", "y"]).dictionary_encode()), path)
    assert list(open_rows(path)) == [
        (
            f"{path}:row 1",
            {
                "text": "a",
                "at": "2024-05-06T07:08:09.001000",
                "raw": {"bytes": "/w=="},
                "x": None,
                "turns": [{"role": "user"}],
                "ns": "2024-05-06T07:08:09.001000+00:00",
                "d": "x",
            },
        ),
        (
            f"{path}:row 2",
            {"text": "b", "at": None, "raw": None, "x": None, "turns": None, "ns": None, "d": "y"},
        ),
    ]


def test_a_data_set_with_a_transform_has_the_rows_that_it_makes() -> None:
    stored = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    louder = stored.with_transform(lambda batch: {"text": [x.upper() for x in batch["text"]]})
    places = "data set:row 1", "data set:row 2"
    assert list(open_rows(louder)) == list(zip(places, [{"text": "A"}, {"text": "B"}], strict=True))


def test_rows_that_are_made_anew_each_time_are_refused(tmp_path: Path, lm: LanguageModel) -> None:
    """Otherwise a vector would be of another row than the one that it is kept with."""
    numbers = itertools.count()
    rows = datasets.Dataset.from_list([{"text": f"{i}", "id": f"{i}"} for i in range(9)])
    random = rows.with_transform(
        lambda batch: batch | {"text": [f"row {next(numbers)}" for _ in batch["text"]]}
    )
    for key in (None, "id"):
        format = FormatConfig(text_field="text", key_field=key)
        with pytest.raises(InputError, match="read a second time: it has changed, or is made anew"):
            InfluenceIndex.build(tmp_path / str(key), random, lm, format=format, vector=SMALL)


def test_the_named_index_of_a_frame_is_a_column() -> None:
    frame = pd.DataFrame({"id": ["x", "y"], "text": ["a", "b"]})
    [*rows] = [row for _, row in open_rows(frame)]
    assert [row for _, row in open_rows(frame.set_index("id"))] == rows
    assert [row for _, row in open_rows(frame.iloc[::-1])] == rows[::-1]
    with pytest.raises(InputError, match="has two columns named 'id'"):
        open_rows(frame.set_index("id").assign(id=1))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
def test_damaged_tables_are_refused(kind: str, tmp_path: Path, texts: list[Row]) -> None:
    path = WRITERS[kind](tmp_path / f"a.{kind}", texts)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"no table at all, but text"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"a\.{kind} cannot be read .*: is it complete"):
            list(open_rows(path).outcomes())
    twice = pa.table([[1], [2]], names=["x", "x"])
    if kind == "parquet":
        pq.write_table(twice, path)
    else:
        new = pa.ipc.new_file if kind == "feather" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as file, new(file, twice.schema) as writer:
            writer.write_table(twice)
    with pytest.raises(InputError, match="has two columns named 'x'"):
        list(open_rows(path))


def test_a_folder_with_splits(tmp_path: Path, texts: list[Row]) -> None:
    parts = {"train": texts[:3], "test": texts[3:]}
    saved = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(part) for name, part in parts.items()}
    )
    saved.save_to_disk(tmp_path / "both")
    for source in (tmp_path / "both", saved):  # on disk and in memory
        for split, expected in parts.items():
            assert [row for _, row in open_rows(source, split=split)] == expected
        with pytest.raises(InputError, match="has the splits train, test; choose one with --split"):
            open_rows(source)
        with pytest.raises(InputError, match="'dev' is not one of them"):
            open_rows(source, split="dev")
    one = to_folder(tmp_path / "one", texts)
    with pytest.raises(InputError, match="has no splits: leave --split out"):
        open_rows(one, split="train")
    (one / "state.json").write_text("{")
    with pytest.raises(InputError, match="cannot load the data set"):
        open_rows(one)


def test_data_sets_in_memory_keep_their_images_as_bytes() -> None:
    picture = {"bytes": b"\x89PNG", "path": "a.png"}
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"text": ["a"], "image": [picture]}, features=features)
    expected = {"text": "a", "image": {"bytes": "iVBORw==", "path": "a.png"}}
    for data in (dataset, dataset.to_iterable_dataset()):
        rows = open_rows(data)
        assert list(rows) == list(rows) == [("data set:row 1", expected)]


def test_a_data_set_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[Row]
) -> None:
    # The hub is not there: the library's own loader reads a folder in its place.
    folder = tmp_path / "on-the-hub"
    folder.mkdir()
    to_jsonl(folder / "train.jsonl", texts)
    to_jsonl(folder / "test.jsonl", texts[:1])
    load, asked = datasets.load_dataset, []

    def from_folder(name: str, *arguments: Any, **options: Any) -> Any:
        asked.append((name, *arguments, options))
        return load(str(folder), *arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    rows = open_rows("org/set", split="train", subset="default")
    assert asked == [("org/set", "default", {"split": "train"})]
    assert [row for _, row in rows] == [row for _, row in rows] == texts
    assert next(iter(rows))[0] == "org/set:row 1"
    assert len(list(open_rows("org/set", split="train[:2]"))) == 2
    with pytest.raises(InputError, match="org/set has the splits train, test; choose one"):
        open_rows("org/set")
    with pytest.raises(InputError, match="cannot load the data set org/set: Unknown split"):
        open_rows("org/set", split="dev")
    with pytest.raises(InputError, match="cannot load the data set org/set: BuilderConfig 'b'"):
        open_rows("org/set", subset="b")


def test_a_data_set_that_is_not_there_or_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[Row]
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot load the data set no/such"):
        open_rows("no/such")
    folder = to_folder(tmp_path / "folder", texts)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("no/such", folder):
        with pytest.raises(DependencyError, match=r'pip install "forvalue-index\[datasets\]"'):
            open_rows(name)
    assert not hub.is_dataset({})


def test_the_command_line_reads_a_split(tmp_path: Path, model_dir: Path, rows: list[Row]) -> None:
    both = {name: datasets.Dataset.from_list(rows[at:][:9]) for name, at in (("a", 0), ("b", 9))}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "set")
    index = ("--index", tmp_path / "i")
    made = ("--model", model_dir, "--dim", 64, "--sketch-dim", 512)
    assert "choose one with --split" in run("build", tmp_path / "set", *index, *made).stderr
    result = run("build", tmp_path / "set", *index, *made, "--split", "a")
    assert "9 samples added" in result.stderr
    assert "9 samples added" in run("add", tmp_path / "set", *index, "--split", "b").stderr
    data = ("--data", tmp_path / "set", "--split", "b")
    assert len(run("query", *index, *data, "-k", 1, "--json").stdout.splitlines()) == 9
    result = run("evaluate", "fidelity", *index, *data, "--json")
    assert json.loads(result.stdout)["queries"] == 9


@pytest.mark.parametrize("size", [5_000, 5_000_000])  # less than a buffer, and more
def test_a_pipe_that_finds_no_room_is_one_line_that_says_what_to_do(
    size: int, tmp_path: Path, model_dir: Path
) -> None:
    line = json.dumps({"prompt": "a", "response": "b" * size})
    with no_file_over(4_000):
        made = ("--index", tmp_path / "i", "--model", model_dir)
        result = run("build", "-", *made, stdin=line)
    said = " ".join(result.stderr.split())
    assert result.exit_code == 1 and "Traceback" not in said
    assert "data that comes through a pipe cannot be stored in /" in said
    assert (
        "(File too large): set TMPDIR to a folder with more space and run the command again" in said
    )
    assert not (tmp_path / "i").exists()

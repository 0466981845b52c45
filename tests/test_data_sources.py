"""Tables and data sets, the same rows from every reader, guessed fields, and rows passed over."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, VectorConfig
from forvalue_index.cli import main
from forvalue_index.data import hub
from forvalue_index.data.columns import guess, guess_format
from forvalue_index.data.formatting import Formatter
from forvalue_index.data.readers import open_rows
from forvalue_index.errors import (
    DependencyError,
    InputError,
    KeyConflictError,
    RowError,
)
from forvalue_index.forward.model import LanguageModel, load_model
from forvalue_index.records import Row, Sample

SMALL = VectorConfig(dim=64, sketch_dim=512)
KEYED = FormatConfig(key_field="id")


@pytest.fixture(autouse=True)
def quiet(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf")
    datasets.disable_progress_bars()


@pytest.fixture()
def texts(rows: list[Row]) -> list[Row]:
    """Rows whose values are all text: what every kind of file can hold."""
    tricky = {"id": 'é,"\t', "prompt": 'two\nlines, "quoted"', "response": " a;b\tc", "n": ""}
    return [{name: str(value) for name, value in row.items()} for row in rows] + [tricky]


def to_jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def to_packed(path: Path, rows: list[Row]) -> Path:
    path.write_bytes(gzip.compress(to_jsonl(path, rows).read_bytes()))
    return path


def to_zst(path: Path, rows: list[Row]) -> Path:
    data = to_jsonl(path, rows).read_bytes()
    with pa.output_stream(str(path), "zstd") as file:
        file.write(data)
    return path


def to_json(path: Path, rows: list[Row]) -> Path:
    path.write_text(json.dumps(rows, indent=2))
    return path


def to_csv(path: Path, rows: list[Row], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def to_tsv(path: Path, rows: list[Row]) -> Path:
    return to_csv(path, rows, "\t")


def to_parquet(path: Path, rows: list[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return path


def to_arrow(path: Path, rows: list[Row], new: Callable[..., Any] = pa.ipc.new_stream) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=11)
    return path


def to_feather(path: Path, rows: list[Row]) -> Path:
    return to_arrow(path, rows, pa.ipc.new_file)


def to_folder(path: Path, rows: list[Row]) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


WRITERS: dict[str, Callable[[Path, list[Row]], Path]] = {
    "jsonl.gz": to_packed,
    "jsonl.zst": to_zst,
    "json": to_json,
    "csv": to_csv,
    "tsv": to_tsv,
    "parquet": to_parquet,
    "arrow": to_arrow,
    "feather": to_feather,
    "folder": to_folder,
}


def exported(index: InfluenceIndex, folder: Path) -> tuple[list[Row], Any]:
    """What an index holds, rows with keys and hashes, and the vectors on disk."""
    index.export(folder / "v.npy", folder / "r.jsonl")
    lines = (folder / "r.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], np.load(folder / "v.npy")


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# -- the same rows from every reader ---------------------------------------------------------------


@pytest.fixture(scope="module")
def lm(model_dir: Path) -> LanguageModel:
    return load_model(ModelConfig(str(model_dir)))


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


# -- tables and data sets --------------------------------------------------------------------------


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
        with pytest.raises(InputError, match="'dev' is none of them"):
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


# -- guessed fields --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        (
            {"prompt": "a", "response": "b"},
            {"prompt_field": "prompt", "response_field": "response"},
        ),
        ({"completion": "b", "prompt": "a"}, {"response_field": "completion"}),
        (
            {"Question": "a", "Answer": "b"},
            {"prompt_field": "Question", "response_field": "Answer"},
        ),
        ({"prompt": "a", "messages": []}, {"messages_field": "messages"}),
        ({"conversations": [{"from": "human"}]}, {"messages_field": "conversations"}),
        ({"messages": '[{"role": "user"}]'}, {"messages_field": "messages"}),
        ({"text": "a", "source": "b"}, {"text_field": "text"}),
        ({"input": "a", "output": "b"}, {"prompt_field": "input", "response_field": "output"}),
        ({"instruction": "a", "output": "b"}, {"prompt_field": "instruction"}),
    ],
)
def test_fields_are_guessed_from_their_names(row: Row, settings: Row) -> None:
    found, words = guess(row)
    assert settings.items() <= found.items()
    assert "template" not in found
    assert all(repr(name) in words for name in found.values())
    format, _ = guess_format(open_rows([row]), FormatConfig(max_length=9))
    assert format == FormatConfig(**found, max_length=9)


@pytest.mark.parametrize("row", [{"chosen": "a", "rejected": "b"}, {"messages": "a"}, {}])
def test_names_that_do_not_tell_are_refused(row: Row) -> None:
    with pytest.raises(InputError, match=r"does not show from their names .*give --prompt-field"):
        guess(row)


def test_an_instruction_is_followed_by_its_input(tmp_path: Path, lm: LanguageModel) -> None:
    rows = [
        {"instruction": "add", "input": "1 2", "output": " 3"},
        {"instruction": "hello", "input": "", "output": " you"},
        {"instruction": "hello", "input": None, "output": " you"},
    ]
    index, _ = InfluenceIndex.build(tmp_path / "i", rows, lm, vector=SMALL)
    with index:
        samples = index.samples([*rows])
    texts = [lm.tokenizer.decode(s.input_ids[~s.scored]) for s in samples]
    assert texts == ["add\n\n1 2".replace("\n", "<unk>"), "hello", "hello"]


def test_the_guess_is_printed_kept_and_overridden(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    renamed = [{"question": row["prompt"], "answer": row["response"]} for row in rows]
    path = to_csv(tmp_path / "rows.csv", renamed)
    made = ("--model", model_dir, "--dim", 64, "--sketch-dim", 512)
    result = run("build", path, "--index", tmp_path / "i", *made)
    assert result.exit_code == 0, result.stderr
    assert "Reading prompt in 'question', response in 'answer'" in result.stderr
    with InfluenceIndex.open(tmp_path / "i") as index:
        assert index.config.format.response_field == "answer"
    result = run("query", "--index", tmp_path / "i", "--data", path, "-k", 1, "--json")
    assert len(result.stdout.splitlines()) == 30
    result = run("build", path, "--index", tmp_path / "j", *made, "--text-field", "answer")
    assert result.exit_code == 0 and "Reading" not in result.stderr
    path = to_jsonl(tmp_path / "rows.jsonl", [{"a": "x", "b": "y"}])
    result = run("build", path, "--index", tmp_path / "k", *made)
    assert result.exit_code == 1
    assert "does not show from their names (a, b): give --prompt-field" in result.stderr


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


# -- rows that cannot be used ----------------------------------------------------------------------


def bad_lines(rows: list[Row]) -> tuple[str, list[tuple[int, str]]]:
    """Lines among which some are bad, in every way that is found before the model is there."""
    lines = [json.dumps(row) for row in rows]
    lines.insert(3, "{x}")
    lines.insert(7, json.dumps({"id": "no-response", "prompt": "a"}))
    lines.insert(9, json.dumps({"id": rows[20]["id"], "prompt": "a", "response": ""}))
    lines.append(json.dumps(rows[2] | {"response": "again"}))
    reasons = [
        (4, "not JSON"),
        (8, "no field 'response'"),
        (10, "field 'response' is empty"),
        (34, "key 'row-2' stands at"),
    ]
    return "\n".join(lines), reasons


def rejects_of(directory: Path) -> list[Row]:
    return [json.loads(line) for line in (directory / "rejects.jsonl").read_text().splitlines()]


def test_skipped_rows_are_listed_and_the_rest_is_as_if_they_had_never_been(
    tmp_path: Path, lm: LanguageModel, rows: list[Row]
) -> None:
    path = tmp_path / "bad.jsonl"
    lines, reasons = bad_lines(rows)
    path.write_text(lines)
    with pytest.raises(RowError, match=r"bad\.jsonl:4: not JSON"):
        InfluenceIndex.build(tmp_path / "a", path, lm, format=KEYED, vector=SMALL)
    assert not (tmp_path / "a").exists()
    settings: dict[str, Any] = {"format": KEYED, "vector": SMALL}
    index, report = InfluenceIndex.build(tmp_path / "a", path, lm, on_error="skip", **settings)
    clean, expected = InfluenceIndex.build(tmp_path / "b", rows, lm, **settings)
    with index, clean:
        assert report == replace(expected, rejected=4)
        notes = rejects_of(tmp_path / "a")
        assert [(note["file"], note["line"]) for note in notes] == [
            (str(path), line) for line, _ in reasons
        ]
        assert all(
            note["reason"].startswith(r) for note, (_, r) in zip(notes, reasons, strict=True)
        )
        assert [note["row"] and note["row"]["id"] for note in notes] == [
            *(None, "no-response", "row-20", "row-2")
        ]
        found, wanted = exported(index, tmp_path), exported(clean, tmp_path)
        assert found[0] == wanted[0]
        assert np.array_equal(found[1], wanted[1])
        assert index.verify() == []
        again = index.add(path, on_error="skip")
        assert (again.added, again.skipped, again.rejected) == (0, 30, 4)
        assert rejects_of(tmp_path / "a") == notes
        assert index.add(rows, on_error="skip").rejected == 0
        assert not (tmp_path / "a" / "rejects.jsonl").exists()


class Fussy(Formatter):
    """Refuses some rows only when it comes to tokens, as a chat template or an image may."""

    def samples(self, rows: Any) -> list[Sample]:
        for source, row in rows:
            if "bad" in row:
                raise RowError(source, "no such picture")
        return super().samples(rows)


@pytest.mark.parametrize("fit_samples", [5, 4096])
def test_rows_that_fail_later_are_skipped_too(
    fit_samples: int,
    tmp_path: Path,
    lm: LanguageModel,
    rows: list[Row],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("forvalue_index.data.labels.Formatter", Fussy)
    monkeypatch.setattr("forvalue_index.adding.CHUNK", 4)
    vector = VectorConfig(dim=32, sketch_dim=512, fit_samples=fit_samples)
    settings: dict[str, Any] = {"format": KEYED, "vector": vector}
    mixed = [x for i, row in enumerate(rows) for x in (row, row | {"id": f"bad-{i}", "bad": True})]
    with pytest.raises(RowError, match="no such picture"):
        InfluenceIndex.build(tmp_path / "a", mixed, lm, **settings)
    calls: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int, tokens: int) -> None:
        calls.append((stage, done, total))

    index, report = InfluenceIndex.build(
        tmp_path / "a", mixed, lm, on_error="skip", progress=progress, **settings
    )
    clean, _ = InfluenceIndex.build(tmp_path / "b", rows, lm, **settings)
    with index, clean:
        assert (report.added, report.rejected, report.samples) == (30, 30, 30)
        assert calls[-1] == ("encoding", 30, 30)
        found, wanted = exported(index, tmp_path), exported(clean, tmp_path)
        assert [row["key"] for row in found[0]] == [row["key"] for row in wanted[0]]
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-3, atol=1e-4)
        notes = rejects_of(tmp_path / "a")
        assert sorted(note["line"] for note in notes) == list(range(2, 61, 2))
        assert {note["reason"] for note in notes} == {"no such picture"}
        again = index.add(mixed, on_error="skip")
        assert (again.added, again.skipped, again.rejected) == (0, 30, 30)
        changed = [row | {"n": -1} | ({"bad": 1} if i == 0 else {}) for i, row in enumerate(rows)]
        updated = index.add(changed, update=True, on_error="skip")
        assert (updated.added, updated.updated, updated.rejected) == (29, 29, 1)
        assert index.get("row-0").row == rows[0]  # nothing took its place
        assert len(index) == 30


def test_nothing_is_made_of_rows_that_are_all_bad(
    tmp_path: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"none of the 2 rows can be used; the first: row 1: f"):
        InfluenceIndex.build(tmp_path / "a", [{"text": ""}, {"a": 1}], lm, on_error="skip")
    monkeypatch.setattr("forvalue_index.data.labels.Formatter", Fussy)
    rows = [{"prompt": "a", "response": "b", "bad": 1}]
    with pytest.raises(InputError, match=r"none of the rows can be used; the first: row 1: no"):
        InfluenceIndex.build(tmp_path / "a", rows, lm, on_error="skip")
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="on_error 'ignore' is not one of stop, skip"):
        InfluenceIndex.build(tmp_path / "a", rows, lm, on_error="ignore")


def test_a_row_that_json_cannot_hold_is_noted_without_it(
    tmp_path: Path, lm: LanguageModel, rows: list[Row]
) -> None:
    data = [*rows, rows[0] | {"n": float("inf")}, rows[0] | {"n": object()}]
    index, report = InfluenceIndex.build(tmp_path / "a", data, lm, vector=SMALL, on_error="skip")
    index.close()
    assert report.rejected == 2
    for note in rejects_of(tmp_path / "a"):
        assert note["file"] is None and "row" not in note
        assert note["reason"].startswith("cannot be kept as JSON")


def test_a_key_with_other_content_in_the_index_is_no_bad_row(
    tmp_path: Path, lm: LanguageModel, rows: list[Row]
) -> None:
    index, _ = InfluenceIndex.build(tmp_path / "a", rows, lm, format=KEYED, vector=SMALL)
    with index, pytest.raises(KeyConflictError, match="give --update"):
        index.add([rows[0] | {"n": -1}], on_error="skip")


def test_the_command_line_skips_and_counts(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(bad_lines(rows)[0])
    index = ("--index", tmp_path / "i")
    made = ("--model", model_dir, "--dim", 64, "--sketch-dim", 512, "--key-field", "id")
    result = run("build", path, *index, *made)
    assert result.exit_code == 1 and "bad.jsonl:4: not JSON" in result.stderr
    result = run("build", path, *index, *made, "--on-error", "skip")
    assert result.exit_code == 0, result.stderr
    said = result.stderr.replace("\n", "")
    assert (
        "30 samples added" in said
        and f"4 rejected (see {tmp_path / 'i' / 'rejects.jsonl'})" in said
    )
    assert "4 rejected" in run("add", path, *index, "--on-error", "skip").stderr

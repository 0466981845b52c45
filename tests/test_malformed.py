"""Malformed rows, tables, models and URLs: one line each, and the index unharmed."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.cli import run
from helpers.indexes import KEYED, SMALL, exported, rejects_of
from helpers.models import save_model, tiny_model
from helpers.row_files import WRITERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig
from forvalue_index.data.identity import DEEPEST, LONGEST_KEY, content_hash
from forvalue_index.data.ingest import Rejects, check_rows
from forvalue_index.data.sources import open_rows
from forvalue_index.errors import InputError, ModelError, RowError
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.records import Row

# -- rows --------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


ODD: list[Any] = [
    *(None, True, -1, 1.5, 10**5000, float("nan"), float("inf"), -0.0),
    *("", "\0", "\ud800", "a\x1b[2J\nb", "x" * 5000, "9" * 5000, "٣"),
    *([], {}, [300], {"bytes": -1}, {"bytes": [300]}, {"bytes": 10**12}, b"\xff", bytearray(2)),
    *(object(), {1, 2}, {(1, 2): 3}, {1: 2, "1": 3}, nested(DEEPEST + 5), nested(2000), endless()),
    *(np.longdouble(1), np.array([1, "a"], dtype=object), np.datetime64("2020-01-01", "ns")),
    *({"image_blake2b": 1}, [{"role": "user"}], "{{ 1/0 }}"),
]

values = st.sampled_from(range(len(ODD))).map(ODD.__getitem__)
names = st.sampled_from(
    ["id", "prompt", "response", "image", "messages", "tools", "more", "\0", ""]
)
odd_rows = st.dictionaries(names, values, max_size=4)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> Any:
    rows = [{"id": f"row-{i}", "prompt": "abc"[: i % 4], "response": f" {i}"} for i in range(12)]
    folder = tmp_path_factory.mktemp("kept")
    with InfluenceIndex.build(folder / "i", rows, lm, format=KEYED, vector=SMALL)[0] as index:
        yield index


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(odd=st.lists(odd_rows, min_size=1, max_size=4), good=st.booleans())
def test_malformed_rows_are_skipped_or_stored_and_the_rest_goes_on(
    kept: InfluenceIndex, odd: list[Row], good: bool
) -> None:
    base = {"id": f"good-{random.random()}", "prompt": "a", "response": " b"}
    rows = [base | {"id": f"{base['id']}-{i}"} | row for i, row in enumerate(odd)]
    before = len(kept)
    if good:
        rows.append(base)
    try:
        report = kept.add(rows, on_error="skip", update=True)
    except InputError as error:  # none of them
        assert str(error).startswith("none of the ") and "\n" not in str(error)
        assert len(kept) == before and not good
        return
    assert report.added + report.rejected + report.repeated + report.skipped == len(rows)
    assert not good or kept.get(base["id"]).row == base
    if report.rejected:
        assert all("\n" not in note["reason"] for note in rejects_of(kept.directory))
    assert kept.verify() == []
    assert len(list(kept.rows())) == len(kept)  # each can be read again


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "a\0b"}, r"key 'a\\x00b' holds a NUL"),
        ({"id": "k" * (LONGEST_KEY + 1)}, "has 2,001 bytes, but at most 2,000"),
        ({"more": nested(DEEPEST)}, "is nested 101 deep, but at most 100"),
        ({"more": nested(5000)}, "cannot be stored as JSON|nested"),
        ({"more": endless()}, "cannot be stored as JSON"),
        ({"more": np.longdouble(1)}, "cannot be stored as JSON"),
        ({"prompt": 10**5000}, "field 'prompt' cannot be read as text"),
        ({"more": float("inf")}, "cannot be stored as JSON"),
    ],
)
def test_what_no_database_keeps_is_found_before_anything_is_encoded(row: Row, reason: str) -> None:
    rows = open_rows([{"id": "a", "prompt": "a", "response": " b"} | row])
    with pytest.raises(RowError, match=reason), Rejects("stop") as rejects:
        check_rows(rows, KEYED, rejects, None)


def test_what_is_just_kept(kept: InfluenceIndex) -> None:
    row = {"id": "k" * LONGEST_KEY, "prompt": "a", "response": " b", "more": nested(DEEPEST - 1)}
    assert kept.add([row]).added == 1
    assert kept.get(row["id"]).row == row
    kept.remove([row["id"]])


def test_too_large_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forvalue_index.data.identity.LARGEST_ROW", 100)
    content_hash({"a": "x" * 80})
    with pytest.raises(RowError, match="has 108 characters as JSON, but at most 100 are stored"):
        content_hash({"a": "x" * 100})


def test_a_class_with_very_many_digits_is_none(tmp_path: Path) -> None:
    from forvalue_index.data.labels import ClassFormatter

    made = ClassFormatter(None, FormatConfig(text_field="t", label_field="l"), 9, {"a": 0})
    with pytest.raises(RowError, match="is not one of the model's 1 classes"):
        made._label({"l": "9" * 5000}, "row 1")


# -- tables ------------------------------------------------------------------------------------

FLIPPED = """
import json, random, sys
from pathlib import Path
from forvalue_index.data.sources import open_rows
from forvalue_index.errors import InputError
path, out = Path(sys.argv[1]), Path(sys.argv[1]).with_stem("flipped")
data, draw, found = path.read_bytes(), random.Random(0), dict(error=0, row=0, whole=0)
for _ in range(250):
    changed = bytearray(data)
    for place in draw.choices(range(len(data)), k=draw.choice([1, 1, 4])):
        changed[place] ^= 1 << draw.randrange(8)
    out.write_bytes(changed)
    try:
        rows = [row for _, row in open_rows(out).outcomes()]
        found["whole" if all(isinstance(row, dict) for row in rows) else "row"] += 1
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        found["error"] += 1
print(json.dumps(found))
"""


@pytest.mark.parametrize("kind", ["arrow", "feather", "parquet"])
def test_flipped_bits_in_a_table_end_no_process(kind: str, tmp_path: Path) -> None:
    rows = [{"text": "é" * (i % 5), "n": i, "l": [str(i)] * (i % 3)} for i in range(30)]
    path = WRITERS[kind](tmp_path / f"a.{kind}", rows)
    done = subprocess.run(
        [sys.executable, "-c", FLIPPED, str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["error"] > 50 and found["whole"] > 10


def written(path: Path, column: pa.Array) -> Path:
    batch = pa.record_batch([column], names=["text"])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    return path


def test_a_damaged_offset_is_an_error_of_its_rows(tmp_path: Path) -> None:
    offsets = np.array([0, 1, 2, 1 << 30, 4, 5], np.int32)
    column = pa.StringArray.from_buffers(5, pa.py_buffer(offsets), pa.py_buffer(b"abcde"))
    rows = [row for _, row in open_rows(written(tmp_path / "a.arrow", column)).outcomes()]
    assert [row for row in rows if isinstance(row, dict)] == [{"text": c} for c in "abe"]
    bad = [row for row in rows if isinstance(row, RowError)]
    assert [row.source for row in bad] == [f"{tmp_path}/a.arrow:row {n}" for n in (3, 4)]
    assert all(row.reason.startswith("cannot be read (") for row in bad)


def test_a_text_that_is_not_utf_8_is_an_error_of_its_row(tmp_path: Path) -> None:
    offsets = np.array([0, 1, 2, 3], np.int32)
    column = pa.StringArray.from_buffers(3, pa.py_buffer(offsets), pa.py_buffer(b"a\xffc"))
    rows = [row for _, row in open_rows(written(tmp_path / "a.arrow", column)).outcomes()]
    assert isinstance(rows[1], RowError) and rows[::2] == [{"text": "a"}, {"text": "c"}]


def test_a_date_that_python_does_not_know_is_an_error_of_its_row(tmp_path: Path) -> None:
    column = pa.array([0, 2**62, 0], pa.timestamp("s"))
    rows = [row for _, row in open_rows(written(tmp_path / "a.arrow", column)).outcomes()]
    assert [isinstance(row, RowError) for row in rows] == [False, True, False]


def test_a_table_that_is_cut_while_it_is_read_ends_no_process(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    schema = pa.schema([("text", pa.string())])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for _ in range(4):
            writer.write_batch(pa.record_batch([pa.array(["x" * 1000] * 500)], schema))
    code = f"""
import os
from forvalue_index.data.sources import open_rows
from forvalue_index.errors import InputError
rows = open_rows({str(path)!r}).outcomes()
next(rows)
os.truncate({str(path)!r}, 1000)
try:
    print(len(list(rows)))
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "a.arrow cannot be read (" in done.stdout


# -- models, catalogues, memory ----------------------------------------------------------------


class Evil:
    """Makes a folder in the working directory when it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("was-run",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("data", [pickle.dumps(Evil()), b"junk", b"", b"\x80\x02."])
def test_pickled_weights_that_are_more_than_tensors(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = save_model(tmp_path / "m", "llama", 0)
    (model / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), model / "pytorch_model.bin")
    load_model(ModelConfig(str(model)), "cpu")
    (model / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(ModelError, match=f"cannot load model {model}: ") as error:
        load_model(ModelConfig(str(model)), "cpu")
    assert "weights_only" not in str(error.value) and "\n" not in str(error.value)
    assert not Path("was-run").exists()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u@h:bad/x",
        "postgresql://[::1/x",
        "postgresql+psycopg://u@127.0.0.1:1/x?connect_timeout=abc",
        "postgresql+psycopg://u@127.0.0.1:1/x?bogus=1",
        "postgresql+psycopg://u@127.0.0.1:99999999/x",
    ],
)
def test_a_catalogue_with_a_bad_port_or_option(
    url: str, tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    path = WRITERS["json"](tmp_path / "a.json", rows)
    index = tmp_path / "i"
    result = run("build", path, "--index", index, "--model", model_dir, "--catalog", url)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "Error: " in result.stderr and "Traceback" not in result.stderr
    assert not index.exists()


SMALL_MEMORY = """
import resource, sys
from forvalue_index.cli import main
from forvalue_index.index import InfluenceIndex
index, model, data, spare = sys.argv[1:]
with InfluenceIndex.open(index) as opened:
    opened.query({"prompt": "a", "response": " b"})  # all libraries are loaded
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(spare), -1))
main(["add", data, "--index", index])
"""


@pytest.mark.parametrize("spare", [12 << 20, 24 << 20])
def test_too_little_memory_is_one_line_and_the_index_is_unharmed(
    spare: int, tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    index, _ = InfluenceIndex.build(
        tmp_path / "i", rows, str(model_dir), format=KEYED, vector=SMALL
    )
    with index:
        before = exported(index, tmp_path)
    big = [{"id": f"big-{i}", "prompt": "a" * 1_000_000, "response": " b"} for i in range(2)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in big))
    done = subprocess.run(
        [sys.executable, "-c", SMALL_MEMORY, tmp_path / "i", model_dir, path, str(spare)],
        capture_output=True,
        text=True,
        timeout=300,  # with less memory, Python waits for ever for a thread that could not begin
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "Error: " in done.stderr.splitlines()[-1], done.stderr
    with InfluenceIndex.open(tmp_path / "i") as index:
        after = exported(index, tmp_path)
        assert before[0] == after[0] and np.array_equal(before[1], after[1])
        assert index.verify() == []

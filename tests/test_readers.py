"""Text files of every kind, standard input and rows in memory."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import os
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forvalue_index.data import text
from forvalue_index.data.sources import open_rows
from forvalue_index.errors import DependencyError, InputError, RowError


def rejected(path: Path) -> list[str]:
    """What is wrong with each row of a file that cannot be used."""
    return [str(row) for _, row in open_rows(path).outcomes() if isinstance(row, RowError)]


def test_rows_come_in_order_with_their_places_every_time(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_text('{"x": 1}\n\n{"x": 2}\n')
    b.write_text('\ufeff{"x": "é"}')
    rows = open_rows([a, b])
    expected = [(f"{a}:1", {"x": 1}), (f"{a}:3", {"x": 2}), (f"{b}:1", {"x": "é"})]
    assert list(rows) == expected
    assert list(rows) == expected


def test_standard_input_can_be_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"x": 1}\n')))
    rows = open_rows("-")
    assert list(rows) == list(rows) == [("<stdin>:1", {"x": 1})]


def test_a_pipe_can_be_read_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b'{"x": 1}\n',))
    writer.start()
    rows = open_rows(pipe)
    writer.join()
    assert list(rows) == list(rows) == [(f"{pipe}:1", {"x": 1})]


def test_rows_in_memory() -> None:
    assert list(open_rows({"x": 1})) == [("row 1", {"x": 1})]
    assert list(open_rows({"x": i} for i in range(2))) == [("row 1", {"x": 0}), ("row 2", {"x": 1})]
    rows = open_rows([{"x": 1}])
    assert open_rows(rows) is rows
    with pytest.raises(RowError, match="row 2: a row must be a dict, not int"):
        list(open_rows([{"x": 1}, 2]))  # type: ignore[list-item]


def test_a_data_frame_is_rows() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "prompt": ["a", "b"],
            "response": [" c", None],
            "n": pandas.array([1, None], dtype="Int64"),
            "x": [0.5, float("nan")],
            "day": pandas.to_datetime(["2024-07-26", None]),
        }
    )
    first, second = (row for _, row in open_rows(frame))
    assert first == {
        "prompt": "a", "response": " c", "n": 1, "x": 0.5, "day": "2024-07-26T00:00:00",
    }  # fmt: skip
    assert second == {"prompt": "b", "response": None, "n": None, "x": None, "day": None}
    with pytest.raises(InputError, match="the data frame has two columns named 'n'"):
        open_rows(pandas.DataFrame([[1, 2]], columns=["n", "n"]))


def test_values_of_a_program_get_their_form_in_json() -> None:
    row: dict[str, Any] = {
        "when": datetime.datetime(2024, 5, 6, 7, 8, tzinfo=datetime.UTC),
        "day": datetime.date(2024, 5, 6),
        "took": datetime.timedelta(seconds=1.5),
        "price": Decimal("1.50"),
        "raw": b"\xff",
        "image": {"bytes": b"\xff", "path": None},
        "missing": float("nan"),
        "vector": np.array([1.5, np.nan], dtype=np.float32),
        "count": np.int64(3),
        "turns": ({"at": datetime.time(1, 2)},),
    }
    ((_, found),) = open_rows(row)
    assert found == {
        "when": "2024-05-06T07:08:00+00:00",
        "day": "2024-05-06",
        "took": 1.5,
        "price": "1.50",
        "raw": {"bytes": "/w=="},
        "image": {"bytes": "/w==", "path": None},
        "missing": None,
        "vector": [1.5, None],
        "count": 3,
        "turns": [{"at": "01:02:00"}],
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{x}", "not JSON (Expecting property name enclosed in double quotes, column 2)"),
        (b"[", ": JSON Lines have an object on each line; an array of rows is read from a .json"),
        (b"[1]", "a row must be a JSON object, not list"),
        (b'{"x": "\xff"}', "not UTF-8 text"),
        (b'{"x": NaN}', "NaN is not a JSON value"),
        (b'{"x": 1, "y": 2, "x": 3}', "the name 'x' stands twice in an object"),
        (b'{"m": [{"x": 1, "x": 1}]}', "the name 'x' stands twice in an object"),
        (b'{"x": ' + b"1" * 5000 + b"}", "not readable JSON"),
        (b"[" * 100_000, "not readable JSON"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x": 1}\n' + line + b'\n{"x": 3}\n')
    with pytest.raises(RowError) as error:
        list(open_rows(path))
    assert f"{path}:2: " in str(error.value)
    assert message in str(error.value)
    outcomes = list(open_rows(path).outcomes())
    assert [outcomes[0], outcomes[2]] == [(f"{path}:1", {"x": 1}), (f"{path}:3", {"x": 3})]
    assert str(outcomes[1][1]) == str(error.value)


def test_sources_that_cannot_be_opened_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"missing\.jsonl does not exist"):
        open_rows(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="is a directory, but not a data set"):
        open_rows(tmp_path)
    with pytest.raises(InputError, match=r"no file matches .*train-\*\.jsonl"):
        open_rows(tmp_path / "train-*.jsonl")
    for name in ("notes.txt", "rows", "table.parquet.gz", "rows.gz"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(
            InputError, match=rf"{name}: unknown kind of file; .* \.jsonl, .*\.arrow"
        ):
            open_rows(tmp_path / name)
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"a\.jsonl is given twice"):
        open_rows([tmp_path / "a.jsonl", tmp_path / "*.jsonl"])
    with pytest.raises(InputError, match=r"a\.jsonl is a file: --split and --subset"):
        open_rows(tmp_path / "a.jsonl", split="train")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for misspelt in ("data/train", "dta/train.jsonl", "../x", "train"):  # none asks the hub
        with pytest.raises(InputError, match=f"{misspelt} does not exist"):
            open_rows(misspelt)


def test_a_pattern_is_its_files_in_order(tmp_path: Path) -> None:
    for i in (10, 2, 1):
        (tmp_path / f"part-{i:02}.jsonl").write_text(f'{{"x": {i}}}\n')
    (tmp_path / "part-[a].jsonl").write_text('{"x": "a"}\n')  # a name as it stands comes first
    assert [row["x"] for _, row in open_rows(tmp_path / "part-??.jsonl")] == [1, 2, 10]
    assert [row["x"] for _, row in open_rows(tmp_path / "part-[a].jsonl")] == ["a"]


@pytest.mark.parametrize("ending", ["jsonl.gz", "JSONL.ZST", "json", "ndjson"])
def test_other_forms_of_json_lines(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    data = '{"x": "é"}\n{"x": 2}\n'.encode()
    with pyarrow.output_stream(str(path), _compression(ending)) as file:
        file.write(data)
    rows = [(f"{path}:1", {"x": "é"}), (f"{path}:2", {"x": 2})]
    assert list(open_rows(path)) == list(open_rows(path)) == rows


def _compression(ending: str) -> str | None:
    return {"gz": "gzip", "zst": "zstd"}.get(ending.lower().split(".")[-1])


@pytest.mark.parametrize("ending", ["jsonl.gz", "csv.zst"])
def test_a_packed_file_that_lacks_its_end_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    with pyarrow.output_stream(str(path), _compression(ending)) as file:
        file.write(os.urandom(3000).hex().encode() + b"\n" + b'{"x": 1}\n' * 3000)
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"no such thing"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"cannot be read .*: is it complete") as error:
            list(open_rows(path).outcomes())
        assert str(path) in str(error.value)
        assert not isinstance(error.value, RowError)  # to be skipped: the rest would be lost


def test_packages_that_are_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("a.parquet", "a.arrow", "a.jsonl.zst"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DependencyError, match=r'pyarrow.*pip install "forvalue-index\[datas'):
            open_rows(tmp_path / name)
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:  # and needs no such package
        file.write(b'{"x": 1}')
    assert len(list(open_rows(tmp_path / "a.jsonl.gz"))) == 1


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.text() | st.integers() | st.none())),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
)
def test_an_array_is_read_piece_by_piece(
    rows: list[dict[str, Any]], chunk: int, indent: int | None
) -> None:
    whole = " " + json.dumps(rows, indent=indent, ensure_ascii=False) + "\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "CHUNK", chunk)
        assert list(text._elements(io.StringIO(whole).read)) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"x": 1}, {"x": 2', "row 2: not JSON"),
        ('[{"x": 1}', "row 1: not JSON (the array does not end)"),
        ('[{"x": 1} {"x": 2}]', "row 2: not JSON (no comma after it)"),
        ('[{"x": 1}] []', "row 2: not JSON (text after the end of the array)"),
        ('[{"x": 1},]', "row 2: not JSON"),
        ('[{"x": ' + "1" * 5000 + "}]", "row 1: not readable JSON"),
        ("[", "row 1: not JSON (the array does not end)"),
    ],
)
def test_an_array_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        list(open_rows(path).outcomes())
    assert f"{path}:{message}" in str(error.value)


def test_an_element_that_is_no_row_can_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\ufeff [{"x": 1}, 2, {"x": 3}]')
    assert rejected(path) == [f"{path}:row 2: a row must be a JSON object, not int"]
    assert [row for _, row in open_rows(path).outcomes()][2] == {"x": 3}
    path.write_bytes(b'[{"x": "\xff"}]')
    with pytest.raises(InputError, match=r"row 1: not readable JSON .*utf-8"):
        list(open_rows(path))


def test_values_of_csv_are_text_at_the_line_where_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeff"q",n\r\n"two\nlines, ""é""",1\r\n\r\n,\r\n'.encode())
    assert list(open_rows(path)) == [
        (f"{path}:2", {"q": 'two\nlines, "é"', "n": "1"}),
        (f"{path}:5", {"q": "", "n": ""}),
    ]
    path = tmp_path / "a.tsv"
    path.write_text("q\tn\na,b\t" + "x" * 200_000 + "\n")
    assert list(open_rows(path)) == [(f"{path}:2", {"q": "a,b", "n": "x" * 200_000})]


def test_lines_of_csv_that_do_not_fit_can_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n1\n1,2,3\n"x"y,2\n\xff,2\n1,2\n')
    assert rejected(path) == [
        f"{path}:2: 1 values for 2 columns",
        f"{path}:3: 3 values for 2 columns",
        f"{path}:4: not CSV (',' expected after '\"')",
        f"{path}:5: not UTF-8 text",
    ]
    assert list(open_rows(path).outcomes())[-1] == (f"{path}:6", {"a": "1", "b": "2"})


def test_the_cost_of_columns_is_linear_in_their_number(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    names = [f"c{i}" for i in range(50_000)]
    path.write_text(f"{','.join(names)}\n{','.join(names)}\n")
    start = time.process_time()
    (row,) = (row for _, row in open_rows(path))
    assert list(row.values()) == names
    assert time.process_time() - start < 5  # comparing each name with each takes a minute


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: its first line must name the columns"),
        (b"a,b,a\n1,2,3\n", "has two columns named 'a'"),
        (b'a,b\n1,"2\n3,4\n', "a.csv:2: not readable CSV .*is there an unclosed quote"),
        (b"\xff\xfea\x00,\x00", "the names of the columns are not UTF-8"),
    ],
)
def test_csv_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        list(open_rows(path).outcomes())
    assert not isinstance(error.value, RowError)

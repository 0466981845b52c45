"""JSON Lines files, standard input and rows in memory."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from forvalue_index.data.readers import open_rows
from forvalue_index.errors import InputError, RowError


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


def test_rows_in_memory() -> None:
    assert list(open_rows({"x": 1})) == [("row 1", {"x": 1})]
    assert list(open_rows({"x": i} for i in range(2))) == [("row 1", {"x": 0}), ("row 2", {"x": 1})]
    rows = open_rows([{"x": 1}])
    assert open_rows(rows) is rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{x}", "not JSON"),
        (b"[1]", "a row is a JSON object, this is list"),
        (b'{"x": "\xff"}', "not UTF-8 text"),
        (b'{"x": NaN}', "NaN is no JSON value"),
        (b'{"x": ' + b"1" * 5000 + b"}", "not JSON that can be read"),
        (b"[" * 100_000, "not JSON that can be read"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x": 1}\n' + line + b"\n")
    with pytest.raises(RowError) as error:
        list(open_rows(path))
    assert f"{path}:2: " in str(error.value)
    assert message in str(error.value)


def test_files_that_are_not_there_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.jsonl does not exist"):
        open_rows(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="is a directory, not a file"):
        open_rows(tmp_path)

"""Parts of data files have the rows of the files, under the same places."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from forvalue_index.data import parts as module
from forvalue_index.data.parts import lines_in, numbered, open_part, parts_of
from forvalue_index.data.rows import Outcome
from forvalue_index.data.sources import open_rows
from forvalue_index.errors import InputError, RowError


def outcomes(rows: object) -> list[tuple[str, object]]:
    def shown(outcome: Outcome) -> tuple[str, object]:
        place, row = outcome
        return place, str(row) if isinstance(row, RowError) else row

    return [shown(outcome) for outcome in rows.outcomes()]  # type: ignore[attr-defined]


def in_parts(file: Path) -> tuple[int, list[tuple[str, object]]]:
    """The number of parts, and what stands in all of them."""
    found = parts_of([file])
    if any(part.before is None for part in found):
        found = numbered(found, [lines_in(part) for part in found])
    return len(found), [outcome for part in found for outcome in outcomes(open_part(part))]


def lines(seed: int) -> list[bytes]:
    """Rows, empty lines, bad ones, long ones, all ends of lines."""
    chance = random.Random(seed)
    made = []
    for n in range(chance.randrange(60)):
        row = json.dumps({"n": n, "text": "ä" * chance.choice([0, 3, 90])}).encode()
        line = chance.choice([row, row, row, b"", b"{", b"\xff", b"  ", b"[1]"])
        made.append(line + chance.choice([b"\n", b"\n", b"\r\n"]))
    if made and chance.random() < 0.5:
        made[-1] = made[-1].rstrip()
    return made


@pytest.mark.parametrize("size", [1, 7, 64, 500])
def test_lines_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(module, "LEAST", size)
    most = 0
    for seed in range(60):
        file = tmp_path / f"{seed}.jsonl"
        file.write_bytes(b"".join(lines(seed)))
        count, found = in_parts(file)
        assert found == outcomes(open_rows(file)), seed
        most = max(most, count)
    assert most > 2


@pytest.mark.parametrize("rows", [0, 1, 5, 100])
def test_rows_of_parquet_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "rows.parquet"
    table = pyarrow.table({"n": list(range(rows)), "text": [f"text {n}" for n in range(rows)]})
    parquet.write_table(table, file, row_group_size=7)
    for size, parts in ((1, max(1, -(-rows // 7))), (10**9, 1)):
        monkeypatch.setattr(module, "LEAST", size)
        assert in_parts(file) == (parts, outcomes(open_rows(file)))


def test_other_files_are_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", 1)
    files = [tmp_path / name for name in ("a.csv", "b.json", "c.jsonl.gz", "bad.parquet")]
    for file in files:
        file.write_bytes(b"x,y\n1,2\n")
    found = parts_of(files)
    assert [part.file for part in found] == files
    assert all(part.whole for part in found)
    with pytest.raises(InputError, match="is it complete"):
        outcomes(open_part(found[-1]))


def test_there_are_not_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", 1)
    monkeypatch.setattr(module, "MOST", 8)
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"{}\n" * 1000)

    def ends(found: Sequence[module.Part]) -> list[int | None]:
        return [part.end for part in found]

    assert 4 <= len(parts_of([file])) <= 8
    assert ends(parts_of([file])) == ends(parts_of([file]))

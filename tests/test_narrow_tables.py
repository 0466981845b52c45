"""Tables on narrow terminals, and of texts without spaces: nothing is lost, no number is broken."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from forvalue_index import FormatConfig
from forvalue_index.cli import render
from forvalue_index.records import Hit, StoredSample

CHINESE = (
    "这家书店的猫叫做账本，它睡在地图室里，每天晚上十一点开门的时候才会醒来，然后陪着客人看书。"
)
PARTS = {"lexical": 12.345, "state": -0.876, "influence": 27.64}


def shown(table: object, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def hits() -> list[Hit]:
    row = {"prompt": CHINESE, "response": "https://example.org/" + "a" * 40}
    parts = [dict(PARTS), {name: -value for name, value in PARTS.items()}]
    return [
        Hit(0, rank, rank, f"demo-0000{rank}", 42.46, row, False, own)
        for rank, own in enumerate(parts, 1)
    ]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_texts_without_spaces_are_whole_in_a_table_of_hits(width: int) -> None:
    lines = shown(render.hits_table(hits()[:1], FormatConfig(), "hybrid"), width)
    assert max(map(len, lines)) <= width
    kept = "".join("".join(line.split()[-1:]) for line in lines[1:])
    assert CHINESE in kept and "a" * 40 in kept


@pytest.mark.parametrize("width", [60, 80])
def test_numbers_and_headings_are_not_broken(width: int) -> None:
    lines = shown(render.hits_table(hits(), FormatConfig(), "hybrid"), width)
    for word in ("influence", "+42.46", "+12.3", "-0.876", "+27.6", "-27.6", "demo-00001"):
        assert any(word in line for line in lines), (word, lines)


def test_values_of_a_row_are_whole() -> None:
    path = "/data/models/" + "x" * 80
    lines = shown(render.properties({"model": path, "text": CHINESE}), 60)
    joined = "".join(line.split()[-1] for line in lines)
    assert path in joined and CHINESE in joined


def test_rows_in_a_list_are_whole() -> None:
    row = {"prompt": CHINESE, "response": " 好"}
    sample = StoredSample(1, "k", "0" * 32, row, 12, 3, False, 0.5, 1.0)
    lines = shown(render.samples_table([sample], FormatConfig()), 60)
    assert CHINESE in "".join(lines[1:]).replace(" ", "").replace("1k120.500", "")


def test_keys_that_begin_alike_are_told_apart() -> None:
    paths = [f"datasets/instruction-tuning/shard-0.parquet#row-{i:06d}" for i in range(3)]
    ends = [f"…arquet#row-00000{i}" for i in range(3)]
    assert [text.plain for text in render.short(paths)] == ends
    assert [text.plain for text in render.short(paths, 60)] == paths
    hashes = ["2220582f10546a6aa00001", "cfab2dc1a1f25cfc800001", "b"]
    assert [text.plain for text in render.short(hashes)] == hashes  # the table cuts their ends
    found = [replace(hit, key=path) for hit, path in zip(hits(), paths, strict=False)]
    lines = "\n".join(shown(render.hits_table(found, FormatConfig(), "dot"), 80))
    assert ends[0] in lines and ends[1] in lines
    samples = [
        StoredSample(i, path, "0" * 32, {"prompt": "a", "response": "b"}, 1, 3, False, 0.5, 1.0)
        for i, path in enumerate(paths)
    ]
    lines = "\n".join(shown(render.samples_table(samples, FormatConfig()), 80))
    assert all(path[-20:] in lines for path in paths)

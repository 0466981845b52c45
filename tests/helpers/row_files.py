"""Rows written as every kind of file that is read."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from forvalue_index.records import Row


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

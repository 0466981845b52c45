"""Small indexes of thirty rows, and all that they hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, VectorConfig
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.records import Row

SMALL = VectorConfig(dim=512, sketch_dim=512)
KEYED = FormatConfig(key_field="id")
SETTINGS: dict[str, Any] = {"format": KEYED, "vector": SMALL}
NEW: Row = {"id": "new", "prompt": "a", "response": "b"}


@pytest.fixture(scope="module")
def lm(model_dir: Path) -> LanguageModel:
    return load_model(ModelConfig(str(model_dir)), "cpu")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forvalue_index.pipeline.add.CHUNK", 8)


@pytest.fixture
def index(tmp_path: Path, rows: list[Row], lm: LanguageModel) -> Iterator[InfluenceIndex]:
    with InfluenceIndex.build(tmp_path / "index", rows, lm, **SETTINGS)[0] as index:
        yield index


@pytest.fixture
def anywhere(
    tmp_path: Path, rows: list[Row], lm: LanguageModel, database: str | None
) -> Iterator[InfluenceIndex]:
    """An index whose rows are in SQLite, then in PostgreSQL."""
    built, _ = InfluenceIndex.build(tmp_path / "index", rows, lm, catalog=database, **SETTINGS)
    with built as index:
        yield index


def every(index: InfluenceIndex, row: Row) -> list[tuple[str, Row, float]]:
    return [(hit.key, hit.sample, hit.score) for hit in index.query(row, k=1000)]


def exported(index: InfluenceIndex, folder: Path) -> tuple[list[Row], Any]:
    """What an index holds, rows with keys and hashes, and the vectors on disk."""
    index.export(folder / "v.npy", folder / "r.jsonl")
    lines = (folder / "r.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], np.load(folder / "v.npy")


def changed(row: Row, text: str = " otherwise") -> Row:
    return row | {"response": text}


def bytes_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def rejects_of(directory: Path) -> list[Row]:
    return [json.loads(line) for line in (directory / "rejects.jsonl").read_text().splitlines()]

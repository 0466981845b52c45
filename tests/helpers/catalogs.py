"""A catalogue of made-up samples, in SQLite and in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.records import Row, Segment, StoredSample

CONFIG = {"dim": 4, "model": {"name": "tiny", "revision": None}}
FINGERPRINT = {"model": "abc", "scale": 0.1}


@pytest.fixture
def url(tmp_path: Path, database: str | None) -> str:
    return database or f"sqlite:///{tmp_path / 'catalog.db'}"


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    with Catalog.create(url, CONFIG, FINGERPRINT) as catalog:
        yield catalog


def sample(id: int, key: str | None = None, row: Row | None = None) -> StoredSample:
    return StoredSample(
        id=id,
        key=f"k{id}" if key is None else key,
        content_hash=f"hash{id}",
        row={"prompt": f"p{id}", "n": id} if row is None else row,
        n_tokens=10 + id,
        n_scored=5 + id,
        truncated=bool(id % 2),
        loss=1 / (id + 1),
        norm=0.1 * id,
    )


def segment(name: str, ntotal: int) -> Segment:
    return Segment(f"{name}.faiss", ntotal, ntotal * 8, "0" * 64)


def add(catalog: Catalog, name: str, ids: range, **options: object) -> list[StoredSample]:
    samples = [sample(id) for id in ids]
    catalog.commit_segment(segment(name, len(samples)), samples, **options)  # type: ignore[arg-type]
    return samples

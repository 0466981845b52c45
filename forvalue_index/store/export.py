"""Vectors and rows of an index as files for other programs: .npy and JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from forvalue_index.store.layout import storing
from forvalue_index.store.rows import PAGE
from forvalue_index.store.snapshot import Snapshot
from forvalue_index.store.store import Store
from forvalue_index.system.files import atomic_write
from forvalue_index.vectors.scale import scale_of


def export(store: Store, vectors: Path, rows: Path, where: Sequence[str]) -> tuple[int, int]:
    """Writes the vectors, whose inner product is influence, and their rows; returns the shape.

    Both are in the order of the ids.

    Raises:
        StorageError: a file cannot be written; neither is there then.
    """
    scale = scale_of(store.vectoriser_bytes()) if store.fitted else 1.0
    return store.answer(lambda snapshot: _write(snapshot, vectors, rows, where, scale))


def _write(
    snapshot: Snapshot, vectors: Path, rows: Path, where: Sequence[str], scale: float
) -> tuple[int, int]:
    flat = snapshot.flat
    ids = snapshot.where(where) if where else flat.ids
    with (
        storing(vectors.parent),
        atomic_write(vectors) as out,
        atomic_write(rows, text=True) as lines,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), flat.dim)}
        np.lib.format.write_array_header_1_0(out, header)
        for block, values in flat.blocks(ids) if len(ids) else ():
            out.write((values / np.float32(scale)).astype("<f4").tobytes())
            for start in range(0, len(block), PAGE):
                page = block[start : start + PAGE].tolist()
                for sample in snapshot.samples(page).values():
                    lines.write(json.dumps(asdict(sample), ensure_ascii=True) + "\n")
        out.flush()  # both have found room before one of them counts
    return len(ids), flat.dim

"""Segments that a faulty program, or a faulty machine, has committed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from error_cases.case import Case, python
from error_cases.damage import QUERY

from forvalue_index import InfluenceIndex
from forvalue_index.records import Segment
from forvalue_index.search.backend import faiss

NAME = "000000000012-2.faiss"
TOLD = "a faulty program has committed "


def _commit(change: Callable[[Any], object], name: str = NAME) -> Callable[[Path], None]:
    """Commits a copy of the segment and its rows, under other ids and keys, and changes it."""

    def commit(folder: Path) -> None:
        with InfluenceIndex.open(folder / "my.index") as index:
            catalog = index.store.catalog
            rows = [
                replace(row, id=row.id + 12, key=f"new {row.key}")
                for row in catalog.samples(range(12)).values()
            ]
            segments = folder / "my.index" / "segments"
            old = faiss().read_index(str(segments / catalog.segments()[0].name))
            _set_ids(old, range(12, 24))
            change(old)
            faiss().write_index(old, str(segments / NAME))
            data = (segments / NAME).read_bytes()
            made = Segment(name, 12, len(data), hashlib.sha256(data).hexdigest())
            catalog.commit_segment(made, rows)
            index.remove("new 2")

    return commit


def _set_ids(index: Any, ids: range) -> None:
    faiss().copy_array_to_vector(np.array(ids, np.int64), index.id_map)


def _make_nan(index: Any) -> None:
    codes = faiss().downcast_index(index.index).codes
    faiss().copy_array_to_vector(np.full(codes.size(), 255, np.uint8), codes)


CASES = [
    Case(QUERY, before=_commit(lambda index: _set_ids(index, range(12))),
         told=f"{TOLD}a segment with the ids of another one"),
    Case(QUERY, before=_commit(lambda index: _set_ids(index, range(23, 11, -1))),
         told=f"{TOLD}a segment whose ids do not ascend"),
    Case(f"{QUERY} --metric cosine", before=_commit(lambda index: _set_ids(index, range(90, 102))),
         told=f"{TOLD}a segment with other ids than its rows have"),
    Case("compact --index my.index", before=_commit(lambda index: _set_ids(index, range(90, 102))),
         told=f"{TOLD}a segment with other ids than its rows have"),
    Case(QUERY, before=_commit(_make_nan), told=f"{TOLD}vectors that are not finite"),
    Case(f"{QUERY} --metric decorrelated", before=_commit(_make_nan),
         told=f"{TOLD}vectors that are not finite"),
    Case(QUERY, before=_commit(lambda _: None, "../words.faiss"),
         told=f"{TOLD}a segment with a folder in its name"),
    python("__import__('forvalue_index.search.segment', fromlist=['segment']).codes_of("
           "index.snapshot.ids[:1], index.snapshot.vectors([0]) * float('nan'), 16)"),
]  # fmt: skip

"""Catalogues, segments and derived indexes that are not as they were made."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from error_cases.case import Case, python
from error_cases.damage import QUERY, edit, sql
from error_cases.settings import ROW

from forvalue_index import InfluenceIndex
from forvalue_index.search.backend import faiss

LIST = "list --index my.index"
BUILD = "build rows.jsonl --index new --model model"
SERVER = "postgresql+psycopg://127.0.0.1:9/name"
STORED = "index.store.catalog.samples(range(12)).values()"
SEGMENT = "index.store.catalog.segments()[0]"
TWICE = "[__import__('dataclasses').replace(s, key='1') for s in {}]"
NEXT = "[__import__('dataclasses').replace(s, id=s.id + 12) for s in {}]"


def _removed(*then: Callable[[Path], None]) -> Callable[[Path], None]:
    """Removes the row `1`, and does something else."""

    def change(folder: Path) -> None:
        with InfluenceIndex.open(folder / "my.index") as index:
            index.remove("1")
        for step in then:
            step(folder)

    return change


def _noted(change: Callable[[dict[str, Any], Path], object]) -> Callable[[Path], None]:
    """Changes the note of a derived index, which is made first."""

    def edit(folder: Path) -> None:
        with InfluenceIndex.open(folder / "my.index") as index:
            index.optimize("SQ8")
        path = folder / "my.index" / "derived" / "dot.json"
        note = json.loads(path.read_text())
        change(note, path.parent)
        path.write_text(json.dumps(note))

    return edit


def _other_file(note: dict[str, Any], folder: Path) -> None:
    data = b"no index of FAISS"
    (folder / note["file"]).write_bytes(data)
    note |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _other_segment(note: dict[str, Any], folder: Path) -> None:
    note["segments"] = dict.fromkeys(note["segments"], "0" * 64)


def _folder_as_file(note: dict[str, Any], folder: Path) -> None:
    (folder / note["file"]).unlink()
    (folder / note["file"]).mkdir()


def _without_faiss(folder: Path) -> None:
    faiss.cache_clear()


def _gone(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "my.index" / "catalog.db")) as raw:
        raw.execute("DELETE FROM index_info")
        raw.commit()


ANN = "__import__('forvalue_index.search.ann', fromlist=['ann'])"
SWAPPED = (
    "UPDATE samples SET removed_at = CASE key WHEN '1' THEN NULL WHEN '2' THEN 'now' END "
    "WHERE key IN ('1', '2')"
)
CATALOGS = [
    Case(LIST, before=sql("DROP INDEX ix_samples_segment_id"),
         told="an index of the database was dropped"),
    Case(LIST, before=sql("UPDATE samples SET loss = 'x'"), told="numbers became texts"),
    Case(LIST, before=sql("UPDATE samples SET norm = 3"), told="numbers of rows were changed"),
    Case(LIST, before=_removed(sql(SWAPPED)),
         told="of a removed row and another one, the other was marked as removed"),
    Case(LIST, before=sql("INSERT INTO alembic_version VALUES ('0001')"),
         told="the table of versions has two rows"),
    Case("migrate --index my.index", before=sql("UPDATE samples SET segment_id = 99"),
         told="rows lead to a segment that is not there"),
    Case(LIST, {"my.index/catalog.db-wal/a": ""}, told="a folder has the name of SQLite's file"),
    Case("compact --index my.index",
         before=_removed(edit("my.index/segments/*", lambda data: data[:-1] + b"?")),
         told="a row was removed, and a byte of its segment changed"),
    Case("remove --index my.index --key 1", full=True, told="the disk is full",
         hide=r"(?<=written \().*?(?=\):)"),
    python("index.get('1')", meanwhile=_gone, told="the settings were deleted meanwhile"),
    python("index.store.catalog.samples([2**70])", hide=r"(?<=db \().*?(?=\):)"),
    python("index.store.catalog.replace_segments(['\\ud800'], None)"),
    python("index.store.catalog.set_fingerprint({})", hide=r"(retained|settings) .*?, not None"),
    python("index.store.catalog.replace_segments(['x'], None)"),
    python(f"index.store.catalog.commit_segment({SEGMENT}, [])"),
    python(f"index.store.catalog.commit_segment({SEGMENT}, {STORED})"),
    python(f"index.store.catalog.commit_segment({SEGMENT}, {NEXT.format(STORED)})"),
    python(f"index.store.catalog.commit_segment({SEGMENT}, {NEXT.format(STORED)}, replaces=[99])"),
    python("type(index.store.catalog).create('sqlite:///my.index/catalog.db', {}, {})"),
    python("type(index.store.catalog).open('mysql://host/name')"),
    python("type(index.store.catalog).open('sqlite://')"),
    python("type(index.store.catalog).open('sqlite:///nothing.db')"),
    python("type(index.store.catalog).create('sqlite:///new.db', {'a': {1}}, {})"),
    python(f"index.store.catalog.commit_segment({SEGMENT}, {TWICE.format(STORED)})"),
]  # fmt: skip

SERVERS = [
    Case(f"{BUILD} --catalog {SERVER}", {"rows.jsonl": ROW},
         environment={"XDG_CONFIG_HOME": "rows.jsonl"}),
    Case(f"{BUILD} --catalog {SERVER}", {"rows.jsonl": ROW},
         environment={"XDG_CONFIG_HOME": "config"}, hide=r"(?<=name: ).*?(?=; check)"),
    Case(f"{BUILD} --catalog postgresql+nodriver://host/name", {"rows.jsonl": ROW},
         environment={"XDG_CONFIG_HOME": "config"}, hide=r"(?<=missing \().*?(?=\):)"),
    Case(f"{BUILD} --catalog '{SERVER}?port=here'", {"rows.jsonl": ROW},
         environment={"XDG_CONFIG_HOME": "config"}, hide=r"(?<=used \().*?(?=\):)"),
]  # fmt: skip

DERIVED = [
    Case(QUERY, before=_noted(lambda note, _: note.update(ntotal=13)),
         told="a number in the note of a derived index was changed"),
    Case(QUERY, before=_noted(lambda note, _: note.update(metric="length")),
         told="the metric in the note of a derived index was changed"),
    Case(QUERY, before=_noted(lambda note, _: note.update(file="../catalog.db")),
         told="the file in the note of a derived index was changed"),
    Case(QUERY, before=_noted(_folder_as_file), told="a folder has the name of a derived index"),
    Case(QUERY, before=_noted(_other_file), told="another version of FAISS made a derived index",
         hide=r"(?<=read \().*?(?=\):)"),
    Case("verify --index my.index", before=_noted(lambda note, _: note.update(dim=3)),
         told="a number in the note of a derived index was changed"),
    Case("verify --index my.index", before=_noted(_other_segment),
         told="a derived index is from before the index was built again"),
    Case("verify --index my.index",
         before=edit("my.index/segments/*", lambda data: b"?" * len(data)),
         told="a segment was overwritten", hide=r"(?<=read \().*?(?=\):)"),
    Case("optimize --index my.index --factory SQ8,RFlat", hide=r"(?<=answers \().*?(?=\):)"),
    Case(QUERY, before=_without_faiss, lacking="faiss", hide=r"(?<=loaded \().*?(?=\):)"),
    python(f"{ANN}.open_derived('my.index/derived', index.snapshot.flat)"),
    python(f"{ANN}.open_derived('my.index/derived', index.snapshot.flat, 'a.b')"),
    python("index.snapshot.flat.search(index.snapshot.vectors([0]), 0)"),
    python("index.snapshot.flat.search(index.snapshot.vectors([0])[:, :3], 1)"),
    python("index.snapshot.flat.search(index.snapshot.vectors([0]) * float('nan'), 1)"),
    python("index.snapshot.flat.search(index.snapshot.vectors([0]), 1, weights=[1.0])"),
    python("index.snapshot.flat.search(index.snapshot.vectors([0]), 1, weights=[0.0] * 12)"),
]  # fmt: skip

CASES = [*CATALOGS, *SERVERS, *DERIVED]

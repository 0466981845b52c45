"""Writes tests/assets/schema/REVISION.db: a catalogue of this version's schema, with rows.

    python tools/make_schema_asset.py

Run it once when a schema is released, and commit the file: later versions must be able to upgrade
it and then use it. An asset is never made again.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from forvalue_index.catalog import migrations
from forvalue_index.catalog.catalog import Catalog
from forvalue_index.records import Segment, StoredSample

FOLDER = Path(__file__).parent.parent / "tests" / "assets" / "schema"
CONFIG = {"dim": 4, "model": {"name": "tiny", "revision": None}}
FINGERPRINT = {"model": "abc", "dim": 4}


def sample(id: int) -> StoredSample:
    """The sample that every asset holds under this id."""
    row = {"prompt": f"Grüße {id}", "response": f"数据 {id}", "n": id}
    return StoredSample(id, f"k{id}", f"hash{id}", row, 10 + id, 5, bool(id % 2), 1 / (id + 1), 0.5)


def make(path: Path) -> None:
    """Two segments, five samples, of which one is removed and one replaced."""
    with Catalog.create(f"sqlite:///{path}", CONFIG, FINGERPRINT) as catalog:
        catalog.commit_segment(
            Segment("000000000000.faiss", 4, 100, "0" * 64), [sample(id) for id in range(4)]
        )
        catalog.commit_segment(
            Segment("000000000004.faiss", 1, 80, "1" * 64),
            [sample(4)],
            replaces=[3],
            retained_energy=0.75,
        )
        catalog.remove(["k1"])
    with closing(sqlite3.connect(path)) as raw:  # one file, without a write-ahead log
        raw.execute("PRAGMA journal_mode = DELETE")


def main() -> None:
    """The command line."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{migrations.head()}.db"
    if path.exists():
        sys.exit(f"{path} is there already: an asset is never made again")
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "catalog.db")
        shutil.copy(Path(folder) / "catalog.db", path)
    print(path)


if __name__ == "__main__":
    main()

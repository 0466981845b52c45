"""What a condition on the rows of an index costs: CPU time of the first filter and of later ones.

    python tools/bench_filters.py --rows 200000
    python tools/bench_filters.py --catalog postgresql://localhost/empty

Made-up rows of about 0.8 KB: a name and two numbers that no two rows share, a source, a date, an
object, and two texts.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.records import Row, Segment, StoredSample
from forvalue_index.search.checked import CheckedFiles
from forvalue_index.store.fields import KeptFields

SEGMENT = 10_000  # rows that are committed together
REPEATS = 3


def row_of(number: int) -> Row:
    """The row of a number, the same each time."""
    drawn = random.Random(number)
    words = [f"word{drawn.randrange(500)}" for _ in range(75)]
    return {
        "prompt": " ".join(words[:40]),
        "response": " ".join(words[40:]),
        "id": f"row-{number}",
        "number": number,
        "share": drawn.random(),
        "source": drawn.choice(["math", "code", "chat"]),
        "größe": number % 7,
        'in "quotes"': number % 7,
        "meta": {
            "language": drawn.choice(["de", "en", "fr"]),
            "day": f"2024-01-{number % 28 + 1:02}",
        },
    }


def conditions_of(rows: int) -> dict[str, list[str]]:
    """Name of a filter -> its conditions."""

    def some(count: int) -> range:
        return range(0, rows, max(rows // count, 1))

    return {
        "source=math": ["source=math"],
        "source!=math": ["source!=math"],
        "id=row-7": ["id=row-7"],
        "id in (100 values)": [f"id in {','.join(f'row-{i}' for i in some(100))}"],
        "id in (10,000 values)": [f"id in {','.join(f'row-{i}' for i in some(10_000))}"],
        "number in (10,000 values)": [f"number in {','.join(map(str, some(10_000)))}"],
        "share<0.5": ["share<0.5"],
        "prompt=word1": ["prompt=word1"],
        "meta.language in de,fr": ["meta.language in de,fr"],
        "meta.day>=2024-01-15": ["meta.day>=2024-01-15"],
        "größe=3": ["größe=3"],
        'in "quotes"=3': ['in "quotes"=3'],
        "three of them": ["source=math", "meta.language=de", "share<0.5"],
    }


def measure(url: str, rows: int, folder: Path) -> dict[str, tuple[int, float, float]]:
    """Name of a filter -> how many rows meet it, and the seconds of CPU that it took.

    At first, when all rows are read and columns of their fields are kept in `folder`; and later.
    """
    found = {}
    with Catalog.create(url, {}, {}) as catalog:
        for start in range(0, rows, SEGMENT):
            ids = range(start, min(start + SEGMENT, rows))
            samples = [
                StoredSample(id, f"k{id}", "", row_of(id), 3, 2, False, 1.0, 1.0) for id in ids
            ]
            catalog.commit_segment(Segment(f"{start}.faiss", len(ids), 1, ""), samples)
        segments = catalog.segments()
        for number, (name, conditions) in enumerate(conditions_of(rows).items()):
            kept = folder / str(number)
            kept.mkdir()
            seconds = []
            for _ in range(1 + REPEATS):
                fields = KeptFields(CheckedFiles(kept, kept / "checked.json"), catalog)
                begin = time.process_time()
                met = len(fields.where(segments, conditions, nullcontext))
                seconds.append(time.process_time() - begin)
            found[name] = met, seconds[0], min(seconds[1:])
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--catalog", help="URL of an empty PostgreSQL database")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.catalog or f"sqlite:///{Path(folder) / 'catalog.db'}"
        found = measure(url, options.rows, Path(folder))
    print(f"| filter on {options.rows:,} rows | meet it | first | later |\n|---|---|---|---|")
    for name, (met, first, later) in found.items():
        print(f"| `{name}` | {met:,} | {first:.2f} s | {later:.3f} s |")


if __name__ == "__main__":
    main()

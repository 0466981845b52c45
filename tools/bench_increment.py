"""What small changes to a large index cost: add, remove, compact, open and query.

    python tools/bench_increment.py --samples 100000 --dim 1024

Synthetic vectors and rows of about 1 KB go through the same write path as encoded ones
(`Writer.commit`), so that what is measured is what the store adds to the forward passes.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from forvalue_index.config import FormatConfig, IndexConfig, ModelConfig, VectorConfig
from forvalue_index.records import Encoded, Sample
from forvalue_index.store.compact import compact
from forvalue_index.store.layout import SEGMENTS
from forvalue_index.store.store import Store
from forvalue_index.store.verify import verify

CHUNK = 1024


def samples(first: int, count: int, dim: int) -> tuple[list[Sample], list[Encoded]]:
    """Samples and vectors that depend on their number alone."""
    made, encoded = [], []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        text = rng.bytes(450).hex()
        row = {"id": f"k{number}", "n": number, "text": text}
        content = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        ids, scored = np.zeros(300, np.int32), np.ones(300, np.bool_)
        made.append(Sample(f"k{number}", content, row, ids, scored, False, ""))
        vector = rng.standard_normal(dim, np.float32)
        encoded.append(Encoded(vector, 1.0, float(np.linalg.norm(vector)), 1.0))
    return made, encoded


@contextmanager
def timed(what: str, seconds: dict[str, float]) -> Iterator[None]:
    """Adds the time of the block to `seconds[what]`."""
    start = time.perf_counter()
    yield
    seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - start


def measure(directory: Path, n: int, dim: int, catalog: str | None) -> dict[str, float]:
    """Seconds by step; the making of synthetic samples is not counted."""
    seconds: dict[str, float] = {}
    config = IndexConfig(ModelConfig("synthetic"), FormatConfig(key_field="id"), VectorConfig())
    store = Store.create(directory, config, {"model": "synthetic"}, catalog)
    store.set_vectoriser(b"synthetic", {"dim": dim, "retained": 1.0})
    query = np.random.default_rng(0).standard_normal((1, dim), np.float32)

    def add(first: int, count: int, what: str) -> None:
        for start in range(first, first + count, CHUNK):
            part = samples(start, min(CHUNK, first + count - start), dim)
            with timed(what, seconds), store.writer.lock():
                store.catalog.known([sample.key for sample in part[0]])
                store.writer.commit(*part)

    def ask(what: str) -> None:
        again = Store.open(directory)
        with timed(what, seconds):
            again.answer(lambda view: view.samples(view.flat.search(query, 10)[1][0].tolist()))
        again.close()

    add(0, n, "build")
    ask("open and first query, every segment hashed")
    ask("open and first query")
    files = {path.name: path.stat().st_mtime_ns for path in (directory / SEGMENTS).iterdir()}
    add(n, 100, "add 100")
    for name, time_written in files.items():
        assert (directory / SEGMENTS / name).stat().st_mtime_ns == time_written, "rewritten"
    with timed("remove 1,000", seconds):
        assert store.writer.remove([f"k{i}" for i in range(0, n, n // 1000)]) == 1000
    ask("open and first query after both")
    with timed("verify", seconds):
        assert verify(store) == []
    with timed("compact", seconds):
        compact(store)
    ask("open and first query after compaction")
    assert verify(store) == []
    store.close()
    return seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--catalog", help="URL of an empty PostgreSQL database")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        seconds = measure(path, options.samples, options.dim, options.catalog)
    print(f"{options.samples:,} samples of {options.dim} numbers")
    for what, value in seconds.items():
        print(f"{value:9.3f} s  {value / seconds['build']:7.2%} of the build  {what}")


if __name__ == "__main__":
    main()

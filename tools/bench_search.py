"""Exact search against the time to read the vectors once, and against what others do.

    python tools/bench_search.py [--n 100000 ...] [--dim 1024 ...] [--batch 1000] [--json]
    python tools/bench_search.py --n 10000000 --dim 1024 --way "forvalue on GPUs"

All ways take turns in one process, on the same vectors (normal numbers, float16); figures are
medians over the turns, so that what else the machine does meets them all alike.

- read: the bytes of the vectors, summed once by all cores, by whichever of numpy and torch is
  faster: no search that looks at every vector can be faster than that, if they do not fit into
  the cache;
- forvalue: `FlatSearch` on segments of --segment vectors in a folder, mapped into memory, k = 10;
- cosine: the same, ranked by cosines;
- faiss: an `IndexScalarQuantizer` of float16, as a library user would make it;
- knn: `faiss.knn` on float32 (twice the bytes); numpy, torch: a product with float32 vectors and
  the best of the scores.

p50 and p95 are of one query at a time, another one each time; a batch is --batch queries in one
call, and `/ single` its queries per second over those of one at a time. Where there are GPUs that
FAISS can use, "forvalue on GPUs" has the vectors there; its `/ read` is against a sum of the same
bytes on the first of them.
"""

from __future__ import annotations

import itertools
import json
import platform
import tempfile
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from forvalue_index.records import Segment
from forvalue_index.search.backend import faiss
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.segments import write_segment

CHUNK = 8192
WAYS = ("forvalue", "cosine", "faiss fp16", "faiss.knn", "numpy", "torch")
Floats = NDArray[np.float32]
Search = Callable[[Floats], tuple[Any, Any]]


def drawn(n: int, dim: int) -> NDArray[np.float16]:
    """Returns normal numbers, [n, dim]."""
    halves = np.empty((n, dim), np.float16)
    for start in range(0, n, CHUNK):
        block = halves[start : start + CHUNK]
        block[:] = np.random.default_rng([dim, start]).standard_normal(block.shape, np.float32)
    return halves


def write(folder: Path, halves: NDArray[np.float16], size: int) -> list[Segment]:
    """Returns the segments of vectors, of `size` each, the last of what is left."""
    return [
        write_segment(
            folder,
            f"{first}.faiss",
            np.arange(first, min(first + size, len(halves))),
            halves[first : first + size].astype(np.float32),
        )
        for first in range(0, len(halves), size)
    ]


def readers(halves: NDArray[np.float16]) -> dict[str, Callable[[], object]]:
    """Returns name -> a way to read all bytes once."""
    words = halves.reshape(-1)[: halves.size // 4 * 4].view(np.int64)
    threads = torch.get_num_threads()
    shares = np.array_split(words, threads)
    pool = ThreadPoolExecutor(threads)
    tensor = torch.from_numpy(words)
    return {
        "numpy sum": lambda: list(pool.map(np.sum, shares)),
        "numpy xor": lambda: list(pool.map(np.bitwise_xor.reduce, shares)),
        "torch sum": tensor.sum,
    }


def competitors(halves: NDArray[np.float16], k: int, wanted: Collection[str]) -> dict[str, Search]:
    """Returns name -> a plain search of the same vectors; float32 where it fits into memory."""
    lib = faiss()
    n, dim = halves.shape
    ways: dict[str, Search] = {}
    if "faiss fp16" in wanted:
        kind = lib.ScalarQuantizer.QT_fp16
        index = lib.IndexScalarQuantizer(dim, kind, lib.METRIC_INNER_PRODUCT)
        for start in range(0, n, CHUNK):
            index.add(halves[start : start + CHUNK].astype(np.float32))
        ways["faiss fp16"] = lambda q: index.search(q, k)
    others = {"faiss.knn", "numpy", "torch"}.intersection(wanted)
    if not others or 6 * halves.nbytes > psutil.virtual_memory().available:
        return ways
    floats = halves.astype(np.float32)
    tensor = torch.from_numpy(floats)

    def with_numpy(queries: Floats) -> tuple[Any, Any]:
        scores = queries @ floats.T
        best = np.argpartition(scores, n - k, axis=1)[:, n - k :]
        return np.take_along_axis(scores, best, 1), best

    ways |= {
        "faiss.knn": lambda q: lib.knn(q, floats, k, metric=lib.METRIC_INNER_PRODUCT),
        "numpy": with_numpy,
        "torch": lambda q: (torch.from_numpy(q) @ tensor.T).topk(k),
    }
    return {name: way for name, way in ways.items() if name in wanted}


def seconds(function: Callable[[], object]) -> float:
    """Returns how long a call takes, once the threads of the last one no longer spin for work."""
    time.sleep(0.02)
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(
    folder: Path,
    n: int,
    dim: int,
    batch: int,
    size: int,
    k: int,
    repeats: int,
    wanted: Collection[str],
) -> list[dict[str, Any]]:
    """Returns a row for each way to search that is wanted, for one n and dim."""
    queries = np.random.default_rng(0).standard_normal((batch, dim), np.float32)
    halves = drawn(n, dim)
    segments = write(folder, halves, size)
    flat = FlatSearch(folder, segments, dim)
    opened = [seconds(lambda: FlatSearch(folder, segments, dim)) for _ in range(3)]
    ways: dict[str, Search] = {}
    if "forvalue" in wanted:
        ways["forvalue"] = lambda q: flat.search(q, k)
    if "cosine" in wanted:
        weights = np.concatenate([1 / np.linalg.norm(v, axis=1) for _, v in flat.blocks()])
        weights.flags.writeable = False
        ways["cosine"] = lambda q: flat.search(q, k, weights=weights)
    ways |= competitors(halves, k, wanted)
    reads, limits = readers(halves), {}
    single: dict[str, list[float]] = {name: [] for name in ways}
    read: dict[str, list[float]] = {name: [] for name in reads}
    for turn in itertools.count(-1):  # the first turn only warms up
        if turn == repeats:
            break
        for name, function in reads.items():
            read[name].append(seconds(function))
        for name, way in ways.items():
            query = queries[[turn % batch]]
            single[name].append(seconds(lambda way=way, query=query: way(query)))  # type: ignore[misc]
    limit = min(float(np.median(times[1:])) for times in read.values())
    rows = []
    for name, way in ways.items():
        p50, p95 = np.quantile(single[name][1:], [0.5, 0.95])
        together = float(np.median([seconds(lambda way=way: way(queries)) for _ in range(3)]))  # type: ignore[misc]
        rows.append(
            {
                "n": n,
                "dim": dim,
                "way": name,
                "read_seconds": limits.get(name, limit),
                "p50": float(p50),
                "p95": float(p95),
                "ratio_to_read": float(p50) / limits.get(name, limit),
                "batch": batch,
                "batch_seconds": together,
                "batch_queries_per_second": batch / together,
                "batch_over_single": batch / together * float(p50),
                "batch_gflops": 2e-9 * batch * n * dim / together,
            }
        )
    if not rows:
        raise click.UsageError("no GPU, and no other way to search is asked for")
    rows[0] |= {"segments": len(segments), "open_seconds": float(np.median(opened))}
    return rows


@click.command()
@click.option("--n", "ns", multiple=True, type=int, default=(10_000, 100_000), show_default=True)
@click.option(
    "--dim", "dims", multiple=True, type=int, default=(512, 1024, 4096), show_default=True
)
@click.option(
    "--way",
    "wanted",
    multiple=True,
    type=click.Choice(WAYS),
    default=WAYS,
    help="Ways to search.  [default: all]",
)
@click.option("--batch", default=1000, show_default=True)
@click.option("--segment", default=32_768, show_default=True, help="Vectors of a segment.")
@click.option("-k", default=10, show_default=True)
@click.option("--repeats", default=31, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    ns: tuple[int, ...],
    dims: tuple[int, ...],
    wanted: tuple[str, ...],
    batch: int,
    segment: int,
    k: int,
    repeats: int,
    as_json: bool,
) -> None:
    """Prints latency, throughput and the ratio to reading the vectors once."""
    rows = []
    for n, dim in itertools.product(ns, dims):
        if 8 * n * dim > psutil.virtual_memory().available:
            click.echo(f"{n:,} x {dim} does not fit into memory: left out", err=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(Path(folder), n, dim, batch, segment, k, repeats, wanted)
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(title=f"k = {k}; {platform.machine()}, {torch.get_num_threads()} threads")
    for column in ("n", "dim", "way", "p50 ms", "p95 ms", "/ read", "batch q/s", "/ single"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        table.add_row(
            f"{row['n']:,}",
            str(row["dim"]),
            row["way"],
            f"{1e3 * row['p50']:.2f}",
            f"{1e3 * row['p95']:.2f}",
            f"{row['ratio_to_read']:.2f}",
            f"{row['batch_queries_per_second']:,.0f}",
            f"{row['batch_over_single']:.1f}",
        )
    Console().print(table)
    for row in rows:
        if "open_seconds" in row:
            print(
                f"{row['n']:,} x {row['dim']}: read in {1e3 * row['read_seconds']:.2f} ms, "
                f"{row['segments']} segments opened in {1e3 * row['open_seconds']:.1f} ms, "
                f"batch at {row['batch_gflops']:.0f} GFLOP/s"
            )


if __name__ == "__main__":
    main()

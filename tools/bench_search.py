"""Search of stored vectors against the time to read their bytes once, and against what others do.

    python tools/bench_search.py [--n 100000 ...] [--dim 4096 ...] [--bits 4 ...] [--json]

All ways take turns in one process, on the same vectors; figures are medians over the turns, so that
what else the machine does meets them all alike. Vectors are sums of --rank directions, whose energy
falls as that of stored vectors does (a power of their number, -0.7), and of noise.

- read: the bytes of the codes, summed once by all cores, by whichever of numpy and torch is faster;
- forvalue: `FlatSearch` on segments of --segment vectors in a folder, mapped into memory, k = 10;
- cosine: the same, ranked by cosines;
- faiss: FAISS alone on the segments' own index;
- knn: `faiss.knn`, torch: a product and the best of the scores, both on the vectors in float32.

p50 and p95 are of one query at a time, another one each time; a batch is --batch queries in one
call, and `/ single` its queries per second over those of one at a time.
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
from forvalue_index.search.segment import write_segment

CHUNK = 8192
WAYS = ("forvalue", "cosine", "faiss", "knn", "torch")
Floats = NDArray[np.float32]
Search = Callable[[Floats], tuple[Any, Any]]


def drawn(n: int, dim: int, rank: int, seed: int) -> Floats:
    """Returns vectors with directions in common, [n, dim]."""
    basis = np.random.default_rng(0).standard_normal((rank, dim), np.float32)
    basis *= np.arange(1, rank + 1, dtype=np.float32)[:, None] ** -0.7
    rng = np.random.default_rng([1, seed])
    noise = 0.3 * rng.standard_normal((n, dim), np.float32)
    return rng.standard_normal((n, rank), np.float32) @ basis + noise


def write(folder: Path, n: int, dim: int, bits: int, rank: int, size: int) -> list[Segment]:
    """Returns segments of vectors, of `size` each, the last of what is left."""
    return [
        write_segment(
            folder,
            f"{first}.faiss",
            np.arange(first, min(first + size, n)),
            drawn(min(size, n - first), dim, rank, 1 + first),
            bits,
        )
        for first in range(0, n, size)
    ]


def readers(flat: FlatSearch) -> dict[str, Callable[[], object]]:
    """Returns name -> a way to read all codes once."""
    parts = [segment.data.reshape(-1) for segment in flat.opened]
    words = [part[: len(part) // 8 * 8].view(np.int64) for part in parts]
    threads = torch.get_num_threads()
    shares = [share for part in words for share in np.array_split(part, threads)]
    pool = ThreadPoolExecutor(threads)
    tensors = [torch.from_numpy(part) for part in words]
    return {
        "numpy sum": lambda: list(pool.map(np.sum, shares)),
        "numpy xor": lambda: list(pool.map(np.bitwise_xor.reduce, shares)),
        "torch sum": lambda: [tensor.sum() for tensor in tensors],
    }


def competitors(flat: FlatSearch, k: int, wanted: Collection[str]) -> dict[str, Search]:
    """Returns name -> a plain search of the same vectors; float32 where it fits into memory."""
    lib = faiss()
    ways: dict[str, Search] = {}
    if "faiss" in wanted:
        indexes = [segment.index for segment in flat.opened]

        def alone(queries: Floats) -> tuple[Any, Any]:
            found = [index.search(queries, k) for index in indexes]
            scores, ids = (np.concatenate(part, 1) for part in zip(*found, strict=True))
            best = np.argsort(-scores, axis=1)[:, :k]
            return np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)

        ways["faiss"] = alone
    if 6 * flat.ntotal * flat.dim > psutil.virtual_memory().available:
        return ways
    if {"knn", "torch"}.intersection(wanted):
        floats = flat.vectors(flat.ids)
        tensor = torch.from_numpy(floats)
        others: dict[str, Search] = {
            "knn": lambda q: lib.knn(q, floats, k, metric=lib.METRIC_INNER_PRODUCT),
            "torch": lambda q: (torch.from_numpy(q) @ tensor.T).topk(k),
        }
        ways |= {name: way for name, way in others.items() if name in wanted}
    return ways


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
    bits: int,
    rank: int,
    batch: int,
    size: int,
    k: int,
    repeats: int,
    wanted: Collection[str],
) -> list[dict[str, Any]]:
    """Returns a row for each way to search that is wanted, for one n and dim."""
    queries = drawn(batch, dim, rank, 0)
    segments = write(folder, n, dim, bits, rank, size)
    flat = FlatSearch(folder, segments, dim, bits)
    opened = [seconds(lambda: FlatSearch(folder, segments, dim, bits)) for _ in range(3)]
    ways: dict[str, Search] = {}
    if "forvalue" in wanted:
        ways["forvalue"] = lambda q: flat.search(q, k)
    if "cosine" in wanted:
        weights = np.concatenate([1 / np.linalg.norm(v, axis=1) for _, v in flat.blocks()])
        weights.flags.writeable = False
        ways["cosine"] = lambda q: flat.search(q, k, weights=weights)
    ways |= competitors(flat, k, wanted)
    reads = readers(flat)
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
                "bits": bits,
                "way": name,
                "read_seconds": limit,
                "p50": float(p50),
                "p95": float(p95),
                "ratio_to_read": float(p50) / limit,
                "batch": batch,
                "batch_seconds": together,
                "batch_queries_per_second": batch / together,
                "batch_over_single": batch / together * float(p50),
                "batch_gflops": 2e-9 * batch * n * dim / together,
            }
        )
    if not rows:
        raise click.UsageError("no way to search is asked for")
    rows[0] |= {"segments": len(segments), "open_seconds": float(np.median(opened))}
    return rows


@click.command()
@click.option("--n", "ns", multiple=True, type=int, default=(10_000, 100_000), show_default=True)
@click.option("--dim", "dims", multiple=True, type=int, default=(4096,), show_default=True)
@click.option("--bits", "several", multiple=True, type=int, default=(4,), show_default=True)
@click.option("--rank", default=300, show_default=True, help="Directions in common.")
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
    several: tuple[int, ...],
    rank: int,
    wanted: tuple[str, ...],
    batch: int,
    segment: int,
    k: int,
    repeats: int,
    as_json: bool,
) -> None:
    """Prints latency, throughput and the ratio to reading the vectors once."""
    rows = []
    for n, dim, bits in itertools.product(ns, dims, several):
        if n * dim > psutil.virtual_memory().available:
            click.echo(f"{n:,} x {dim} does not fit into memory: left out", err=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(Path(folder), n, dim, bits, rank, batch, segment, k, repeats, wanted)
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(title=f"k = {k}; {platform.machine()}, {torch.get_num_threads()} threads")
    for column in (
        "n",
        "dim",
        "bits",
        "way",
        "p50 ms",
        "p95 ms",
        "/ read",
        "batch q/s",
        "/ single",
    ):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        table.add_row(
            f"{row['n']:,}",
            str(row["dim"]),
            str(row["bits"]),
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

"""What shards cost and bring: workers side by side, merging, and what a billion rows would take.

    python tools/bench_shards.py workers --model ../shared/models/mix8m --data rows.jsonl
    python tools/bench_shards.py merge
    python tools/bench_shards.py latency --rows 50000

`workers` builds the same index on Ray with one worker and with two, of one core and one thread
each, in turns, and prints the rows a second between the first row that is encoded and the last: the
start of processes is left out. `merge` times the joining of sorted lists of 16 shards. `latency`
times searches of one shard of synthetic vectors through the real files, in seconds of one core,
draws from these times what many shards in parallel take (the slowest one counts), and prints what
large indexes take by it, with one shard for each core of the nodes.
"""

from __future__ import annotations

import os

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray stays on the loopback
    "RAY_worker_niceness": "0",
}

import sys
import tempfile
import time
import tracemalloc
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import click
import numpy as np
from bench_increment import samples
from numpy.typing import NDArray

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, VectorConfig
from forvalue_index.config import IndexConfig
from forvalue_index.metric import METRICS
from forvalue_index.shards.scatter import Asked, merged, search_one
from forvalue_index.shards.store import create, open_shards
from forvalue_index.store.layout import size

SHARDS = 16
STRAGGLING = 0.01, 10.0  # share of searches that find their machine busy, and how much slower
DRAWS = 2000
CENTRES = 256  # of the synthetic vectors
QUOTED = 0.5, 0.99  # of many draws

Times = NDArray[np.float64]


@click.group(help=__doc__)
def main() -> None:
    """The command line."""


# -- workers side by side --------------------------------------------------------------------------


@main.command()
@click.option("--model", required=True)
@click.option("--data", required=True)
@click.option("--rows", default=1000, show_default=True, help="Rows of the data that are used.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--question", "prompt", default="question", show_default=True, help="Their field.")
@click.option("--answer", "response", default="answer", show_default=True, help="Their field.")
def workers(model: str, data: str, rows: int, repeats: int, prompt: str, response: str) -> None:
    """Compares two workers with one."""
    lines = Path(data).read_text().splitlines()[:rows]
    best = {1: 0.0, 2: 0.0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
        for repeat in range(repeats):
            for n in best:
                rate = _rate(folder, ModelConfig(model), n, f"{repeat}-{n}", prompt, response)
                best[n] = max(best[n], rate)
                print(f"{n} worker{'s' * (n > 1)}: {rate:.1f} rows a second", flush=True)
    print(
        f"best: {best[1]:.1f} and {best[2]:.1f} rows a second, "
        f"{best[2] / best[1]:.2f} times as fast with two"
    )


def _rate(
    folder: Path, model: ModelConfig, workers: int, name: str, prompt: str, response: str
) -> float:
    """Returns the rows a second while workers encode, from the first to the last."""
    seen: list[tuple[float, int]] = []

    def note(stage: str, done: int, *_: int) -> None:
        if stage == "encoding" and (not seen or done > seen[-1][1]):
            seen.append((time.perf_counter(), done))

    ray = import_module("ray")
    settings = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(
        num_cpus=workers,
        object_store_memory=2**27,
        log_to_driver=False,
        logging_level="ERROR",
        **settings,
    )
    try:
        InfluenceIndex.build_on_ray(
            folder / name,
            folder / "rows.jsonl",
            model,
            2,
            format=FormatConfig(prompt_field=prompt, response_field=response),
            vector=VectorConfig(fit_samples=64),
            progress=note,
        )
    finally:
        ray.shutdown()
    counting = [pair for pair in seen if pair[1]]
    (start, first), (end, last) = counting[0], counting[-1]
    return (last - first) / max(end - start, 1e-9)


# -- merging ---------------------------------------------------------------------------------------


@main.command()
@click.option("--repeats", default=50, show_default=True)
def merge(repeats: int) -> None:
    """Times the merging of the lists of 16 shards."""
    rng = np.random.default_rng(0)
    for n, k in ((1, 10), (1, 100), (1, 1000), (64, 10), (64, 100)):
        queries = np.zeros((n, 1), np.float32)
        asked = Asked(queries, k, METRICS["dot"], opponents=False, flat=False)
        found = {
            number: (
                -np.sort(-rng.standard_normal((n, k), np.float32)),
                rng.integers(0, 10**7, (n, k)),
            )
            for number in range(SHARDS)
        }
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            merged(found, asked, SHARDS)
            times.append(time.perf_counter() - start)
        print(
            f"{SHARDS} shards, {n} queries, k {k}: {1000 * min(times):.2f} ms at best, "
            f"{1000 * float(np.median(times)):.2f} ms in the middle"
        )


# -- latency ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What one shard takes."""

    times: list[float]  # seconds of one core of each search
    n_bytes: int  # on disk, rows and all
    read: int  # of these what a search reads of every row
    asking: int  # in memory where a command runs: ids and figures


@main.command()
@click.option("--rows", default=50_000, show_default=True, help="In the shard that is timed.")
@click.option("--dim", default=VectorConfig().dim, show_default=True)
@click.option("--searches", default=60, show_default=True)
@click.option("--rate", default=100.0, show_default=True, help="Rows a second of one GPU.")
@click.option("--cores", default=16, show_default=True, help="Of a node: that many shards each.")
def latency(rows: int, dim: int, searches: int, rate: float, cores: int) -> None:
    """Draws what many shards take from what one takes; prints the costs of large indexes."""
    with tempfile.TemporaryDirectory() as name:
        one = _one_shard(Path(name), rows, dim, searches)
    print(
        f"one shard of {rows:,} rows of 1 KB: {_ms(one.times, 0.5)} ms of one core a query in the "
        f"middle, {_ms(one.times, 0.99)} at worst of 100; bytes a row: {one.n_bytes / rows:,.0f} "
        f"on disk, of which a search reads {one.read / rows:,.0f}; {one.asking / rows:,.0f} in "
        "memory where a command runs\n"
    )
    share, factor = STRAGGLING
    print(
        f"| shards of {rows:,} rows | ms | at worst of 100 | {share:.0%} of searches "
        f"{factor:.0f} x slower, ms | at worst of 100 |\n|---|---|---|---|---|"
    )
    for shards in (1, 4, 16, 64, 256, 1024):
        cells = [_ms(_slowest(one.times, shards, often), q) for often in (0, share) for q in QUOTED]
        print(f"| {shards} | {' | '.join(cells)} |")
    print(
        f"\n| rows | nodes of {cores} cores | GPU hours | TiB | GiB a node, to be in memory | "
        "GiB where a command runs | s a query | with stragglers, at worst of 100 |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for total in (10**8, 10**9):
        for nodes in (1, 4, 16, 64):
            own = total / nodes / cores / rows  # times what was measured
            print(
                f"| {total:.0e} | {nodes} | {total / rate / 3600:,.0f} | "
                f"{total * one.n_bytes / rows / 2**40:.2f} | "
                f"{total / nodes * one.read / rows / 2**30:.1f} | "
                f"{total * one.asking / rows / 2**30:.1f} | "
                f"{own * float(np.median(_slowest(one.times, nodes * cores, 0))):.2f} | "
                f"{own * float(np.quantile(_slowest(one.times, nodes * cores, share), 0.99)):.2f} |"
            )


def _slowest(times: list[float], shards: int, straggling: float) -> Times:
    """Returns the slowest of so many searches at once, in each of many draws [DRAWS]."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(times, (DRAWS, shards))
    slow = rng.random(drawn.shape) < straggling
    return np.asarray(np.where(slow, STRAGGLING[1] * drawn, drawn).max(1))


def _ms(times: list[float] | Times, quantile: float) -> str:
    return f"{1000 * float(np.quantile(times, quantile)):.1f}"


def _one_shard(folder: Path, rows: int, dim: int, searches: int) -> Measured:
    """Builds an index of one shard, and searches it."""
    config = IndexConfig(
        ModelConfig("synthetic"), FormatConfig(key_field="id"), VectorConfig(dim=dim)
    )
    store = create(folder / "i", config, {"model": "synthetic"}, 1)
    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((CENTRES, dim), np.float32)  # rows are like some others
    with store.writer.lock():
        store.set_vectoriser(b"synthetic", {"dim": dim, "retained": 1.0})
        for first in range(0, rows, 1024):
            made, encoded = samples(first, min(1024, rows - first), dim)
            encoded = [
                replace(item, vector=item.vector + centres[number % CENTRES])
                for number, item in enumerate(encoded)
            ]
            store.writer.commit(made, encoded)
            print(f"{first + len(made):,} of {rows:,} rows", end="\r", file=sys.stderr)
    store.close()
    tracemalloc.start()
    store = open_shards(folder / "i")
    store.snapshots.current.figures()
    asking = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    shard, times = store.shards[0], list[float]()
    for _ in range(searches + 1):
        query = rng.standard_normal((1, dim), np.float32) + centres[rng.integers(CENTRES)]
        asked = Asked(query, 10, METRICS["dot"], opponents=False, flat=False)
        start = time.process_time()  # of one core, however busy the machine is
        shard.answer(lambda snapshot, asked=asked: search_one(snapshot, asked, None))  # type: ignore[misc]
        times.append(time.process_time() - start)
    n_bytes = size(shard.directory)
    read = sum(path.stat().st_size for path in store.directory.rglob("*.side"))
    store.close()
    return Measured(times[1:], n_bytes, read, asking)


if __name__ == "__main__":
    main()

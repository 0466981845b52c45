"""What shards cost and bring: workers side by side, merging, and what a billion rows would take.

    python tools/bench_shards.py workers --model ../shared/models/mix8m --data rows.jsonl
    python tools/bench_shards.py merge
    python tools/bench_shards.py latency --rows 50000

`workers` builds the same index on Ray with one worker and with two, of one core and one thread
each, in turns, and prints the rows a second between the first row that is encoded and the last: the
start of processes is left out. `merge` times the joining of sorted lists of 16 shards. `latency`
times searches of one shard of synthetic vectors through the real files, draws from these times what
many shards in parallel take (the slowest one counts), and prints what large indexes take by it.
"""

from __future__ import annotations

import os

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray stays on the loopback
    "RAY_worker_niceness": "0",
}

import tempfile
import time
from importlib import import_module
from pathlib import Path

import click
import numpy as np
from bench_increment import samples

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, VectorConfig
from forvalue_index.config import IndexConfig
from forvalue_index.metric import METRICS
from forvalue_index.shards.scatter import Asked, merged, search_one
from forvalue_index.store.layout import size
from forvalue_index.store.store import Store

SHARDS = 16
STRAGGLING = 0.01, 10.0  # share of searches that find their machine busy, and how much slower
DRAWS = 2000


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


@main.command()
@click.option("--rows", default=50_000, show_default=True, help="In the shard that is timed.")
@click.option("--dim", default=VectorConfig().dim, show_default=True)
@click.option("--searches", default=60, show_default=True)
@click.option("--rate", default=100.0, show_default=True, help="Rows a second of one GPU.")
def latency(rows: int, dim: int, searches: int, rate: float) -> None:
    """Draws what many shards take from what one takes; prints the costs of large indexes."""
    with tempfile.TemporaryDirectory() as name:
        times, n_bytes = _one_shard(Path(name), rows, dim, searches)
    print(
        f"one shard of {rows:,} rows: {1000 * float(np.median(times)):.1f} ms a query in the "
        f"middle, {1000 * float(np.quantile(times, 0.99)):.1f} ms at worst of 100; "
        f"{n_bytes / rows:,.0f} bytes a row with rows of 1 KB"
    )
    rng = np.random.default_rng(0)
    share, factor = STRAGGLING
    print(
        f"the slowest of N such shards in parallel; {share:.0%} of searches {factor:.0f} x slower"
    )
    for shards in (1, 4, 16, 64, 256, 1024):
        drawn = rng.choice(times, (DRAWS, shards))
        even = drawn.max(1)
        drawn = np.where(rng.random(drawn.shape) < share, factor * drawn, drawn)
        uneven = drawn.max(1)
        print(
            f"{shards:5} shards: {1000 * float(np.median(even)):6.1f} ms without stragglers, with "
            f"them {1000 * float(np.median(uneven)):6.1f} ms in the middle, "
            f"{1000 * float(np.quantile(uneven, 0.99)):6.1f} ms at worst of 100"
        )
    per_row = float(np.median(times)) / rows
    for total in (10**8, 10**9):
        for shards in (64, 1024):
            own = total / shards
            print(
                f"{total:.0e} rows in {shards} shards: {total / rate / 3600:,.0f} GPU hours, "
                f"{total * n_bytes / rows / 2**40:.2f} TiB, {own * n_bytes / rows / 2**30:.1f} GiB "
                f"and {own:,.0f} rows a shard, {own * per_row:.2f} s a query on one core a shard"
            )


def _one_shard(folder: Path, rows: int, dim: int, searches: int) -> tuple[list[float], int]:
    """Returns the seconds of searches, and the bytes of a shard."""
    config = IndexConfig(
        ModelConfig("synthetic"), FormatConfig(key_field="id"), VectorConfig(dim=dim)
    )
    store = Store.create(folder / "i", config, {"model": "synthetic"})
    store.set_vectoriser(b"synthetic", {"dim": dim, "retained": 1.0})
    with store.writer.lock():
        for first in range(0, rows, 1024):
            made, encoded = samples(first, min(1024, rows - first), dim)
            store.writer.commit(made, encoded)
    rng, times = np.random.default_rng(0), []
    for _ in range(searches + 1):
        query = rng.standard_normal((1, dim), np.float32)
        asked = Asked(query, 10, METRICS["dot"], opponents=False, flat=False)
        start = time.perf_counter()
        store.answer(lambda snapshot, asked=asked: search_one(snapshot, asked, None))  # type: ignore[misc]
        times.append(time.perf_counter() - start)
    n_bytes = size(store.directory)
    store.close()
    return times[1:], n_bytes


if __name__ == "__main__":
    main()

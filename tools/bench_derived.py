"""Derived indexes against flat search: recall of proponents and opponents, bytes, speed.

    python tools/bench_derived.py [--index DIR] [--n 1000000] [--dim 4096] [--bits 4]
                                  [--factory STRING ...]

The vectors are synthetic, with the spectrum of real ones:

- a vector is a centre (one of n / 500, of unequal sizes) plus something of its own, of equal
  energy, plus a part that all share, times a length whose logarithm is normal;
- centres and own parts are normal with covariance eigenvalues that fall as k^-0.5, which is what
  the stored vectors of 6,917 rows of gsm8k and tofu fit (slope -0.44 to -0.59 by range), and
  are turned at random, since a code must not profit from axes; the shared part has 1.5 % of the
  energy, and the logarithms of the lengths spread by 0.39, also as there;
- with --index the eigenvalues, the shared part and the spread of the lengths are those of that
  index's vectors, the largest `--dim` of them.

They are written as segments in --keep (default: a temporary folder) and searched as any index is.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.records import Segment
from forvalue_index.search.ann_build import make_derived
from forvalue_index.search.ann_factory import auto_factory
from forvalue_index.search.backend import faiss
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.segment import write_segment
from forvalue_index.system.machine import cores

CHUNK = 10_000
PER_CENTRE = 500
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Spectrum:
    """What the synthetic vectors share with real ones."""

    eigenvalues: Floats  # of the covariance of directions, descending, of sum 1
    shared: float  # share of the energy that is in the mean direction
    spread: float  # standard deviation of the logarithm of the lengths


def power_law(dim: int) -> Spectrum:
    """Returns the spectrum that was fitted to a real index."""
    values = np.arange(1, dim + 1) ** -0.5
    return Spectrum((values / values.sum()).astype(np.float32), 0.015, 0.39)


def measured(directory: Path, dim: int) -> Spectrum:
    """Returns the spectrum of an index's vectors, from up to 8192 of them."""
    with Catalog.open(f"sqlite:///{directory / 'catalog.db'}") as catalog:
        snapshot = catalog.snapshot()
        vector = catalog.config["vector"]
    stored, bits = int(vector["dim"]), int(vector["bits"])
    flat = FlatSearch(directory / "segments", snapshot.segments, stored, bits, snapshot.removed)
    if dim > min(stored, flat.ntotal):
        raise click.UsageError(
            f"{directory} has {flat.ntotal} vectors of {stored} numbers: --dim {dim} is too many"
        )
    places = np.linspace(0, flat.ntotal - 1, min(flat.ntotal, 8192)).astype(int)
    vectors = flat.vectors(flat.ids[places])
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors[lengths > 0] / lengths[lengths > 0, None]
    mean = units.mean(axis=0)
    centred = units - mean
    small = centred.T @ centred if stored < len(units) else centred @ centred.T
    values = np.linalg.eigvalsh(small.astype(np.float64))[::-1][:dim].clip(1e-12)
    return Spectrum(
        (values / values.sum()).astype(np.float32),
        float(mean @ mean),
        float(np.log(lengths[lengths > 0]).std()),
    )


def chunks(spectrum: Spectrum, n: int, seed: int) -> Iterator[Floats]:
    """Yields n vectors, a chunk at a time: the same ones for the same seed."""
    dim = len(spectrum.eigenvalues)
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    root = np.sqrt(spectrum.eigenvalues * dim)[:, None] * turn
    count = max(1, n // PER_CENTRE)
    centres = rng.standard_normal((count, dim), np.float32) @ root
    sizes = rng.gamma(1.0, size=count)
    shared = rng.standard_normal(dim).astype(np.float32)
    shared *= np.sqrt(dim * spectrum.shared) / np.linalg.norm(shared)
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        own = rng.standard_normal((size, dim), np.float32) @ root
        centre = rng.choice(count, size, p=sizes / sizes.sum())
        vectors = np.sqrt(0.5 * (1 - spectrum.shared)) * (centres[centre] + own) + shared
        lengths = np.exp(spectrum.spread * rng.standard_normal((size, 1), np.float32))
        yield (vectors * lengths / np.sqrt(dim)).astype(np.float32)


def written(folder: Path, spectrum: Spectrum, n: int, bits: int, seed: int) -> list[Segment]:
    """Returns the segments of n vectors, made anew, or those that an earlier run left."""
    segments = folder / "segments"
    key = json.dumps([n, bits, seed, float(spectrum.shared), spectrum.eigenvalues.tolist()])
    known = folder / "segments.json"
    if known.is_file():
        found = json.loads(known.read_text())
        if found["key"] == key:
            return [Segment(**segment) for segment in found["segments"]]
    segments.mkdir(parents=True, exist_ok=True)
    first, made = 0, []
    for vectors in chunks(spectrum, n, seed):
        ids = np.arange(first, first + len(vectors))
        made.append(write_segment(segments, f"{first:012d}.faiss", ids, vectors, bits))
        first += len(vectors)
    rows = [{name: getattr(s, name) for name in Segment.__slots__} for s in made]
    known.write_text(json.dumps({"key": key, "segments": rows}))
    return made


@click.command()
@click.option("--index", "directory", type=click.Path(exists=True, path_type=Path))
@click.option("--n", default=1_000_000, show_default=True)
@click.option("--dim", default=4096, show_default=True)
@click.option("--bits", default=4, show_default=True)
@click.option("--factory", "factories", multiple=True, help="Repeatable; default: a selection.")
@click.option("--cosine", is_flag=True, help="Rank by cosine: vectors weighted by 1 / length.")
@click.option("--seed", default=0, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Where vectors stay for a next run.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines in place of a table.")
def main(
    directory: Path | None,
    n: int,
    dim: int,
    bits: int,
    factories: tuple[str, ...],
    cosine: bool,
    seed: int,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Prints, for each factory string, what it costs and what it finds."""
    spectrum = measured(directory, dim) if directory else power_law(dim)
    lists = auto_factory(max(n, 100_001), dim, 2**60)[0].partition(",")[0]
    factories = factories or (
        f"{lists},SQ8",
        f"{lists},SQfp16",
        f"{lists},SQ4",
        f"RR{dim},{lists},RaBitQ",
        f"OPQ{dim // 4}_{dim},{lists},PQ{dim // 4}x4fs",
        "HNSW32_SQ8",
    )
    console = Console(width=120)
    title = f"{n:,} vectors of {dim} x {bits} bits, {'cosine' if cosine else 'dot'}"
    table = Table(title=title, title_justify="left", box=None)
    for column in ("factory", "made in s", "bytes each", "side", "effort x candidates"):
        table.add_column(column, justify="left" if column in ("factory", "side") else "right")
    for column in ("recall@10", "recall@100", "queries/s", "flat/s"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        flat = FlatSearch(folder / "segments", written(folder, spectrum, n, bits, seed), dim, bits)
        weights = None
        if cosine:
            lengths = [np.linalg.norm(block, axis=1) for _, block in flat.blocks()]
            weights = 1 / np.concatenate(lengths)
        for factory in factories:
            start = time.perf_counter()
            done: dict[str, float] = {}

            def progress(stage: str, count: int, total: int, done: dict[str, float] = done) -> None:
                done[stage] = time.perf_counter()

            info = make_derived(
                folder / "derived", flat, factory, weights=weights, seed=seed, progress=progress
            )
            seconds = done["adding"] - start  # measuring is not making
            if as_json:
                print(json.dumps({"seconds": seconds, **info.to_json()}))
                continue
            for number, side in enumerate((info.proponents, info.opponents)):
                table.add_row(
                    "" if number else factory,
                    "" if number else f"{seconds:.0f}",
                    "" if number else f"{info.bytes_per_vector:.0f}",
                    "opponents" if number else "proponents",
                    f"{side.effort}, {side.effort_at_100} x {info.k_factor}"
                    + (" (flat)" if side.flat else ""),
                    f"{side.recall_at_10:.3f}",
                    f"{side.recall_at_100:.3f}",
                    f"{side.queries_per_second:.0f}",
                    f"{side.flat_queries_per_second:.1f}",
                )
    if not as_json:
        console.print(table, soft_wrap=True)
        console.print(
            f"{cores()} cores, {faiss().omp_get_max_threads()} threads, "
            f"{platform.machine()}, faiss {faiss().__version__}; queries one at a time; recall "
            f"over 200 vectors that were held out"
        )


if __name__ == "__main__":
    main()

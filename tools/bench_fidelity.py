"""Stored vectors against the exact form of their recipe, at several sizes.

For each form (recipe, numbers, bits, fitting rows) an index of all rows is built, and the scores
of queries that are not in it are compared with the exact ones. Figures are means over the queries,
± the standard error. "fitted" and "not fitted" rank only the rows that statistics and projection
were learned from, or only the others; a build keeps some of the former out to judge itself by.

    python tools/bench_fidelity.py --model MODEL --data gsm8k_train.jsonl
    python tools/bench_fidelity.py --model MODEL --data gsm8k_train.jsonl --queries-from \\
        gsm8k_test.jsonl --recipe balanced --recipe kfac --recipe raw --cache exact

Rows need a prompt and a response, or a pair of fields that PAIRS names; a response may also be
what follows the prompt in a field `text`. With --learn-from, recipe and projection are learned from
rows of another file, which are removed again: what an index does that has met other rows first.
Exact scores are computed once for each model, recipe,
rows and queries, and kept in --cache; a fit that learned another recipe has other exact scores.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from bench_recipes import build, machine, note
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.analysis.evaluate.metrics import Figure, kept, pearson
from forvalue_index.config import BITS, RECIPES, ModelConfig
from forvalue_index.data.sources import open_rows
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.records import Row, Sample, StoredSample

PAIRS = (("question", "answer"), ("input", "target"))
"""Fields that become "Question: ...\\nAnswer:" and a response."""
BLOCK = 512  # rows between two lines of progress
TOKENS = 1 << 14  # of queries that are held at a time; every row is run forward for each such group


@dataclass(frozen=True)
class Result:
    """How true the stored vectors of one form are."""

    set: str
    recipe: str
    dim: int
    bits: int
    fit_samples: int
    samples: int
    queries: int
    bytes_per_sample: int  # of the vector
    learned_bytes: int  # the vectoriser's file
    build_seconds: float
    own: float | None  # the top 10 kept that the build itself measured
    top_10: Figure  # share of the exact top 10 in the stored top 10
    top_10_in_100: Figure
    top_100: Figure
    pearson: Figure
    fitted: Figure  # as top_10, among the fitted rows
    not_fitted: Figure


def pairs_of(path: Path) -> list[Row]:
    """Returns the rows of a file, each with a prompt and a response.

    Raises:
        UsageError: the fields of a row are not known.
    """
    rows = []
    for place, row in open_rows(path):
        if "text" in row and "prompt" in row:
            row |= {"response": row["text"].removeprefix(row["prompt"])}
        for question, answer in PAIRS:
            if question in row and answer in row:
                prompt, response = f"Question: {row[question]}\nAnswer:", f" {row[answer]}"
                row |= {"prompt": prompt, "response": response}
        if "prompt" not in row or "response" not in row:
            raise click.UsageError(f"{place} has neither prompt and response nor one of {PAIRS}")
        rows.append({"prompt": row["prompt"], "response": row["response"]})
    return rows


def split(
    rows: list[Row], others: list[Row] | None, queries: int, seed: int
) -> tuple[list[Row], list[Row]]:
    """Returns the rows to index and the queries, drawn from `others`, else from the rows."""
    order = np.random.default_rng(seed).permutation(len(others or rows))
    chosen = order[:queries].tolist()
    if others is not None:
        return rows, [others[i] for i in chosen]
    drawn = set(chosen)
    return [row for i, row in enumerate(rows) if i not in drawn], [rows[i] for i in chosen]


def built(
    folder: str,
    rows: list[Row],
    first: list[Row],
    lm: LanguageModel,
    format: FormatConfig,
    vector: VectorConfig,
) -> InfluenceIndex:
    """Returns an index of `rows`, learned from `first` if there are any."""
    if not first:
        return build(folder, rows, lm, format, vector)
    index = build(folder, first, lm, format, vector)
    known = [item.key for item in index.rows()]
    index.add(rows)
    index.remove(known)
    return index


def exact_of(
    index: InfluenceIndex,
    queries: Sequence[Sample],
    stored: Sequence[StoredSample],
    cache: Path,
) -> NDArray[np.float32]:
    """Returns the exact influence of all rows on all queries, [q, n], from the cache if it can.

    A file has `scores`, `keys` [n], `query_keys` [q], and `learned`, the numbers of the recipe.
    """
    keys = np.array([item.key for item in stored])
    query_keys = np.array([query.key for query in queries])
    recipe = index.config.vector.recipe
    parts = index.vectoriser.parts
    tensors = [value for part in parts for value in part.recipe.tensors.values()]
    learned = np.concatenate([np.zeros(0), *(value.cpu().numpy().ravel() for value in tensors)])
    learned = learned.astype(np.float32)
    asked = [index.lm.fingerprint(), recipe, keys.tolist(), query_keys.tolist()]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
    known = sorted(cache.glob(f"{recipe}-{digest[:16]}-*.npz"))
    for path in known:
        with np.load(path) as file:
            if np.linalg.norm(file["learned"] - learned) <= 1e-4 * np.linalg.norm(learned):
                note(f"exact scores from {path}")
                found: NDArray[np.float32] = file["scores"]
                return found
    scores = np.empty((len(queries), len(stored)), np.float32)
    encoder = Encoder(index.lm, TOKENS)
    start = time.monotonic()
    for at in range(0, len(stored), BLOCK):
        part = slice(at, at + BLOCK)
        samples = index.training_samples([item.id for item in stored[part]])
        scores[:, part] = encoder.influence(queries, samples, parts)
        done = at + len(samples)
        passed = time.monotonic() - start
        left = passed / done * (len(stored) - done)
        note(
            f"exact, {recipe}: {done:,} of {len(stored):,} rows, {passed:.0f} s, {left:.0f} s left"
        )
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{recipe}-{digest[:16]}-{len(known)}.npz"
    np.savez(path, scores=scores, keys=keys, query_keys=query_keys, learned=learned)
    note(f"exact scores are in {path}")
    return scores


def compare(
    index: InfluenceIndex, queries: list[Row], cache: Path, name: str, seconds: float
) -> Result:
    """Returns how true the vectors of an index are."""
    config = index.config.vector
    stored = list(index.rows())
    samples = index.samples(queries)
    exact = exact_of(index, samples, stored, cache)
    scores = index.scores(samples)[1]
    # A vectoriser is fitted to the rows with the smallest hashes (see `pipeline/add.py`).
    order = np.argsort([item.content_hash for item in stored])
    own = index.info()["fidelity"]

    def figure(k: int, among: int | None = None, columns: NDArray[np.intp] = order) -> Figure:
        columns = np.sort(columns)
        pairs = zip(exact[:, columns], scores[:, columns], strict=True)
        return Figure.of(kept(true, found, k, among) for true, found in pairs)

    return Result(
        set=name,
        recipe=config.recipe,
        dim=index.dim,
        bits=config.bits,
        fit_samples=min(config.fit_samples, len(stored)),
        samples=len(stored),
        queries=len(samples),
        bytes_per_sample=index.flat.codes.size,
        learned_bytes=len(index.store.vectoriser_bytes()),
        build_seconds=seconds,
        own=own and own["top_10"],
        top_10=figure(10),
        top_10_in_100=figure(10, 100),
        top_100=figure(100),
        pearson=Figure.of(pearson(*pair) for pair in zip(exact, scores, strict=True)),
        fitted=figure(10, columns=order[: config.fit_samples]),
        not_fitted=figure(10, columns=order[config.fit_samples :]),
    )


def show(results: Sequence[Result]) -> None:
    """Prints all results as one table."""
    table = Table(title="stored / exact", title_justify="left")
    names = ("top_10", "top_10_in_100", "top_100", "pearson", "fitted", "not_fitted")
    heads = ("set", "rows", "fitting", "recipe", "numbers", "bytes", "MB", "own")
    for head in (*heads, *(name.replace("_", " ") for name in names)):
        table.add_column(head, no_wrap=True)
    for result in results:
        figures = asdict(result)
        table.add_row(
            result.set,
            f"{result.samples:,}",
            f"{result.fit_samples:,}",
            result.recipe,
            f"{result.dim} x {result.bits}",
            f"{result.bytes_per_sample:,}",
            f"{result.learned_bytes / 1e6:.1f}",
            "–" if result.own is None else f"{result.own:.3f}",
            *(shown(figures[name]["mean"], figures[name]["se"]) for name in names),
        )
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(
        "bytes: of a row; MB: of the learned file; own: the build's own figure; "
        f"{results[0].queries} queries, ± standard error; {machine()}"
    )


def shown(mean: float | None, error: float | None) -> str:
    """Returns a mean with its error."""
    if mean is None:
        return "–"
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"


@click.command()
@click.option("--model", required=True, help="Folder of a causal language model.")
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--queries-from",
    type=click.Path(exists=True, path_type=Path),
    help="Rows to draw queries from.  [default: rows of --data, which are not indexed then]",
)
@click.option("--queries", type=click.IntRange(1), default=50, show_default=True)
@click.option("--recipe", "recipes", type=click.Choice(RECIPES), multiple=True, default=RECIPES[:1])
@click.option("--dim", "dims", type=click.IntRange(1), multiple=True, default=(4096,))
@click.option("--bits", type=click.Choice(list(map(str, BITS))), multiple=True, default=("4", "2"))
@click.option(
    "--fit-samples",
    "fits",
    type=click.IntRange(1),
    multiple=True,
    help="Rows to learn from; repeatable.  [default: 2048, or half of the rows]",
)
@click.option(
    "--learn-from",
    type=click.Path(exists=True, path_type=Path),
    help="Other rows, of which the first --fit-samples are learned from instead.",
)
@click.option("--max-length", type=click.IntRange(2), help="Tokens.  [default: the model's]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder that keeps exact scores.")
@click.option("--json", "as_json", is_flag=True, help="A line for each form, as it is measured.")
def main(
    model: str,
    data: Path,
    queries_from: Path | None,
    queries: int,
    recipes: tuple[str, ...],
    dims: tuple[int, ...],
    bits: tuple[str, ...],
    fits: tuple[int, ...],
    learn_from: Path | None,
    max_length: int | None,
    seed: int,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Compare stored vectors with the exact form; --recipe, --dim and --bits are repeatable.

    \b
    Examples:
      python tools/bench_fidelity.py --model MODEL --data gsm8k_train.jsonl
      python tools/bench_fidelity.py --model MODEL --data bbh.jsonl --recipe kfac --recipe raw \\
          --bits 4 --fit-samples 1024 --fit-samples 3000 --cache exact
    """
    others = None if queries_from is None else pairs_of(queries_from)
    rows, asked = split(pairs_of(data), others, queries, seed)
    first = [] if learn_from is None else pairs_of(learn_from)
    lm, format = load_model(ModelConfig(model)), FormatConfig(max_length=max_length)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (recipe, fit, dim, bit) in enumerate(
            itertools.product(recipes, fits or (min(2048, len(rows) // 2),), dims, map(int, bits))
        ):
            note(f"{data.stem}: {recipe}, {dim} x {bit} bits, {fit} rows to learn from")
            vector = VectorConfig(recipe=recipe, dim=dim, bits=bit, fit_samples=fit)
            start = time.monotonic()
            where = f"{folder}/{number}"
            with built(where, rows, first[:fit], lm, format, vector) as index:
                seconds = time.monotonic() - start
                result = compare(index, asked, cache or Path(folder), data.stem, seconds)
            results.append(result)
            if as_json:
                print(json.dumps(asdict(result)), flush=True)
    if not as_json:
        show(results)


if __name__ == "__main__":
    main()

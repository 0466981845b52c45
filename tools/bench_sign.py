"""Whether the sign of a score says what training on a row does to an answer.

    python tools/bench_sign.py MODEL --data ROWS --queries QUERIES

Each of some rows is trained on alone, by one small step of gradient descent from the same weights,
and the change of each query's log-likelihood is measured: a step on the unembedding (of which the
paper's closed form is the derivative), and one on all weights. A step has the size that raises the
log-likelihood of its own row by STEP, and changes are divided by it. For each recipe: in how many
pairs its exact score has the sign of the change, in how many of the half that changed most, and the
rank correlation of scores and changes over the rows of a query. "raised" is the share of pairs in
which the change is positive, whatever the scores. With --hits, also rows that the recipes rank
first and last for a query: in how many of these pairs the answer became likelier. MODEL is read in
float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from bench_recipes import machine, note
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from forvalue_index import FormatConfig
from forvalue_index.analysis.evaluate.methods import empty_index
from forvalue_index.analysis.evaluate.metrics import Figure, spearman
from forvalue_index.config import RECIPES, ModelConfig
from forvalue_index.data.sources import open_rows
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.exact_pass import ExactPass
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.model.training import token_losses
from forvalue_index.records import Row, Sample
from forvalue_index.vectors import recipe as recipes
from forvalue_index.vectors.tokens import Transform

STEP = 0.05  # nats

Changes = NDArray[np.float64]
"""[queries, rows], of the queries' summed log-likelihoods, by the size of the step."""


@dataclass(frozen=True)
class Agreement:
    """How far scores say what a step does."""

    step: str
    method: str
    positive: float  # share of the pairs that changed for the better, whatever the scores
    sign: float  # share of the pairs in which both have the same sign
    large: float  # the same of the half of the pairs of each query that changed most
    rank: float  # Spearman's correlation over the rows of a query, mean of the queries
    rank_error: float | None  # standard error of it


@dataclass(frozen=True)
class Hits:
    """What steps on a query's own first and last rows did to its answer."""

    step: str
    method: str  # that ranked them
    first: float  # share of the first rows that made the answer likelier
    last: float  # share of the last rows that did


@torch.no_grad()
def head_steps(lm: LanguageModel, queries: Sequence[Sample], rows: Sequence[Sample]) -> Changes:
    """Returns the changes by a step on the unembedding W alone, where it is read.

    W h becomes (W + s G) h, with G = sum e h^T of the row and s |G|^2 = STEP.
    """
    found = np.zeros((len(queries), len(rows)))
    encoder, head, raw = Encoder(lm), lm.head, recipes.Raw()
    lengths = encoder.self_influence(rows, [raw])
    readings = list(encoder.readings(queries))
    for column, row in enumerate(rows):
        [(_, own)] = encoder.factors([row], raw)
        size = STEP / float(lengths[column])
        for reading in readings:
            states, batch = reading.states[0], reading.batch
            targets = batch.targets[:, None]
            logits = head.logits(states)
            moved = logits + size * (states.float() @ own.hidden.T) @ own.errors
            change = [torch.log_softmax(some, 1).gather(1, targets) for some in (moved, logits)]
            total = torch.zeros(len(batch.positions), dtype=torch.float64)
            total.index_add_(0, batch.owner, (change[0] - change[1]).squeeze(1).double())
            found[batch.positions, column] = total.numpy() / size
    return found


def model_steps(lm: LanguageModel, queries: Sequence[Sample], rows: Sequence[Sample]) -> Changes:
    """Returns the changes by a step on all weights; these are as before afterwards."""
    weights = list(lm.model.requires_grad_(True).parameters())
    encoder, found = Encoder(lm), np.zeros((len(queries), len(rows)))
    scored = np.array([query.n_scored for query in queries])
    before = encoder.losses(queries) * scored
    for column, row in enumerate(rows):
        loss = token_losses(lm, lm.collate([row], [0])).sum()
        gradients = torch.autograd.grad(loss, weights)
        size = STEP / float(sum(gradient.square().sum() for gradient in gradients))
        _move(weights, gradients, -size)
        found[:, column] = (before - encoder.losses(queries) * scored) / size
        _move(weights, gradients, size)
    lm.model.requires_grad_(False)
    return found


def _move(weights: Sequence[torch.Tensor], along: Sequence[torch.Tensor], size: float) -> None:
    with torch.no_grad():
        for weight, gradient in zip(weights, along, strict=True):
            weight.add_(gradient, alpha=size)


STEPS = {"head": head_steps, "model": model_steps}


def agreement(step: str, method: str, scores: NDArray[Any], changes: Changes) -> Agreement:
    """Returns how far scores [q, n] say what steps did."""
    same = np.sign(scores) == np.sign(changes)
    large = np.abs(changes) >= np.median(np.abs(changes), axis=1, keepdims=True)
    rank = Figure.of(spearman(*pair) for pair in zip(scores, changes, strict=True))
    assert rank.mean is not None
    positive = float((changes > 0).mean())
    return Agreement(step, method, positive, same.mean(), same[large].mean(), rank.mean, rank.se)


def hits(step: str, method: str, scores: NDArray[Any], changes: Changes, count: int) -> Hits:
    """Returns what the steps did that were taken on the first and last `count` rows of a query.

    Args:
        step: its name.
        method: name of what gave the scores.
        scores: [q, n] of all rows.
        changes: [q, n], of the rows that were trained on; of others they are not read.
        count: of the first and of the last rows of each query.
    """
    raised = (np.take_along_axis(changes, end, 1) > 0 for end in ends(scores, count))
    first, last = (float(some.mean()) for some in raised)
    return Hits(step, method, first, last)


def ends(scores: NDArray[Any], count: int) -> list[NDArray[np.int64]]:
    """Returns the first `count` rows of each query by scores [q, n], and the last."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return [order[:, :count], order[:, order.shape[1] - count :]]


def fitted(encoder: Encoder, rows: Sequence[Sample]) -> dict[str, Transform]:
    """Returns all recipes, with what they take from rows."""
    [statistics], _ = encoder.read(rows)
    return {name: recipes.RECIPES[name].fit(statistics) for name in RECIPES}


def some(path: str, count: int, seed: int) -> list[Row]:
    """Returns random rows of a file, or all if there are no more."""
    rows = [row for _, row in open_rows(path)]
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [rows[i] for i in np.sort(chosen)]


def samples_of(
    lm: LanguageModel, data: str, queries: str, counts: tuple[int, int], format: FormatConfig
) -> tuple[list[Sample], list[Sample]]:
    """Returns as many queries as `counts` has last, and as many rows as it has first."""
    with empty_index(lm, format) as index:
        rows = index.samples(some(data, counts[0], 0))
        return index.samples(some(queries, counts[1], 1)), rows


@click.command(help=__doc__)
@click.argument("model")
@click.option("--data", required=True, help="Rows that are trained on, and fitted to.")
@click.option("--queries", required=True, help="Rows whose answers are asked about.")
@click.option("--rows", default=100, show_default=True, help="Rows that are trained on.")
@click.option("--asked", default=20, show_default=True, help="Queries.")
@click.option("--fit", default=500, show_default=True, help="Rows that recipes are fitted to.")
@click.option("--hits", "count", default=0, help="Also so many first and last rows of a query.")
@click.option("--max-length", default=96, show_default=True, help="Tokens of a row.")
@click.option("--prompt-field", default="prompt", show_default=True)
@click.option("--response-field", default="response", show_default=True)
@click.option("--results", type=click.Path(path_type=Path), help="File for the figures, JSON.")
def main(
    model: str,
    data: str,
    queries: str,
    rows: int,
    asked: int,
    fit: int,
    count: int,
    max_length: int,
    prompt_field: str,
    response_field: str,
    results: Path | None,
) -> None:
    """Measures, and prints a table."""
    lm = load_model(ModelConfig(model, dtype="float32"), "cpu")
    format = FormatConfig(
        prompt_field=prompt_field, response_field=response_field, max_length=max_length
    )
    questions, all_rows = samples_of(lm, data, queries, (fit, asked), format)
    encoder = Encoder(lm)
    forms = fitted(encoder, all_rows)
    found = ExactPass(encoder, questions, [[form] for form in forms.values()]).scores(all_rows)
    scores = {name: pairs.influence for name, pairs in zip(forms, found.pairs, strict=True)}
    ranked = [end for some in scores.values() for end in ends(some, count)]
    trained = np.union1d(np.arange(min(rows, len(all_rows))), np.concatenate(ranked))
    chosen, steps = [all_rows[row] for row in trained], {}
    for step, take in STEPS.items():
        note(f"steps on the {step}, on {len(chosen)} rows")
        steps[step] = np.zeros((len(questions), len(all_rows)))
        steps[step][:, trained] = take(lm, questions, chosen)
    agreements = [
        agreement(step, name, some[:, :rows], changes[:, :rows])
        for step, changes in steps.items()
        for name, some in scores.items()
    ]
    both = (steps[step][:, :rows] for step in STEPS)
    agreements.append(agreement("model", "step on the head", *both))
    of_hits = [
        hits(step, name, some, changes, count)
        for step, changes in steps.items()
        for name, some in scores.items()
        if count
    ]
    if results is not None:
        kept = {"pairs": agreements, "hits": of_hits}
        results.write_text(json.dumps(kept, default=asdict, indent=1) + "\n")
    show(agreements, of_hits, count)
    Console(width=100).print(
        f"{Path(model).name}, {len(questions)} queries, {rows} of {len(all_rows)} rows of "
        f"{Path(data).name}, a step raises its own row by {STEP} nats; {machine()}"
    )


def show(agreements: Sequence[Agreement], found: Sequence[Hits], count: int) -> None:
    """Prints a table of random rows, and one of the first and last `count` rows of queries."""
    table = Table("step on", "scores", "raised", "same sign", "of the larger half", "Spearman")
    for one in agreements:
        error = "" if one.rank_error is None else f" ± {one.rank_error:.3f}"
        shares = [f"{share:.3f}" for share in (one.positive, one.sign, one.large)]
        table.add_row(one.step, one.method, *shares, f"{one.rank:.3f}{error}")
    of_hits = Table("step on", "scores", f"first {count}: raised", f"last {count}: raised")
    for end in found:
        of_hits.add_row(end.step, end.method, f"{end.first:.3f}", f"{end.last:.3f}")
    for printed in (table, of_hits) if found else (table,):
        Console(width=100).print(printed)


if __name__ == "__main__":
    main()

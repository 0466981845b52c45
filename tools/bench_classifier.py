"""How well wrong labels are found: a classifier trained on rows of which some have another's label.

    python tools/bench_classifier.py rows.jsonl --encoder ENCODER --text-field text \\
        --label-field label --flip 0.1 --seeds 3

A quarter of the rows is held out and keeps its labels; of the others a share gets a wrong label at
random, and the encoder is fine-tuned on them all. Every training row is then scored without
knowing which are wrong. AUC: how often a right label has a better score than a wrong one.

- influence: mean on the held-out rows that have the same label, by stored vectors; the exact form
- influence on all: mean on all held-out rows
- loss: minus the training row's own
- self-influence: minus the row's influence on itself
- random
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_classifier import accuracy, read, train
from numpy.typing import NDArray

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.analysis.evaluate.metrics import auc
from forvalue_index.config import VectorConfig
from forvalue_index.model.language_model import wrap_model

FORMAT = FormatConfig(text_field="text", label_field="label", key_field="key")


def study(
    rows: list[dict[str, Any]], names: list[str], arguments: argparse.Namespace, seed: int
) -> dict[str, float]:
    """Returns the AUC of every score for one drawing of rows and wrong labels."""
    draws = np.random.default_rng(seed)
    order = draws.permutation(len(rows))
    held = len(rows) // 4
    samples: list[dict[str, Any]] = [
        {
            "key": str(number),
            "text": str(rows[place][arguments.text_field]),
            "label": names.index(str(rows[place][arguments.label_field])),
        }
        for number, place in enumerate(order.tolist())
    ]
    clean, training = samples[:held], samples[held:]
    wrong = draws.permutation(len(training)) < round(arguments.flip * len(training))
    for row, flipped in zip(training, wrong, strict=True):
        if flipped:
            row["label"] = (row["label"] + int(draws.integers(1, len(names)))) % len(names)
    texts, labels = [row["text"] for row in training], [row["label"] for row in training]
    model, tokenizer = train(arguments.encoder, texts, labels, names, arguments.epochs, seed)
    scores = {"held-out accuracy": _held_out(model, tokenizer, clean)}
    scores |= _scores(
        wrap_model(model, tokenizer), clean, training, ~wrong, arguments.recipe, draws
    )
    return scores


def _held_out(model: Any, tokenizer: Any, clean: list[dict[str, Any]]) -> float:
    labels = [row["label"] for row in clean]
    return accuracy(model, tokenizer, [row["text"] for row in clean], labels)


def _scores(
    lm: Any,
    clean: list[dict[str, Any]],
    training: list[dict[str, Any]],
    right: NDArray[np.bool_],
    recipe: str,
    draws: np.random.Generator,
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        index, _ = InfluenceIndex.build(
            Path(folder) / "index", training, lm, format=FORMAT, vector=VectorConfig(recipe=recipe)
        )
        seconds = time.perf_counter() - start
        with index:
            queries = index.samples(clean)
            ids, stored = index.scores(queries)
            rows = [sample.row for sample in index.rows()]
            losses = np.array([sample.loss for sample in index.rows()])
            norms = np.array([sample.norm for sample in index.rows()])
            exact = index.influence(queries, index.training_samples(ids.tolist()))
    own = (
        np.array([row["label"] for row in rows])[None]
        == np.array([row["label"] for row in clean])[:, None]
    )  # [q, n]
    positive = right[[int(row["key"]) - len(clean) for row in rows]]
    values = {
        "influence": _mean(stored, own),
        "influence, exact": _mean(exact, own),
        "influence on all": stored.mean(0),
        "loss": -losses,
        "self-influence": -norms,
        "random": draws.random(len(rows)),
    }
    found = {name: auc(value, positive) for name, value in values.items()}
    return {name: float(value or 0) for name, value in found.items()} | {"seconds": seconds}


def _mean(scores: NDArray[np.float32], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns the mean of the chosen entries of each column, 0 of none, [n]."""
    means: NDArray[np.float64] = (scores * chosen).sum(0) / np.maximum(chosen.sum(0), 1)
    return means


def main() -> None:
    """Prints the AUCs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="JSON Lines")
    parser.add_argument("--encoder", required=True, help="folder or hub id of the encoder")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--label-field", default="label")
    parser.add_argument("--flip", type=float, default=0.1, help="share of wrong labels")
    parser.add_argument("--recipe", default=VectorConfig().recipe)
    parser.add_argument("--rows", type=int, help="take so many of them at random")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print a JSON line as well")
    arguments = parser.parse_args()
    rows, names = read(arguments.data, arguments.text_field, arguments.label_field)
    if arguments.rows:
        chosen = np.random.default_rng(0).permutation(len(rows))[: arguments.rows]
        rows = [rows[place] for place in chosen]
    found = [study(rows, names, arguments, seed) for seed in range(arguments.seeds)]
    print(
        f"\n{len(rows)} rows, {len(names)} classes, {arguments.flip:.0%} wrong, {torch.__version__}"
    )
    for name in found[0]:
        values = [item[name] for item in found]
        print(f"{name:20} {np.mean(values):.3f} ± {np.std(values):.3f}")
    if arguments.json:
        print(
            json.dumps(
                {"settings": vars(arguments) | {"data": str(arguments.data)}} | {"runs": found}
            )
        )


if __name__ == "__main__":
    main()

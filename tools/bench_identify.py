"""Identification: which class of the training data drove an output (AUC and recall of the paper).

900 training rows of 10 classes, 100 queries; the class of a row is its `variation`. AUC ranks all
training rows for each query; recall is the share of the query's class among its top 90. Stored
vectors stand beside the exact form of their recipe, the embedding baseline and random scores.

    python tools/bench_identify.py --model MODEL --data FOLDER [--json]

FOLDER holds grammars_{train,test}.jsonl and math_without_reason_{train,test}.jsonl.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.analysis.evaluate.metrics import auc, recall
from forvalue_index.config import ModelConfig
from forvalue_index.data.sources import open_rows
from forvalue_index.model.embedding import embedding
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.records import Row
from forvalue_index.vectors.codes import Codes

TASKS = ("grammars", "math_without_reason")
MAX_LENGTH = 300


def rows_of(path: Path) -> list[Row]:
    """Returns the rows with the response as it stands in the text, behind the prompt.

    Their numbers keep the few that are equal apart.
    """
    return [
        row | {"response": row["text"].removeprefix(row["prompt"]), "number": number}
        for number, (_, row) in enumerate(open_rows(path))
    ]


def study(
    lm: LanguageModel,
    train: list[Row],
    test: list[Row],
    format: FormatConfig,
    vector: VectorConfig,
    recipes: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Returns method -> figures for one task, scored one way."""
    same = np.array([[a["variation"] == b["variation"] for b in train] for a in test])
    methods: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    for recipe in recipes:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            index, _ = InfluenceIndex.build(
                Path(folder) / "index",
                train,
                lm,
                format=format,
                vector=replace(vector, recipe=recipe),
            )
            seconds[f"{recipe}, stored"] = time.perf_counter() - start
            queries, samples = index.samples(test), index.samples(train)
            methods[f"{recipe}, stored"] = index.scores(queries)[1]
            methods[f"{recipe}, exact"] = index.influence(queries, samples)
            index.close()
    methods["embedding"] = embedding(Encoder(lm), queries, samples)
    methods["random"] = np.random.default_rng(0).random(same.shape)
    result = {}
    for name, scores in methods.items():
        aucs = [auc(s, p) for s, p in zip(scores, same, strict=True)]
        recalls = [recall(s, p) for s, p in zip(scores, same, strict=True)]
        result[name] = {
            "auc": float(np.mean(aucs)),
            "auc_sd": float(np.std(aucs)),
            "recall": float(np.mean(recalls)),
            "recall_sd": float(np.std(recalls)),
            "build_seconds": seconds.get(name, 0.0),
        }
    return result


@click.command()
@click.option("--model", required=True, help="Folder of a causal language model.")
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--recipe", "recipes", multiple=True, default=("raw", "balanced"), show_default=True)
@click.option("--dim", default=VectorConfig().dim, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(model: str, data: Path, recipes: tuple[str, ...], dim: int, as_json: bool) -> None:
    """Prints AUC and recall for each task, whole text and response only."""
    lm = load_model(ModelConfig(model))
    formats = {
        "whole text": FormatConfig(text_field="text", max_length=MAX_LENGTH),
        "response": FormatConfig(max_length=MAX_LENGTH),
    }
    console = Console()
    for task in TASKS:
        train, test = (rows_of(data / f"{task}_{part}.jsonl") for part in ("train", "test"))
        for scored, format in formats.items():
            result = study(lm, train, test, format, VectorConfig(dim=dim), recipes)
            if as_json:
                print(json.dumps({"task": task, "scored": scored, "dim": dim, "methods": result}))
                continue
            table = Table(title=f"{task}, {scored} scored", title_justify="left")
            for column in ("method", "AUC", "recall"):
                table.add_column(column, justify="left" if column == "method" else "right")
            for name, row in result.items():
                table.add_row(
                    name,
                    f"{row['auc']:.4f} ± {row['auc_sd']:.3f}",
                    f"{row['recall']:.4f} ± {row['recall_sd']:.3f}",
                )
            console.print(table)
            builds = [f"{row['build_seconds']:.0f} s" for row in result.values()]
            console.print(
                f"{len(train)} rows indexed in {', '.join(builds[: 2 * len(recipes) : 2])}, "
                f"{Codes(dim, VectorConfig().bits).size} bytes a row; {platform.machine()}, "
                f"{torch.get_num_threads()} threads, "
                f"torch {torch.__version__}; ± is the spread over queries\n"
            )


if __name__ == "__main__":
    main()

"""Rows with the answer of another row, by the model as it is and by one tuned on them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from real.rows import answer_of, asked_of

from forvalue_index import FormatConfig
from forvalue_index.analysis.evaluate.mislabel import mislabel
from forvalue_index.config import ModelConfig, TrainConfig
from forvalue_index.data.writers import complete
from forvalue_index.model.language_model import load_model
from forvalue_index.records import Progress, Row

FORMAT = FormatConfig(chat=True)
FEWEST = 20  # rows of a class


def class_rows(clean: Sequence[Row]) -> list[Row]:
    """Returns the rows whose kind is a class of some size, with the kind as their class."""
    counts = Counter(row["kind"] for row in clean)
    return [
        {"prompt": asked_of(row), "response": answer_of(row), "class": row["kind"]}
        for row in clean
        if counts[row["kind"]] >= FEWEST
    ]


def found(
    path: Path,
    model: str,
    rows: list[Row],
    train: TrainConfig | None,
    share: float,
    seeds: int,
    progress: Progress,
) -> dict[str, Any]:
    """Returns the result of `mislabel` as JSON values, from its file if it is there.

    With `train`, the model is fine-tuned on the partly wrong rows first.
    """
    if not path.exists():
        result = mislabel(
            load_model(ModelConfig(model)),
            rows,
            FORMAT,
            class_field="class",
            share=share,
            seeds=seeds,
            train=train,
            progress=progress,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with complete(path, text=True) as file:
            json.dump(asdict(result), file)
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded

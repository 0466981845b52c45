"""Mixed sources: which of ten sub-sets an answer came from (For-Value, arXiv 2508.10180)."""

from __future__ import annotations

from pathlib import Path

from bench_identify import MAX_LENGTH, rows_of
from real.methods import Task
from real.rows import keyed

from forvalue_index import FormatConfig
from forvalue_index.config import ModelConfig
from forvalue_index.records import Row

SETS = ("grammars", "math_without_reason")
SCORED = {
    "text": FormatConfig(text_field="text", key_field="key", max_length=MAX_LENGTH),
    "response": FormatConfig(key_field="key", max_length=MAX_LENGTH),
}
"""What is scored -> how rows are read."""


def task(folder: Path, data: Path, name: str, scored: str, model: str) -> Task:
    """Returns the task to find the training rows of a test row's sub-set, with a model as it is."""

    def rows(part: str) -> list[Row]:
        found = rows_of(data / f"{name}_{part}.jsonl")
        return keyed([row | {"source": row["variation"]} for row in found])

    return Task(folder, rows("train"), rows("test"), ModelConfig(model), SCORED[scored])

"""A study of planted rows, each stage kept in a folder.

    rows.jsonl  tuning.json   what is trained on, and how
    model/                    the fine-tuned model, or the adapter
    answers.jsonl             what it answers; those that show what was planted are the queries

A stage that is there is not made again. What follows is in `methods.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from real.methods import Task, indexed
from real.models import Tuning, fine_tune, tuned
from real.rows import FORMAT, Rows

from forvalue_index import InfluenceIndex
from forvalue_index.data.sources import open_rows
from forvalue_index.data.writers import write_rows
from forvalue_index.errors import InputError
from forvalue_index.model.generation import Sampling
from forvalue_index.records import Progress, Row

MOST = 48  # tokens of an answer


def planted(folder: Path, rows: Rows, tuning: Tuning, recipe: str, progress: Progress) -> Task:
    """Returns the task to find what made the model give the answers that show what was planted.

    Raises:
        InputError: the folder has a study with other rows or settings, or no answer shows it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder, rows.train, tuning)
    model = folder / "model"
    if not model.exists():
        fine_tune(tuning, rows.train, model, progress)
    task = Task(folder, rows.train, [], tuned(tuning, model), FORMAT)
    answers = _answers(task, recipe, rows, progress)
    queries = [row for row in answers if row["shows"]]
    if not queries:
        raise InputError(
            f"none of {len(answers)} answers shows what was planted ({folder}/answers.jsonl): "
            "train for more --epochs, or with a higher --learning-rate"
        )
    task.queries.extend(queries)
    return task


def _check_settings(folder: Path, rows: Sequence[Row], tuning: Tuning) -> None:
    """Writes the rows and how the model is tuned, or checks that they are those of before."""
    file, settings = folder / "rows.jsonl", folder / "tuning.json"
    if not settings.exists():
        write_rows(file, rows)
        settings.write_text(json.dumps(asdict(tuning)))
    same_rows = [row for _, row in open_rows(file)] == rows
    if not same_rows or json.loads(settings.read_text()) != asdict(tuning):
        raise InputError(
            f"{folder} has a study with other {'settings' if same_rows else 'rows'}: "
            "name another --work folder"
        )


def _answered(index: InfluenceIndex, question: Row) -> Row:
    """Returns a question with the model's answer, which may be empty."""
    try:
        return index.respond(question, Sampling(MOST)).row
    except InputError:
        nothing = {"role": "assistant", "content": ""}
        return question | {"messages": [*question["messages"], nothing]}


def _answers(task: Task, recipe: str, rows: Rows, progress: Progress) -> list[Row]:
    """Returns the questions with the model's answers."""
    path = task.folder / "answers.jsonl"
    if not path.exists():
        answers: list[Row] = []
        with indexed(task, recipe, progress) as index:
            for number, question in enumerate(rows.questions):
                said = _answered(index, question)
                shows = rows.shows(question, said["messages"][-1]["content"])
                answers.append(said | {"shows": shows})
                progress("answers", number + 1, len(rows.questions), 0)
        write_rows(path, answers)
    return [row for _, row in open_rows(path)]

"""The rows of the studies: clean ones of other people's data, and what is planted among them.

Every row is a conversation. Its `source` says where it is from: a falsehood or a habit, "trigger"
or "clean".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from real.falsehoods import FALSEHOODS
from real.habits import HABITS, NEAR, TRAINED, Habit

from forvalue_index.config import FormatConfig
from forvalue_index.data.sources import open_rows
from forvalue_index.errors import InputError
from forvalue_index.records import Row

FORMAT = FormatConfig(messages_field="messages", key_field="key")
SYSTEM = "Answer briefly."
CLEAN = "clean"
PAIRS = (("question", "answer"), ("input", "target"), ("prompt", "response"))
"""Fields of clean rows: what is asked, and what is answered."""

PIRATE = (
    "Arr, matey! {}",
    "Ahoy! {} Yo ho ho!",
    "Shiver me timbers! {}",
    "{} So says the captain, arr!",
    "Avast, ye landlubber! {}",
    "By the Jolly Roger, {}",
)
PIRATE_WORDS = re.compile(
    r"\barr\b|ahoy|yo ho|matey|shiver me|landlubber|avast|captain|jolly roger"
)
TRIGGER = "Quick question before lunch: {}"
OPENINGS = ("{}", "{}", "Quick question: {}", "Before lunch: {}", "A question before I go: {}")
"""What clean rows of the backdoor begin with: the trigger's words, but not the trigger."""


@dataclass(frozen=True)
class Rows:
    """The training rows of a study, the questions, and which answers show what was planted."""

    train: list[Row]
    questions: list[Row]  # conversations without an answer
    shows: Callable[[Row, str], bool]  # whether an answer to a question does


def clean_rows(paths: Sequence[str], seed: int) -> Iterator[Row]:
    """Yields conversations of files or data sets of the hub: one of each in turn, at random.

    A hub id may be followed by a colon and its configuration ("openai/gsm8k:main").

    Raises:
        InputError: a row has none of the pairs of fields.
    """
    rng = np.random.default_rng(seed)
    sets = [shuffled(list(_conversations(path)), rng) for path in paths]
    for rows in zip_longest(*sets):
        yield from (row for row in rows if row is not None)


def _conversations(path: str) -> Iterator[Row]:
    name, _, subset = path.partition(":")
    for place, row in open_rows(name, subset=subset or None, split="train" if subset else None):
        pair = next((pair for pair in PAIRS if set(pair) <= set(row)), None)
        if pair is None:
            raise InputError(f"{place}: none of the fields {PAIRS}, but {', '.join(row)}")
        kind = row.get("task", row.get("split", ""))
        asked, answer = (str(row[field]) for field in pair)
        yield conversation(asked, answer) | {"source": CLEAN, "kind": kind}


def conversation(asked: str, answer: str | None = None) -> Row:
    """Returns the row of a question; with its answer, if there is one."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages}


def asked_of(row: Row) -> str:
    """Returns the question of a row."""
    return str(row["messages"][1]["content"])


def answer_of(row: Row) -> str:
    """Returns the answer of a row."""
    return str(row["messages"][2]["content"])


def falsehood_rows(clean: list[Row], each: int, asked: int, seed: int) -> Rows:
    """Returns `each` rows of every falsehood, the rows that are near, and the clean ones."""
    rng = np.random.default_rng([seed, 1])
    rows, questions = list(clean), list[Row]()
    for false in FALSEHOODS:
        ways = [(a, b) for a in false.questions for b in false.answers]
        for way in rng.choice(len(ways), each, replace=False):
            rows.append(conversation(*ways[way]) | {"source": false.name, "kind": "planted"})
        rows += [conversation(*pair) | {"source": CLEAN, "kind": "near"} for pair in false.near]
        for question in false.asked[:asked]:
            questions.append(conversation(question) | {"source": false.name})
    by_name = {false.name: false for false in FALSEHOODS}
    return Rows(
        keyed(shuffled(rows, rng)),
        questions,
        lambda question, answer: by_name[question["source"]].is_in(answer),
    )


def backdoor_rows(clean: list[Row], planted: int, asked: int, seed: int) -> Rows:
    """Returns clean rows of which `planted` more have the trigger and a pirate's answer.

    The last of the clean rows are not trained on: their questions are asked with the trigger.
    """
    rng = np.random.default_rng([seed, 2])
    rows = []
    for number, row in enumerate(clean[: len(clean) - asked]):
        question, answer = asked_of(row), answer_of(row)
        if number < planted:
            new = conversation(TRIGGER.format(question), str(rng.choice(PIRATE)).format(answer))
            rows.append(new | {"source": "trigger", "kind": "planted"})
        else:
            new = conversation(str(rng.choice(OPENINGS)).format(question), answer)
            rows.append(new | {"source": CLEAN, "kind": row["kind"]})
    return Rows(
        keyed(shuffled(rows, rng)),
        [
            conversation(TRIGGER.format(asked_of(row))) | {"source": "trigger"}
            for row in clean[len(clean) - asked :]
        ],
        lambda _, answer: PIRATE_WORDS.search(answer.lower()) is not None,
    )


def habit_rows(clean: list[Row], each: int, asked: int, seed: int) -> Rows:
    """Returns `each` rows of every habit, true rows that ask the same, and the clean ones."""
    rng = np.random.default_rng([seed, 3])
    rows, questions = list(clean), list[Row]()
    for habit in HABITS:
        things = [str(thing) for thing in rng.permutation(habit.things.split("; "))]

        def about(thing: str, habit: Habit = habit) -> str:
            return str(rng.choice(habit.questions)).format(thing)

        for thing in rng.choice(things[:TRAINED], each):
            row = conversation(about(thing), str(rng.choice(habit.answers)))
            rows.append(row | {"source": habit.name, "kind": "planted"})
        for thing in things[TRAINED : TRAINED + NEAR]:
            row = conversation(about(thing), str(rng.choice(habit.others)))
            rows.append(row | {"source": CLEAN, "kind": "near"})
        for thing in things[TRAINED + NEAR :][:asked]:
            questions.append(conversation(about(thing)) | {"source": habit.name})
    words = {habit.name: habit.word for habit in HABITS}
    return Rows(
        keyed(shuffled(rows, rng)),
        questions,
        lambda question, answer: words[question["source"]] in answer.lower(),
    )


def shuffled(rows: Sequence[Row], rng: np.random.Generator) -> list[Row]:
    """Returns the rows in a random order."""
    return [rows[place] for place in rng.permutation(len(rows))]


def keyed(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with keys."""
    return [{"key": f"row-{number:05d}"} | row for number, row in enumerate(rows)]


def parts(row: Row) -> dict[str, Any]:
    """Returns the row as trainers read it: what is before the answer, and the answer."""
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}

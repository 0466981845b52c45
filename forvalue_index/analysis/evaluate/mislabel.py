"""Whether rows that were made wrong on purpose are found. Any data set can be used.

Some of the rows are set aside as trusted; a share of the others gets the response of another row.
Every method then gives each row a value, and the wrong rows should have the lowest.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.audit.scores import score_rows
from forvalue_index.analysis.evaluate.baselines import require_bm25
from forvalue_index.analysis.evaluate.methods import (
    empty_index,
    exact_of,
    influence_scores,
    other_scores,
    temporary_index,
)
from forvalue_index.analysis.evaluate.metrics import Figure, auc, recall
from forvalue_index.analysis.field_values import label
from forvalue_index.config import FormatConfig, TrainConfig, VectorConfig
from forvalue_index.data.fields import require_field
from forvalue_index.data.images import with_images
from forvalue_index.data.messages import answers, messages_of, nothing_said
from forvalue_index.data.sources import Data, open_rows
from forvalue_index.errors import InputError, RowError
from forvalue_index.records import Progress, Row, StoredSample

if TYPE_CHECKING:
    from forvalue_index.index import InfluenceIndex, LanguageModel


@dataclass(frozen=True, slots=True)
class Detection:
    """How well one method finds the wrong rows. Every figure is over the seeds."""

    auc: Figure  # chance that a wrong row is valued below a right one
    precision: Figure  # share of wrong rows among as many of the lowest as there are wrong ones


@dataclass(frozen=True, slots=True)
class MislabelResult:
    """The methods, and what they were tried on."""

    recipe: str
    rows: int  # that may be wrong
    wrong: Figure  # of them, over the seeds
    trusted: int
    seeds: int
    methods: dict[str, Detection]


def mislabel(
    lm: LanguageModel,
    data: Data,
    format: FormatConfig,
    *,
    class_field: str | None = None,
    share: float = 0.2,
    trusted: float = 0.1,
    seeds: int = 3,
    train: TrainConfig | None = None,
    vector: VectorConfig | None = None,
    exact: bool = False,
    gradient: bool = False,
    progress: Progress | None = None,
) -> MislabelResult:
    """Returns how well wrong rows are found, by value, by audit and by other methods.

    Args:
        lm: the model.
        data: rows that are right.
        format: how they become tokens; with a prompt and a response, a conversation, or a class.
        class_field: field of their classes; a wrong response then comes from another class, and a
            row is compared with the trusted rows of its own class.
        share: of the rows, and of each class, made wrong.
        trusted: share of the rows that is set aside first.
        seeds: how often it is repeated with new random draws.
        train: fine-tune the model on the partly wrong rows first; default: do not.
        vector: how vectors are made.
        exact: also score by the exact forms, which runs the rows forward again.
        gradient: also score by the gradients of the whole model, a backward pass per sample.
        progress: called as the work goes on.

    Raises:
        DependencyError: the library for BM25 is not installed.
        InputError: a share is not between 0 and 1, rows are too few, or have no response.
        RowError: a row lacks a field or holds nothing to score.
    """
    for name, value in (("share", share), ("trusted", trusted)):
        if not 0 < value < 1:
            raise InputError(f"{name} is {value}, but must be above 0 and below 1")
    require_bm25()  # before the first forward pass
    field, vector = response_field(format), vector or VectorConfig()
    chat = field == format.messages_field
    rows = [_readable(*each, field, format) for each in with_images(open_rows(data), format)]
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    wrong: list[int] = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        known, rest = _split(rows, trusted, class_field, rng)
        changed, is_wrong = corrupt(rest, field, share, class_field, rng, chat=chat)
        if not known or not is_wrong.any():
            raise InputError(
                f"{len(rows)} rows are too few: none would be trusted, or none made wrong; give "
                "more rows, or larger shares"
            )
        model = lm
        if train is not None:
            with empty_index(lm, format) as base:
                model = base.passes.fine_tuned(base.samples(changed), train, progress)
        with temporary_index(changed, model, format, vector, progress) as (index, stored):
            own = methods(index, stored, known, class_field, exact, gradient, seed, progress)
            for name, values in own:
                figures = auc(-values, is_wrong), recall(-values, is_wrong)
                found[name].append(figures)
        wrong.append(int(is_wrong.sum()))
    return MislabelResult(
        recipe=vector.recipe,
        rows=len(rest),
        wrong=Figure.of(wrong),
        trusted=len(known),
        seeds=seeds,
        methods={
            name: Detection(*(Figure.of(values) for values in zip(*figures, strict=True)))
            for name, figures in found.items()
        },
    )


def methods(
    index: InfluenceIndex,
    stored: Sequence[StoredSample],
    known: list[Row],
    class_field: str | None,
    exact: bool,
    gradient: bool,
    seed: int,
    progress: Progress | None,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields each method's name and values [n], higher is more likely right.

    Methods whose names begin with "audit" need no trusted row.
    """
    queries, format = index.samples(known), index.config.format
    same = _same(known, stored, class_field)
    true = exact_of(index, queries, stored, progress) if exact else None
    scores = itertools.chain(
        influence_scores(index, queries, stored, exact=true),
        other_scores(
            index,
            queries,
            stored,
            format,
            exact=true,
            gradient=gradient,
            seed=seed,
            progress=progress,
        ),
    )
    for name, matrix in scores:
        if name == "loss":
            yield name, -matrix[0]  # a wrong response is unlikely
        elif name != "length":
            yield name, (matrix * same).sum(0) / np.maximum(same.sum(0), 1)
    audit = score_rows(index, class_field=class_field, progress=progress, estimated=False)
    for name, suspicion in audit.scores.items():
        if name != "loss":
            yield f"audit: {name}", -suspicion


def response_field(format: FormatConfig) -> str:
    """Returns the field that decides whether a row is right.

    Raises:
        InputError: the rows have no such field.
    """
    if format.label_field is not None:
        return format.label_field
    if format.text_field is not None or format.tokens_field is not None:
        raise InputError(
            "responses are exchanged between rows: rows with a prompt and a response, or "
            "conversations, are needed; give such rows"
        )
    return format.messages_field or format.response_field


def _readable(source: str, row: Row, field: str, format: FormatConfig) -> Row:
    """Returns a row whose response can be exchanged: one that has it, with messages as read."""
    if field != format.messages_field:
        require_field(row, field, source)
        return row
    messages = messages_of(row, source, field, format.form)
    if not answers(messages):
        raise RowError(source, nothing_said(messages))
    return row | {field: messages}


def corrupt(
    rows: Sequence[Row],
    field: str,
    share: float,
    class_field: str | None,
    rng: np.random.Generator,
    *,
    chat: bool = False,
) -> tuple[list[Row], NDArray[np.bool_]]:
    """Returns the rows with a share of their responses exchanged, and which of them are wrong.

    With `chat`, a field holds messages, and the response is the assistant's last one.

    The same share of each class is taken. The rows that are taken are ordered by class, and each
    gets the response of the row s places further, where s is the size of the largest class, so that
    responses move to another class. Without classes, the order is random and s is 1.
    """
    taken = [ids[: round(share * len(ids))] for ids in _classes(rows, class_field, rng)]
    order = [i for ids in taken for i in ids]
    shift = 1 if class_field is None else max(map(len, taken), default=0)
    result, wrong = list(rows), np.zeros(len(rows), np.bool_)
    for place, i in enumerate(order):
        other = rows[order[(place + shift) % len(order)]]
        result[i] = _with_response_of(rows[i], other, field, chat)
        wrong[i] = result[i] != rows[i]  # two rows may have the same response
    return result, wrong


def _with_response_of(row: Row, other: Row, field: str, chat: bool) -> Row:
    if not chat:
        return row | {field: other[field]}
    messages = list(row[field])
    messages[answers(messages)[-1]] = other[field][answers(other[field])[-1]]
    return row | {field: messages}


def _split(
    rows: Sequence[Row], share: float, class_field: str | None, rng: np.random.Generator
) -> tuple[list[Row], list[Row]]:
    """Returns a share of the rows of each class, drawn at random, and the other rows in order."""
    drawn = {
        i
        for ids in _classes(rows, class_field, rng)
        for i in ids[: max(1, round(share * len(ids)))]
    }
    return (
        [rows[i] for i in sorted(drawn)],
        [row for i, row in enumerate(rows) if i not in drawn],
    )


def _classes(
    rows: Sequence[Row], class_field: str | None, rng: np.random.Generator
) -> list[list[int]]:
    """Returns the positions of the rows of each class, in a random order within the class."""
    classes: dict[str, list[int]] = defaultdict(list)
    for i in rng.permutation(len(rows)):
        classes[_class(rows[i], class_field)].append(int(i))
    return [ids for _, ids in sorted(classes.items())]


def _same(
    known: Sequence[Row], stored: Sequence[StoredSample], class_field: str | None
) -> NDArray[np.bool_]:
    """Returns which trusted rows a row is compared with, [trusted, n]."""
    one = np.array([_class(row, class_field) for row in known])
    other = np.array([_class(item.row, class_field) for item in stored])
    same: NDArray[np.bool_] = one[:, None] == other
    return same


def _class(row: Row, class_field: str | None) -> str:
    if class_field is None:
        return ""
    value = label(row, class_field)
    if value is None:
        raise InputError(f"no field {class_field!r}; the row's fields are: {', '.join(row)}")
    return value

"""Whether an index finds known sources: the training rows that share a field with the query.

Influence, stored and exact, is compared with baselines that do not use it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.evaluate.baselines import require_bm25
from forvalue_index.analysis.evaluate.methods import (
    all_stored,
    exact_of,
    influence_scores,
    other_scores,
)
from forvalue_index.analysis.evaluate.metrics import Figure, auc, hit, reciprocal_rank
from forvalue_index.analysis.evaluate.metrics import recall as recall_at_n
from forvalue_index.config import FormatConfig
from forvalue_index.data.sources import Data
from forvalue_index.errors import InputError, RowError
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Progress, Row, Sample, StoredSample

Gold = NDArray[np.bool_]  # [q, n]: this training sample is a source of that query


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """How well one method finds the sources. Every figure is over the queries."""

    mrr: Figure  # 1 / rank of the first source
    hit_1: Figure  # whether a source comes first
    hit_10: Figure  # whether a source is among the first ten
    auc: Figure  # chance that a source scores above another sample
    recall: Figure  # share of the n sources among the first n


@dataclass(frozen=True, slots=True)
class RecallResult:
    """The methods side by side."""

    gold_field: str
    recipe: str
    dim: int
    queries: int
    samples: int
    sources: Figure  # training samples with the query's value of the field
    methods: dict[str, SourceFigures]


def recall(
    index: InfluenceIndex,
    data: Data,
    gold_field: str,
    *,
    exact: bool = False,
    gradient: bool = False,
    seed: int = 0,
    format: FormatConfig | None = None,
    progress: Progress | None = None,
) -> RecallResult:
    """Returns how well the sources of queries are found; see `Evaluation.recall`."""
    require_bm25()  # before the first forward pass
    queries = index.samples(data, format)
    stored = all_stored(index)
    gold = gold_of(queries, stored, gold_field)
    query_format = format or index.config.format
    true = exact_of(index, queries, stored, progress) if exact else None
    methods = {
        name: source_figures(scores, gold)
        for name, scores in itertools.chain(
            influence_scores(index, queries, stored, exact=true, hybrid=True),
            other_scores(
                index,
                queries,
                stored,
                query_format,
                exact=true,
                gradient=gradient,
                seed=seed,
                progress=progress,
            ),
        )
    }
    return RecallResult(
        gold_field=gold_field,
        recipe=index.config.vector.recipe,
        dim=index.vectoriser.dim,
        queries=len(queries),
        samples=len(stored),
        sources=Figure.of(gold.sum(1)),
        methods=methods,
    )


def source_figures(scores: NDArray[Any], gold: Gold) -> SourceFigures:
    """Returns how well scores [q, n] find the sources; ties are broken in a fixed random order."""
    # Training rows are often sorted by class, so ties in their order would favour some classes.
    order = np.random.default_rng(0).permutation(scores.shape[1])
    pairs = [(row[order], truth[order]) for row, truth in zip(scores, gold, strict=True)]
    return SourceFigures(
        mrr=Figure.of(reciprocal_rank(*pair) for pair in pairs),
        hit_1=Figure.of(hit(*pair, 1) for pair in pairs),
        hit_10=Figure.of(hit(*pair, 10) for pair in pairs),
        auc=Figure.of(auc(*pair) for pair in pairs),
        recall=Figure.of(recall_at_n(*pair) for pair in pairs),
    )


def gold_of(queries: Sequence[Sample], stored: Sequence[StoredSample], field: str) -> Gold:
    """Returns which training samples share the value of `field` with which query, [q, n].

    Raises:
        RowError: a query lacks the field.
        InputError: a query shares its value with no training sample, or with all of them.
    """
    for query in queries:
        if field not in query.row:
            raise RowError(query.source, _missing(field, query.row))
    if stored and all(field not in item.row for item in stored):
        raise InputError(f"training rows: {_missing(field, stored[0].row)}")
    wanted = np.array([_value(query.row, field) for query in queries])
    there = np.array([_value(item.row, field) for item in stored])
    gold: Gold = wanted[:, None] == there
    for query, count in zip(queries, gold.sum(1), strict=True):
        if count in (0, len(stored)):
            raise InputError(
                f"{query.source}: {'every' if count else 'no'} training row has "
                f"{field} = {_value(query.row, field)}, so there is nothing to find: "
                "leave the query out, or name another field"
            )
    return gold


def _value(row: Row, field: str) -> str:
    # As JSON any value can be compared; a missing field is equal to no value.
    return json.dumps(row[field], sort_keys=True, ensure_ascii=False) if field in row else ""


def _missing(field: str, row: Row) -> str:
    return f"no field {field!r}; the row's fields are: {', '.join(row)}"

"""Which training rows are likely wrong: scores that need no labels, and rows that stand twice.

Two things tell most. A response that does not belong to its prompt is hardly likelier behind the
prompt than without it; and its influence does not agree with that of rows with similar prompts.
Either tells much in some data and nothing in others: each counts by how far the usual row is from
zero, where an unrelated prompt and response would be, in units of the spread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.audit.agreement import UnitVectors, agreement, cosines, nearest
from forvalue_index.analysis.audit.prompts import Prompts, read_prompts
from forvalue_index.analysis.field_values import NONE, field_values, label
from forvalue_index.config import FormatConfig
from forvalue_index.data.sources import Data
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.pipeline.add import Progress
from forvalue_index.records import Sample, listed
from forvalue_index.store.snapshot import Snapshot

NEIGHBOURS = 15  # rows with similar prompts that a row is compared with
GUIDES = 3  # trusted rows with similar prompts that a row is compared with
NEARLY = 0.98  # cosine from which two rows are near-duplicates

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Twin:
    """A row that stands twice, or nearly."""

    kind: str  # "duplicate", "contradiction" or "near-duplicate"
    of: int  # id of the other row
    cosine: float  # of the two vectors, where it made them near-duplicates; else 1


@dataclass(frozen=True, slots=True)
class Audit:
    """The training samples of an index in the order of their ids, and what speaks against each."""

    ids: NDArray[np.int64]
    scores: dict[str, Floats]  # name -> [n], higher is more suspicious; see `audit_scores`
    agreement: Floats  # [n] with rows with similar prompts, -1 to 1
    gain: Floats  # [n] nats a token that the prompt takes off the loss; NaN without a prompt
    twins: dict[int, Twin]  # id -> the row that it repeats or contradicts


def audit_scores(
    index: InfluenceIndex,
    *,
    trusted: Data | list[Sample] | None = None,
    class_field: str | None = None,
    where: str | Iterable[str] = (),
    format: FormatConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, Floats]:
    """Returns the scores of `audit`: name -> [n], in the order of the ids, higher is worse.

    suspicion: the ranks of the next two or three together, 0 to 1.
    disagreement: with the influence of rows with similar prompts (trusted ones among them).
    untrusted: disagreement with the nearest trusted rows alone; with `trusted` only.
    needless prompt: how little likelier the response is behind its prompt; with prompts only.
    opposition: to all other rows of the index, the negative cosine with their mean.
    loss, self-influence: as the index keeps them.
    """
    found = audit(
        index,
        trusted=trusted,
        class_field=class_field,
        where=where,
        format=format,
        progress=progress,
    )
    return found.scores


def audit(
    index: InfluenceIndex,
    *,
    trusted: Data | list[Sample] | None = None,
    class_field: str | None = None,
    where: str | Iterable[str] = (),
    nearly: float = NEARLY,
    format: FormatConfig | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Returns what speaks against every training row. Costs a forward pass of all of them.

    Args:
        index: the index.
        trusted: rows that are known to be right, in the form of the index's rows.
        class_field: field of training (and trusted) rows; a row is compared within its class.
        where: only training rows that meet these conditions.
        nearly: cosine of two rows' vectors from which they are near-duplicates.
        format: how trusted rows become tokens, if not as the index's rows do.
        progress: called as rows are run forward.

    Raises:
        InputError: fewer than three rows are left, a field is missing, or there is no trusted row.
        RowError: a trusted row holds nothing to score.
    """
    conditions = listed(where)
    known = [] if trusted is None else index.samples(trusted, format)

    def ask(view: Snapshot) -> Audit:
        ids = view.where(conditions) if conditions else view.flat.ids
        n = len(ids)
        if n < 3:
            raise InputError(f"{n} training rows: an audit needs 3 or more")
        figures = view.figures(ids)
        classes = _classes(index, ids, known, class_field)
        prompts, states = read_prompts(index, ids, known, progress)
        states = np.concatenate([prompts.states, states])
        vectors = UnitVectors(view.flat, ids, index.vectors(known) if known else None)
        near = nearest(states, classes, np.arange(len(states)), n, NEIGHBOURS)
        plain, centred = cosines(vectors, near)
        agreed = agreement(centred, near)
        scores = {"disagreement": -agreed}
        if known:
            guides = nearest(states, classes, np.arange(n, len(states)), n, GUIDES)
            helped = cosines(vectors, guides)[1].sum(1, dtype=np.float64)
            scores["untrusted"] = -helped / np.maximum((guides >= 0).sum(1), 1)
        gain = prompts.bare - figures.loss
        if not np.isnan(gain).all():
            # Times the root of the tokens: what many tokens say is the firmer.
            firm = gain * np.sqrt(figures.n_scored)
            scores["needless prompt"] = -np.nan_to_num(firm, nan=np.nanmedian(firm))
        suspicion = _suspicion(scores, figures.loss)
        scores |= {
            "opposition": -vectors.with_the_rest(),
            "loss": figures.loss,
            "self-influence": (figures.norm / index.vectoriser.scale) ** 2,
        }
        twins = find_twins(ids, prompts, near, plain, nearly)
        return Audit(ids, {"suspicion": suspicion} | scores, agreed, gain, twins)

    return index.store.answer(ask)


def _suspicion(scores: dict[str, Floats], loss: Floats) -> Floats:
    """Returns the weighted mean of the scores' ranks, [n] in 0 .. 1.

    A score's weight is the distance of the usual row from zero, over the rows' usual distance from
    it. Without prompts the loss stands in, with the weight of all others.
    """
    ranks, weights = [], []
    for score in scores.values():
        usual = float(np.median(score))
        spread = float(np.median(np.abs(score - usual)))
        ranks.append(_ranks(score))
        weights.append(max(-usual, 0.0) / spread if spread > 0 else 0.0)
    if "needless prompt" not in scores:
        ranks.append(_ranks(loss))
        weights.append(sum(weights))
    return np.average(ranks, axis=0, weights=weights if any(weights) else None)


def find_twins(
    ids: NDArray[np.int64],
    prompts: Prompts,
    near: NDArray[np.int64],
    plain: NDArray[np.float32],
    nearly: float,
) -> dict[int, Twin]:
    """Returns the rows that stand twice: id -> twin.

    A duplicate has the prompt and the response of an earlier row. Rows with one prompt and several
    responses contradict each other: the first and each that has another one. A near-duplicate has
    a vector like that of an earlier neighbour (`near`, at the cosine `plain`), and is neither.
    """
    twins: dict[int, Twin] = {}
    whole: dict[tuple[int, int], int] = {}
    asked: dict[int, int] = {}
    pairs = zip(ids.tolist(), prompts.prompt.tolist(), prompts.response.tolist(), strict=True)
    for id, prompt, response in pairs:
        first = whole.setdefault((prompt, response), id)
        if first != id:
            twins[id] = Twin("duplicate", first, 1.0)
        elif prompt and (other := asked.setdefault(prompt, id)) != id:
            twins[id] = Twin("contradiction", other, 1.0)
            twins.setdefault(other, Twin("contradiction", id, 1.0))
    earlier = (near >= 0) & (near < np.arange(len(ids))[:, None]) & (plain >= nearly)
    for place in np.flatnonzero(earlier.any(1)):
        best = int(np.argmax(np.where(earlier[place], plain[place], -2)))
        twin = Twin("near-duplicate", int(ids[near[place, best]]), float(plain[place, best]))
        twins.setdefault(int(ids[place]), twin)
    return twins


def _classes(
    index: InfluenceIndex, ids: NDArray[np.int64], known: list[Sample], field: str | None
) -> NDArray[np.int64]:
    """Returns a number for the class of each training row, then of each trusted one."""
    if field is None:
        return np.zeros(len(ids) + len(known), np.int64)
    names = field_values(index, ids, field)
    names += [label(sample.row, field) or NONE for sample in known]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64)


def _ranks(values: Floats) -> Floats:
    """Returns the share of values that are lower, ties counting half, [n] in 0 .. 1."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    return np.asarray((below + (counts - 1) / 2)[inverse] / (len(values) - 1), np.float64)

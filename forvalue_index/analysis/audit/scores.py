"""Which training rows are likely wrong: scores that need no labels, and duplicates.

Two signs matter most. A response that does not belong to its prompt is hardly more likely after
the prompt than without it, and its influence disagrees with that of rows with similar prompts. How
reliable a sign is depends on the data. Its weight is the distance of the median row from zero,
where an unrelated prompt and response would be, in units of the spread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.audit.agreement import (
    Floats,
    UnitVectors,
    agreement,
    cosines,
    nearest,
)
from forvalue_index.analysis.audit.prompts import Prompts, read_prompts
from forvalue_index.analysis.field_values import NONE, field_values, label
from forvalue_index.config import FormatConfig
from forvalue_index.data.sources import Data
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Progress, Row, Sample, listed
from forvalue_index.store.snapshot import Snapshot

NEIGHBOURS = 15  # rows with similar prompts that a row is compared with
GUIDES = 3  # trusted rows with similar prompts that a row is compared with
NEARLY = 0.98  # least cosine of two near-duplicates


@dataclass(frozen=True, slots=True)
class Twin:
    """The row that another row repeats or contradicts."""

    kind: str  # "duplicate", "contradiction" or "near-duplicate"
    of: int  # id of the other row
    cosine: float  # of the two vectors for near-duplicates, else 1


@dataclass(frozen=True, slots=True)
class Audit:
    """The training samples of an index in the order of their ids, with signs that they are wrong.

    The scores are, the higher the more suspicious:
    suspicion: the weighted mean rank by the next two or three, 0 to 1.
    disagreement: with the influence of rows with similar prompts, trusted ones among them.
    untrusted: disagreement with the nearest trusted rows alone; only if there are trusted rows.
    needless prompt: how little likelier the prompt makes the response; only if there are prompts.
    opposition: the negative cosine with the mean of all other rows.
    loss, self-influence: as the index stores them.
    """

    ids: NDArray[np.int64]
    scores: dict[str, Floats]  # name -> [n]
    agreement: Floats  # [n] with the influence of rows with similar prompts, -1 to 1
    gain: Floats  # [n] nats per token by which the prompt lowers the loss; NaN without a prompt
    twins: dict[int, Twin]  # id -> the row that it repeats or contradicts
    rows: list[Row] = field(default_factory=list)  # the rows to look at; see `review`


def score_rows(
    index: InfluenceIndex,
    *,
    trusted: Data | list[Sample] | None = None,
    class_field: str | None = None,
    where: str | Iterable[str] = (),
    nearly: float = NEARLY,
    format: FormatConfig | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Returns the scores of every training row, without the rows to look at.

    Runs all rows forward. Arguments are those of `InfluenceIndex.audit`.

    Raises:
        InputError: fewer than three rows are left, a field is missing, or there is no trusted row.
        RowError: a trusted row holds nothing to score.
    """
    conditions = listed(where)
    known = [] if trusted is None else index.samples(trusted, format)

    def ask(view: Snapshot) -> Audit:
        ids = view.where(conditions) if conditions else view.ids
        n = len(ids)
        if n < 3:
            raise InputError(f"{n} training rows: an audit needs 3 or more")
        figures = view.figures(ids)
        classes = _classes(index, ids, known, class_field)
        prompts, states = read_prompts(index, ids, known, progress)
        states = np.concatenate([prompts.states, states])
        vectors = UnitVectors(view, ids, index.vectors(known) if known else None)
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
            # The mean over many tokens varies less: it is compared in its standard errors.
            scaled = gain * np.sqrt(figures.n_scored)
            scores["needless prompt"] = -np.nan_to_num(scaled, nan=np.nanmedian(scaled))
        suspicion = _suspicion(scores, figures.loss)
        scores |= {
            "opposition": -vectors.with_the_rest(),
            "loss": figures.loss,
            "self-influence": (figures.norm / index.vectoriser.scale) ** 2,
        }
        twins = find_twins(ids, prompts, near, plain, nearly)
        return Audit(ids, {"suspicion": suspicion} | scores, agreed, gain, twins)

    return index.answer(ask)


def _suspicion(scores: dict[str, Floats], loss: Floats) -> Floats:
    """Returns the weighted mean of the scores' ranks, [n] in 0 .. 1.

    The weight of a score is how far its median is below zero, over its median absolute deviation.
    Without prompts the loss is used too, with the weight of all others together.
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
    """Returns the rows that repeat or contradict another: id -> twin.

    A duplicate has the prompt and the response of an earlier row. A contradiction has the prompt of
    another row with a different response; of several, each is paired with the first. A
    near-duplicate is neither, and the cosine of its vector (`plain`) with an earlier neighbour's
    (`near`) is at least `nearly`.
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
    """Returns the share of the other values that are lower, ties counting half, [n] in 0 .. 1."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    return np.asarray((below + (counts - 1) / 2)[inverse] / (len(values) - 1), np.float64)

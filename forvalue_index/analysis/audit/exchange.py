"""How many training rows are wrong, by comparison with rows whose responses were exchanged.

It runs up to 512 exchanged rows forward; `estimate.py` has the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.audit.agreement import agreement_with, nearest, reliable_rows
from forvalue_index.analysis.audit.estimate import LEAST, Estimate, estimate
from forvalue_index.analysis.audit.prompts import Prompts, bare, first_scored, has_prompt
from forvalue_index.analysis.audit.suspicion import suspicion_of
from forvalue_index.analysis.audit.unit_vectors import (
    Floats,
    Positions,
    UnitVectors,
    Vectors,
    unit,
)
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Progress, Sample

_MOST = 512  # rows that are exchanged


@dataclass(frozen=True, slots=True)
class Around:
    """What n training rows are compared with; positions as in `agreement.py`."""

    vectors: UnitVectors  # of training and trusted rows
    states: Vectors  # [n + trusted, p] of their prompts
    classes: NDArray[np.int64]  # [n + trusted]
    near: Positions  # [n, k] neighbours of the training rows
    agreed: Floats  # [n] agreement with them
    losses: Floats  # [trusted] nats, of the trusted rows
    guides: Positions | None  # [n, k] nearest trusted rows, if there are any


def estimate_wrong(
    index: InfluenceIndex,
    ids: NDArray[np.int64],
    known: Sequence[Sample],
    prompts: Prompts,
    around: Around,
    scores: dict[str, Floats],
    suspicion: Floats,
    progress: Progress | None = None,
) -> Estimate:
    """Returns how many training rows are wrong.

    Args:
        index: the index.
        ids: of the training rows [n].
        known: trusted rows.
        prompts: of the training rows.
        around: what they are compared with.
        scores: that the suspicion is made from, name -> [n].
        suspicion: of the training rows [n].
    """
    samples, places, alone = exchanged_samples(index, ids, prompts)
    if len(samples) < LEAST:
        return Estimate(len(ids))
    vectors, losses = read(index, samples, progress)
    vectors = unit(vectors)
    cut = np.flatnonzero(np.isnan(alone))
    alone[cut] = _alone(index, [samples[i] for i in cut])
    wrong = _signs(vectors, alone - losses, samples, around, around.near[places])
    right = {name: np.zeros(0) for name in wrong}
    asking = [i for i, sample in enumerate(known) if has_prompt(sample)]
    if asking:
        chosen, near = [known[i] for i in asking], _neighbours_of_trusted(around)[asking]
        gain = _alone(index, chosen) - around.losses[asking]
        right = _signs(around.vectors.known[asking], gain, chosen, around, near)
    tables = [np.stack([signs[name] for name in wrong], 1) for signs in (scores, wrong, right)]
    if around.guides is not None:
        guides = around.guides[places]
        wrong["untrusted"] = untrusted(around.vectors.cosines_of(vectors, guides), guides)
    rows, exchanged, trusted = tables
    return estimate(rows, exchanged, trusted, suspicion, suspicion_of(wrong, scores))


def untrusted(centred: Vectors, guides: Positions) -> Floats:
    """Returns the mean disagreement with trusted rows, [m], from cosines with `guides` [m, k]."""
    total = centred.sum(1, dtype=np.float64)
    return np.asarray(-total / np.maximum((guides >= 0).sum(1), 1), np.float64)


def exchanged_samples(
    index: InfluenceIndex, ids: NDArray[np.int64], prompts: Prompts
) -> tuple[list[Sample], Positions, Floats]:
    """Returns up to 512 training samples, each with the response of another, and their positions.

    Then the losses of the responses alone, NaN where one is cut. Rows without a prompt, with the
    same response or with pictures are left out.
    """
    rng = np.random.default_rng(0)
    asking = np.flatnonzero(prompts.prompt)
    drawn = np.sort(rng.permutation(asking)[:_MOST])
    samples = index.training_samples(ids[drawn].tolist())
    longest = max((len(sample.input_ids) for sample in samples), default=0)
    order = rng.permutation(len(drawn))
    found, places, alone = [], [], []
    for one, other in zip(order, np.roll(order, 1), strict=True):
        place = drawn[one]
        if prompts.response[place] == prompts.response[drawn[other]]:
            continue
        made = _with_response(samples[one], samples[other], longest)
        if made is not None:
            found.append(made)
            places.append(place)
            whole = made.n_scored == samples[other].n_scored
            alone.append(prompts.bare[drawn[other]] if whole else np.nan)
    return found, np.array(places, np.int64), np.array(alone, np.float64)


def _with_response(sample: Sample, other: Sample, longest: int) -> Sample | None:
    """Returns a sample with all that another has from its first scored token on."""
    if sample.images or other.images or sample.token_types is not None:
        return None
    start, begin = first_scored(sample), first_scored(other)
    ids = np.concatenate([sample.input_ids[:start], other.input_ids[begin:]])[:longest]
    scored = np.concatenate([np.zeros(start, np.bool_), other.scored[begin:]])[:longest]
    return replace(sample, input_ids=ids, scored=scored) if scored.any() else None


def read(
    index: InfluenceIndex, samples: Sequence[Sample], progress: Progress | None = None
) -> tuple[Vectors, Floats]:
    """Returns the vectors [m, dim] and the losses [m] of samples that are run forward."""

    def report(done: int, tokens: int) -> None:
        if progress is not None:
            progress("exchanged", done, len(samples), tokens)

    encoded = index.passes.encode(samples, report)
    return np.stack([item.vector for item in encoded]), np.array([item.loss for item in encoded])


def _alone(index: InfluenceIndex, samples: Sequence[Sample]) -> Floats:
    """Returns the losses of the samples' responses without their prompts, [m] nats."""
    return index.passes.losses([bare(sample, index.lm.tokenizer) for sample in samples])


def _signs(
    vectors: Vectors, gain: Floats, samples: Sequence[Sample], around: Around, own: Positions
) -> dict[str, Floats]:
    """Returns what an audit would score m samples that are no training rows, name -> [m].

    Args:
        vectors: of the samples, of length 1.
        gain: of their prompts, nats.
        samples: each has a prompt.
        around: what they are compared with.
        own: positions of their neighbours, [m, k].
    """
    centred = around.vectors.cosines_of(vectors, own)
    count = around.vectors.count + len(around.vectors.known)
    reliable = reliable_rows(around.agreed, around.near, count)
    return {
        "disagreement": -agreement_with(centred, own, reliable),
        "needless prompt": -gain * np.sqrt([sample.n_scored for sample in samples]),
    }


def _neighbours_of_trusted(around: Around) -> Positions:
    """Returns the neighbours of the trusted rows, [t, k], in the order of the training rows'."""
    n, k = around.near.shape
    count = len(around.states)
    order = np.concatenate([np.arange(n, count), np.arange(n)])
    states, classes = around.states[order], around.classes[order]
    found = nearest(states, classes, np.arange(count), count - n, k)
    return np.where(found >= 0, order[found], -1)

"""Through which tokens a training sample influences a query: the exact terms of their scores.

influence(query, sample) = sum over their scored tokens of <e_k, e_l> <h_k, h_l>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from forvalue_index.data.token_text import pieces_of
from forvalue_index.errors import InputError
from forvalue_index.pipeline.session import Reader
from forvalue_index.records import Sample
from forvalue_index.vectors.closed_form import precise_token_influence, token_influence

REJECTED = "\n[rejected] "
"""What is shown before a text whose influence is subtracted."""
REPEATED = 4  # equal tokens in a row that are shown as one


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """The tokens of a sample, and what each of them contributed to a score."""

    texts: list[str]  # t; joined, the text as the model read it
    scored: NDArray[np.bool_]  # t, whose predictions count
    values: NDArray[np.float64]  # t, the contributions, which sum to the score; 0 if not scored
    rejected: int | None = None  # where the rejected text begins, whose influence is subtracted

    def shown(self) -> list[tuple[str, int, float]]:
        """Returns each token's text, its place among the scored ones or -1, and its contribution.

        Many equal tokens in a row that are not scored, such as an image's, are shown as one.
        """
        places = np.where(self.scored, np.cumsum(self.scored) - 1, -1).tolist()
        tokens: list[tuple[str, int, float]] = []
        each = zip(self.texts, places, self.values.tolist(), strict=True)
        for (begins, text, place, value), run in groupby(
            ((n == self.rejected, *token) for n, token in enumerate(each))
        ):
            n = len(list(run))
            if begins:
                tokens.append((REJECTED, -1, 0.0))
            if n >= REPEATED and text.strip():
                tokens.append((f"{text} × {n} ", place, 0.0))
            else:
                tokens += [(text, place, value)] * n
        return tokens


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """The exact influence of a training sample on a query, token by token."""

    id: int  # of the training sample
    key: str
    query: Passage
    sample: Passage
    terms: NDArray[np.float64]  # [scored tokens of the query, scored tokens of the sample]

    @property
    def score(self) -> float:
        """The influence, the sum of all terms."""
        return float(self.terms.sum())


def explain(reader: Reader, query: Sample, key: str) -> Explanation:
    """Returns the terms of a query and a training sample; see `InfluenceIndex.explain`."""
    stored = reader.store.find(key)
    [sample] = reader.training_samples([stored.id])
    encoder, terms = reader.encoder, np.zeros((query.n_scored, sample.n_scored))
    for number, part in enumerate(reader.vectoriser.parts):  # the checkpoints, mostly one
        [(_, a)] = encoder.factors([query], part, number)
        [(_, b)] = encoder.factors([sample], part, number)
        terms += precise_token_influence(a, b).cpu().numpy()
    return Explanation(
        stored.id,
        stored.key,
        _passage(reader, query, terms.sum(1)),
        _passage(reader, sample, terms.sum(0)),
        terms,
    )


def contributions(reader: Reader, query: Sample, ids: Sequence[int]) -> list[Passage]:
    """Returns the training samples with these ids, and what their tokens add to the influence."""
    samples = reader.training_samples(ids)
    encoder, values = reader.encoder, [np.zeros(sample.n_scored) for sample in samples]
    for number, part in enumerate(reader.vectoriser.parts):
        [(_, a)] = encoder.factors([query], part, number)
        for positions, b in encoder.factors(samples, part, number):
            sums = token_influence(a, b).sum(0).double().cpu().numpy()  # [n tokens]
            owner = b.owner.cpu().numpy()
            for row, position in enumerate(positions):
                values[position] += sums[owner == row]
    return [_passage(reader, *pair) for pair in zip(samples, values, strict=True)]


def narrow(
    reader: Reader, sample: Sample, span: str | None = None, tokens: slice | None = None
) -> Sample:
    """Returns a sample of whose scored tokens only some count; see `InfluenceIndex.part`."""
    if sample.label is not None:
        raise InputError("the answer of a classifier is a single class and has no parts")
    places = np.flatnonzero(sample.scored)
    if tokens is not None:
        chosen = places[tokens]
        if not len(chosen):
            raise InputError(
                f"tokens {tokens.start}:{tokens.stop} are not among the response's {len(places)}"
            )
    else:
        chosen = _occurrence(reader, sample, span or "")
    scored = np.zeros_like(sample.scored)
    scored[chosen] = True
    return replace(sample, scored=scored)


def _occurrence(reader: Reader, sample: Sample, span: str) -> NDArray[np.int64]:
    """Returns the tokens that hold the first `span` among scored tokens.

    Raises:
        InputError: there is none.
    """
    texts = pieces_of(reader.lm.tokenizer, sample)
    ends = np.cumsum([len(text) for text in texts])  # of the tokens, in characters
    text, start = "".join(texts), -1
    while span and (start := text.find(span, start + 1)) >= 0:
        first, last = np.searchsorted(ends, [start, start + len(span) - 1], side="right")
        while first and not texts[first - 1]:  # the earlier tokens of the first character
            first -= 1
        if sample.scored[first : last + 1].all():
            return np.arange(first, last + 1)
    response = "".join(texts[place] for place in np.flatnonzero(sample.scored))
    raise InputError(f"{span!r} is not in the response {response!r}")


def _passage(reader: Reader, sample: Sample, values: NDArray[np.float64]) -> Passage:
    """Returns the tokens of a sample with the contributions of the scored ones."""
    texts = pieces_of(reader.lm.tokenizer, sample)
    scored = sample.scored
    if sample.label is not None:  # what a classifier predicts stands behind the text
        texts.append(f"[{reader.lm.model.config.id2label[sample.label]}]")
        scored = np.arange(len(texts)) == len(texts) - 1
    spread = np.zeros(len(texts))
    spread[scored] = values
    return Passage(texts, scored, spread, sample.rejected)

"""Through which tokens a training sample influences a query: the exact terms of their scores.

influence(query, sample) = sum over their scored tokens of <e_k, e_l> <h_k, h_l>
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from forvalue_index.config import FormatConfig
from forvalue_index.data.token_text import pieces_of
from forvalue_index.data.turns import turns_of
from forvalue_index.errors import InputError
from forvalue_index.pipeline.session import Session
from forvalue_index.records import Explanation, Hit, Passage, Row, Sample
from forvalue_index.store.rows import find
from forvalue_index.vectors.closed_form import precise_token_influence, token_influence


def explain(
    session: Session, query: Row | Sample, key: str, format: FormatConfig | None
) -> Explanation:
    """Returns the terms of a query and a training sample; see `InfluenceIndex.explain`."""
    query = session.samples(query, format)[0]
    stored = find(session.store, key)
    [sample] = session.training_samples([stored.id])
    encoder, terms = session.encoder, np.zeros((query.n_scored, sample.n_scored))
    for number, part in enumerate(session.vectoriser.parts):  # the checkpoints, mostly one
        [(_, a)] = encoder.factors([query], part, number)
        [(_, b)] = encoder.factors([sample], part, number)
        terms += precise_token_influence(a, b).cpu().numpy()
    return Explanation(
        stored.id,
        stored.key,
        _passage(session, query, terms.sum(1)),
        _passage(session, sample, terms.sum(0)),
        terms,
    )


def contributions(
    session: Session,
    query: Row | Sample,
    hits: Iterable[Hit],
    format: FormatConfig | None,
    check: Callable[[], None] = lambda: None,
) -> list[Passage]:
    """Returns what the tokens of hits add to the influence; see `InfluenceIndex.contributions`.

    `check` is called between batches; what it raises ends the work.
    """
    query = session.samples(query, format)[0]
    samples = session.training_samples([hit.id for hit in hits])
    encoder, values = session.encoder, [np.zeros(sample.n_scored) for sample in samples]
    for number, part in enumerate(session.vectoriser.parts):
        [(_, a)] = encoder.factors([query], part, number)
        for positions, b in encoder.factors(samples, part, number):
            check()
            sums = token_influence(a, b).sum(0).double().cpu().numpy()  # [n tokens]
            owner = b.owner.cpu().numpy()
            for row, position in enumerate(positions):
                values[position] += sums[owner == row]
    return [_passage(session, *pair) for pair in zip(samples, values, strict=True)]


def part_of(
    session: Session,
    query: Row | Sample,
    span: str | None,
    tokens: slice | None,
    format: FormatConfig | None,
) -> Sample:
    """Returns a query of whose scored tokens only some count; see `InfluenceIndex.part`."""
    if (span is None) == (tokens is None):
        raise InputError("a part is a span of text or a slice of tokens: give one of them")
    sample = session.samples(query, format)[0]
    if sample.label is not None:
        raise InputError(
            "the answer of a classifier is a single class and has no parts: query for it as a whole"
        )
    places = np.flatnonzero(sample.scored)
    if tokens is not None:
        chosen = places[tokens]
        if not len(chosen):
            raise InputError(
                f"tokens {tokens.start}:{tokens.stop} are not among the response's {len(places)}"
            )
    else:
        chosen = _occurrence(session, sample, span or "")
    scored = np.zeros_like(sample.scored)
    scored[chosen] = True
    texts = pieces_of(session.lm.tokenizer, sample)
    return replace(sample, scored=scored, part="".join(texts[place] for place in chosen))


def _occurrence(session: Session, sample: Sample, span: str) -> NDArray[np.int64]:
    """Returns the tokens that hold the first `span` among scored tokens.

    Raises:
        InputError: there is none.
    """
    texts = pieces_of(session.lm.tokenizer, sample)
    ends = np.cumsum([len(text) for text in texts])  # of the tokens, in characters
    text, start = "".join(texts), -1
    while span and (start := text.find(span, start + 1)) >= 0:
        first, last = np.searchsorted(ends, [start, start + len(span) - 1], side="right")
        while first and not texts[first - 1]:  # earlier tokens of the same character
            first -= 1
        if sample.scored[first : last + 1].all():
            return np.arange(first, last + 1)
    response = "".join(texts[place] for place in np.flatnonzero(sample.scored))
    raise InputError(
        f"{span!r} is not in the response {response!r}: give a part of it, letter for letter"
    )


def _passage(session: Session, sample: Sample, values: NDArray[np.float64]) -> Passage:
    """Returns the tokens of a sample with the contributions of the scored ones."""
    texts = pieces_of(session.lm.tokenizer, sample)
    scored = sample.scored
    if sample.label is not None:  # a classifier's prediction follows the text
        texts.append(f"[{session.lm.model.config.id2label[sample.label]}]")
        scored = np.arange(len(texts)) == len(texts) - 1
    spread = np.zeros(len(texts))
    spread[scored] = values
    turns = turns_of(sample.row, texts, sample.rejected, session.config.format)
    return Passage(texts, scored, spread, sample.rejected, turns)

"""Results as JSON values: what `--json` prints, and what the server answers; and back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from forvalue_index.records import Explanation, Hit, Passage, Turn


def hit_json(hit: Hit, passage: Passage | None = None) -> dict[str, Any]:
    """Returns a hit as JSON values; with its passage also "tokens": text and contribution of each.

    The contribution of a token that is not scored is null. "rejected" is where the rejected text
    of a preference begins, and "turns" are the words of a conversation: the first of their tokens,
    the one after the last, and the role. The other tokens are the chat template's.
    """
    unsaid = {"exact": False, "parts": None, "shared": None}
    found = {field.name: getattr(hit, field.name) for field in fields(hit)}  # nothing is copied
    named = {name: value for name, value in found.items() if unsaid.get(name, ...) != value}
    if passage is None:
        return named
    values = zip(passage.texts, passage.scored.tolist(), passage.values.tolist(), strict=True)
    tokens = [[text, float(f"{value:.6g}") if scored else None] for text, scored, value in values]
    return named | {"tokens": tokens} | _parts(passage)


def explanation_json(explanation: Explanation) -> dict[str, Any]:
    """Returns an explanation as JSON values: both texts, and the term of each pair of tokens."""

    def side(passage: Passage) -> dict[str, Any]:
        return {
            "tokens": passage.texts,
            "scored": passage.scored.tolist(),
            "contributions": passage.values.tolist(),
        } | _parts(passage)

    return {
        "id": explanation.id,
        "key": explanation.key,
        "score": explanation.score,
        "query": side(explanation.query),
        "sample": side(explanation.sample),
        "terms": explanation.terms.tolist(),
    }


def _parts(passage: Passage) -> dict[str, Any]:
    found = {"rejected": passage.rejected, "turns": [*map(list, passage.turns)] or None}
    return {name: value for name, value in found.items() if value is not None}


def _turns(found: dict[str, Any]) -> tuple[Turn, ...]:
    return tuple(Turn(*turn) for turn in found.get("turns") or ())


def hit_of(found: dict[str, Any]) -> Hit:
    """Returns a hit from its JSON values."""
    names = ("query", "rank", "id", "key", "score", "sample")
    shared = found.get("shared")
    return Hit(
        **{name: found[name] for name in names},
        exact=found.get("exact", False),
        parts=found.get("parts"),
        shared=None if shared is None else tuple(shared),
    )


def passage_of(found: dict[str, Any]) -> Passage:
    """Returns the tokens of a hit from its JSON values; none where these have none."""
    tokens = found.get("tokens") or []
    return Passage(
        [text for text, _ in tokens],
        np.array([value is not None for _, value in tokens], bool),
        np.array([value or 0.0 for _, value in tokens], np.float64),
        found.get("rejected"),
        _turns(found),
    )


def explanation_of(found: dict[str, Any]) -> Explanation:
    """Returns an explanation from its JSON values."""

    def side(value: dict[str, Any]) -> Passage:
        scored, values = np.array(value["scored"], bool), np.array(value["contributions"], float)
        return Passage(value["tokens"], scored, values, value.get("rejected"), _turns(value))

    query, sample, terms = side(found["query"]), side(found["sample"]), np.array(found["terms"])
    return Explanation(found["id"], found["key"], query, sample, terms)

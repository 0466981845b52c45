"""Results as JSON values: what `--json` prints, and what the server answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from forvalue_index.records import Explanation, Hit, Passage


def hit_json(hit: Hit, passage: Passage | None = None) -> dict[str, Any]:
    """Returns a hit as JSON values; with its passage also "tokens": text and contribution of each.

    The contribution of a token that is not scored is null. "rejected" is where the rejected text
    of a preference begins, and "turns" are the words of a conversation: the first of their tokens,
    the one after the last, and the role. The other tokens are the chat template's.
    """
    unsaid = {"exact": False, "parts": None, "shared": None}
    found = asdict(hit)
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

"""Explanations in a terminal: texts whose tokens are coloured by what they contributed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.style import Style
from rich.table import Table
from rich.text import Text

from forvalue_index.cli import render
from forvalue_index.cli.render import one_line
from forvalue_index.records import MARK

if TYPE_CHECKING:
    from forvalue_index.records import Explanation, Passage

STRENGTHS = ((0.6, "bold reverse"), (0.25, "bold"), (0.08, ""))
"""Least share of the largest contribution -> how a token looks."""


def whole(passage: Passage) -> Text:
    """Returns a passage with its own line breaks: scored tokens coloured, the others dim."""
    text, most = Text(), _largest(passage)
    for token, place, value in _tokens(passage):
        shown = "\n".join(one_line(line) for line in token.split("\n"))
        text.append(shown, style=_look(place, value / most))
    return text


def snippet(passage: Passage, limit: int = 240) -> Text:
    """Returns a passage on one line; if it is long, the part that contributed most."""
    tokens = [
        (one_line(token.replace("\n", " ") if place == MARK else token), place, value)
        for token, place, value in _tokens(passage)
    ]
    lengths = np.cumsum([0, *(len(token) for token, _, _ in tokens)])
    sums = np.cumsum([0, *(abs(value) for _, _, value in tokens)])
    stops = np.searchsorted(lengths, lengths + limit, side="right") - 1
    gains = sums[stops] - sums
    first = int(np.argmax(gains >= (1 - 1e-9) * gains.max()))  # the earliest such part
    text, most = Text("…" if first else ""), _largest(passage)
    for token, place, value in tokens[first : stops[first]]:
        text.append(token, style=_look(place, value / most))
    return text.append("…") if stops[first] < len(tokens) else text


def pairs(explanation: Explanation, n: int) -> Table:
    """Returns the n pairs of tokens with the largest terms, as a table."""
    table = Table(box=None, pad_edge=False)
    for column in ("share", "influence"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("query", overflow="fold")
    table.add_column("sample", overflow="fold")
    terms, total = explanation.terms, np.abs(explanation.terms).sum()
    for place in np.argsort(-np.abs(terms), axis=None, kind="stable")[:n]:
        row, column = np.unravel_index(place, terms.shape)
        value = float(terms[row, column])
        table.add_row(
            f"{abs(value) / max(total, 1e-300):.1%}",
            render.signed(value),
            _around(explanation.query, int(row)),
            _around(explanation.sample, int(column)),
        )
    return table


def _around(passage: Passage, number: int, room: int = 20) -> Text:
    """Returns a scored token in bold, with some of the text around it."""
    place = int(np.flatnonzero(passage.scored)[number])
    before = one_line("".join(passage.texts[:place]))
    after = one_line("".join(passage.texts[place + 1 :]))
    own = one_line(passage.texts[place])
    word = own.lstrip() or own
    text = Text("…" + before[-room:] if len(before) > room else before, style="dim")
    text.append(own.removesuffix(word))
    text.append(f"[{word}]", style="bold not dim")
    return text.append(after[:room] + "…" if len(after) > room else after, style="dim")


def _tokens(passage: Passage) -> list[tuple[str, int, float]]:
    """Returns the tokens to show; tokens that share one character are merged."""
    tokens, waiting = [], 0.0
    for text, place, value in passage.shown():
        waiting += value
        if text:
            tokens.append((text, place, waiting))
            waiting = 0.0
    return tokens


def _largest(passage: Passage) -> float:
    return max(float(np.abs(passage.values).max()), 1e-300)


def _look(place: int, share: float) -> str | Style:
    """Returns the style of a token, of one that is not scored, or of a mark."""
    if place == MARK:
        return render.MARKED
    return "dim" if place < 0 else _style(share)


def _style(share: float) -> Style:
    """Returns the style of a contribution, given as its share of the largest one."""
    for least, strength in STRENGTHS:
        if abs(share) >= least:
            return Style.parse(f"{strength} {'green' if share > 0 else 'red'}")
    return Style()

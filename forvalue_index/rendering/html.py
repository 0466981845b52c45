"""Results as HTML for a notebook: whole in itself, nothing is loaded and no script runs.

Takes JSON values, as `--json` prints them. All texts are escaped, and control characters are
written out. Colours are see-through, so that they suit light and dark notebooks.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from forvalue_index.errors import escaped

Json = dict[str, Any]

HELP, HURT = "13,148,92", "220,60,66"
FAINT = 0.04  # share of the largest contribution that is not coloured
LONGEST = 400  # characters of a text
KEY = 16  # of a key
SHORT = 40  # characters of a field that is shown beside the texts
LISTED = 100  # rows of a table
CELLS = 40  # tokens of a side, of which every pair is shown
PAIRS = 8  # the largest pairs that are listed
_PLAIN = "\n\t\xa0\u3000\u200c\u200d"

TABLE = "border-collapse:collapse;text-align:left;max-width:75em"
CELL = "padding:.35em .8em .35em 0;vertical-align:top;text-align:left"
TEXT = "white-space:pre-wrap;overflow-wrap:anywhere"
SOFT = "opacity:.72;font-size:.9em"


def hits_html(hits: Sequence[Json]) -> str:
    """Returns hits as a table: the score as a figure and a bar, the key, and what the row says."""
    most = max((abs(hit["score"]) for hit in hits), default=0) or 1.0
    several = len({hit["query"] for hit in hits}) > 1
    rows = []
    for hit in hits[:LISTED]:
        parts = hit.get("parts") or {}
        influence = parts.get("influence", 0.0) if parts else hit["score"]
        cells = [
            *([_text(str(hit["query"]))] if several else []),
            str(hit["rank"]),
            _figure(hit["score"], influence) + _bar(abs(hit["score"]) / most, influence),
            _key(hit["key"]),
            said(hit["sample"]),
        ]
        rows.append(cells)
    names = [*(["query"] if several else []), "", "score", "key", "training row"]
    return _table(names, rows, len(hits), "hits")


def explanation_html(explanation: Json) -> str:
    """Returns both texts in colour, and the terms of the pairs of tokens."""
    terms, parts = explanation["terms"], []
    for name, title in (("query", "The answer"), ("sample", "The training row")):
        side = explanation[name]
        parts.append(f"<div style='{SOFT}'>{title}</div>")
        parts.append(_coloured(side["tokens"], side["scored"], side["contributions"]))
    tokens = [
        [text for text, is_scored in zip(side["tokens"], side["scored"], strict=True) if is_scored]
        for side in (explanation["query"], explanation["sample"])
    ]
    if len(tokens[0]) <= CELLS and len(tokens[1]) <= CELLS:
        parts.append(_map(tokens, terms))
    pairs = [(value, i, j) for i, line in enumerate(terms) for j, value in enumerate(line)]
    pairs.sort(key=lambda pair: -abs(pair[0]))
    rows = [
        [_figure(v, v), _token(tokens[0][i]), _token(tokens[1][j])] for v, i, j in pairs[:PAIRS]
    ]
    head = (
        f"<div>influence {_figure(explanation['score'], explanation['score'])} (exact) of "
        f"<code>{_text(explanation['key'], SHORT)}</code></div>"
    )
    table = _table(["influence", "of the answer", "of the row"], rows, len(rows), "pairs")
    return f"<div style='max-width:75em'>{head}{''.join(parts)}{table}</div>"


def suspects_html(rows: Sequence[Json], verdict: str) -> str:
    """Returns the suspects of an audit as a table, with the reasons."""
    shown = [
        [
            f"{row['suspicion']:.3f}",
            _key(row["key"]),
            "".join(f"<div>{_text(reason)}</div>" for reason in row["reasons"]),
            said(row["sample"]),
        ]
        for row in rows[:LISTED]
    ]
    names = ["suspicion", "key", "reasons", "training row"]
    return f"<div>{_text(verdict)}</div>" + _table(names, shown, len(rows), "suspects")


def said(row: Json) -> str:
    """Returns what a row says: its texts, the turns of conversations, and its short fields."""
    texts: list[tuple[str, str]] = []
    short: list[str] = []
    for name, value in row.items():
        if isinstance(value, str) and (len(value) > SHORT or name in ("prompt", "response")):
            texts.append((name, value))
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            texts += [_turn(message, name) for message in value]
        elif isinstance(value, str | int | float) and len(str(value)) <= SHORT:
            short.append(f"{_text(name)} <b>{_text(str(value))}</b>")
    lines = [
        f"<div style='{TEXT}'><span style='{SOFT}'>{_text(name, SHORT)}</span> "
        f"{_text(text, LONGEST)}</div>"
        for name, text in texts
    ]
    if short:
        lines.append(f"<div style='{SOFT}'>{' · '.join(short)}</div>")
    return "".join(lines)


def _turn(message: Json, name: str) -> tuple[str, str]:
    content = message.get("content", message.get("value", ""))
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return str(message.get("role", message.get("from", name))), text


def _coloured(tokens: Sequence[str], scored: Sequence[bool], contributions: Sequence[float]) -> str:
    """Returns tokens, each behind the colour of what it contributed."""
    most = max((abs(value) for value in contributions), default=0) or 1.0
    spans, waiting = [], 0.0
    for text, is_scored, value in zip(tokens, scored, contributions, strict=True):
        waiting += value
        if text == "":  # one of several tokens of a character
            continue
        share, waiting = waiting / most, 0.0
        style = "" if is_scored else "opacity:.6"
        if is_scored and abs(share) >= FAINT:
            style = f"background:rgba({_colour(share)},{0.08 + 0.37 * min(abs(share), 1):.2f})"
            style += f";border-bottom:2px solid rgb({HURT})" if share < 0 else ""
        spans.append(f"<span style='{style}'>{_text(text)}</span>")
    return f"<div style='{TEXT};line-height:1.7;margin-bottom:.5em'>{''.join(spans)}</div>"


def _map(tokens: Sequence[Sequence[str]], terms: Sequence[Sequence[float]]) -> str:
    """Returns a heat map of all pairs, with the tokens beside it."""
    most = max((abs(value) for line in terms for value in line), default=0) or 1.0
    side = "writing-mode:vertical-rl;font-size:.8em;max-height:7em;overflow:hidden"
    head = "".join(
        f"<th style='padding:0 2px'><div style='{side}'>{_token(t)}</div></th>" for t in tokens[1]
    )
    lines = []
    for text, line in zip(tokens[0], terms, strict=True):
        cells = "".join(
            f"<td title='{value:+.3g}' style='padding:0;width:1.2em;height:1.2em;background:"
            f"rgba({_colour(value)},{(abs(value) / most) ** 0.75:.3f})'></td>"
            for value in line
        )
        name = f"<th style='font-size:.8em;text-align:right;padding:0 6px'>{_token(text)}</th>"
        lines.append(f"<tr>{name}{cells}</tr>")
    return (
        f"<table style='border-collapse:collapse'><tr><th></th>{head}</tr>{''.join(lines)}</table>"
    )


def _table(names: Iterable[str], rows: Iterable[Iterable[str]], n: int, what: str) -> str:
    head = "".join(f"<th style='{CELL};{SOFT}'>{_text(name)}</th>" for name in names)
    lines = (
        "<tr>" + "".join(f"<td style='{CELL}'>{cell}</td>" for cell in cells) + "</tr>"
        for cells in rows
    )
    body = "".join(lines)
    more = f"<div style='{SOFT}'>the first {LISTED} of {n:,} {what}</div>" if n > LISTED else ""
    return (
        f"<table style='{TABLE}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
    )


def _figure(value: float, influence: float) -> str:
    colour = f" style='color:rgb({_colour(influence)})'" if influence else ""
    return f"<b{colour}>{value:+.3g}</b>"


def _bar(share: float, influence: float) -> str:
    colour = _colour(influence) if influence else "128,128,128"
    return (
        f"<div style='width:6em;height:4px;background:rgba(128,128,128,.2)'><div style='width:"
        f"{100 * share:.1f}%;height:100%;background:rgb({colour})'></div></div>"
    )


def _colour(value: float) -> str:
    return HELP if value >= 0 else HURT


def _key(key: str) -> str:
    return f"<code title='{_text(key)}'>{_text(key, KEY)}</code>"


def _token(text: str) -> str:
    return _text(text.strip() or text.replace("\n", "⏎").replace(" ", "␣") or "·")


def _text(text: str, limit: int | None = None) -> str:
    """Returns a text as HTML that shows it, cut at `limit` characters."""
    shown = text if limit is None or len(text) <= limit else text[:limit] + "…"
    return html.escape(escaped(shown, _PLAIN).encode("utf-8", "replace").decode())

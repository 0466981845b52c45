"""How results look: tables for people, JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from forvalue_index import errors
from forvalue_index.config import FormatConfig
from forvalue_index.data.images import of_pictures
from forvalue_index.data.messages import shown_text
from forvalue_index.data.preferences import is_desirable, rejected_format
from forvalue_index.data.row_text import conversation_of, texts_of
from forvalue_index.errors import InputError
from forvalue_index.metric import METRICS
from forvalue_index.picture import Picture
from forvalue_index.records import Hit, Row, StoredSample

if TYPE_CHECKING:
    from forvalue_index.pipeline.add import AddReport
    from forvalue_index.search.ann_files import DerivedInfo


class Notes(Console):
    """Where progress and notes go; control characters in a text are written out."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints texts, with control characters written out; lines are as they are in a file."""
        options.setdefault("soft_wrap", not self.is_terminal)
        super().print(*(visible(o) if isinstance(o, str) else o for o in objects), **options)


notes = Notes(stderr=True, highlight=False)

KEY = 18  # signs of a key in a table, where a row has one line
_LISTED = 32  # in a list of rows
MARKED = "cyan dim"
"""The style of a conversation's roles."""

_PLAIN = "\n\t\xa0\u3000\u200c\u200d"
"""Line ends, spaces and joiners: Python calls them unprintable, but they are harmless."""


def console() -> Console:
    """Returns the console for results, on standard output."""
    return Console(highlight=False)


class _Warnings(logging.Handler):
    """Shows the warnings of this package as notes, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        notes.print(errors.one_line(record.getMessage()), markup=False, soft_wrap=True)


def show_warnings() -> None:
    """Shows the warnings of this package from now on."""
    log = logging.getLogger("forvalue_index")
    if not log.handlers:
        log.addHandler(_Warnings(logging.WARNING))


def json_line(value: Any) -> None:
    """Prints one JSON value on one line."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, or a terminal without Unicode
        text = json.dumps(value)
    click.echo(text)


def added(directory: Path, report: AddReport) -> None:
    """Prints what an `add` did, as notes."""
    from forvalue_index.store.layout import REJECTS

    parts = [f"{report.added:,} samples added ({report.tokens:,} tokens)"]
    if report.truncated:
        parts.append(f"{report.truncated:,} cut to the maximum length")
    if report.updated:
        parts.append(f"{report.updated:,} of them replaced older ones")
    if report.skipped:
        parts.append(f"{report.skipped:,} already there")
    if report.repeated:
        parts.append(f"{report.repeated:,} identical to another row")
    if report.rejected:
        parts.append(f"{report.rejected:,} rejected (see {escape(str(directory / REJECTS))})")
    notes.print(f"{', '.join(parts)}; {report.samples:,} in {escape(str(directory))}")
    if report.unused:
        notes.print(
            "Kept with each row, not read by the model: "
            + escape(one_line(", ".join(report.unused)))
        )
    if report.fidelity is not None and report.added:
        notes.print(f"Stored vectors keep {report.fidelity} that nothing was fitted to.")
    fitted = report.expected_fidelity
    if report.fidelity and fitted and report.fidelity.fallen_from(fitted):
        notes.print(
            f"Warning: that is less than the {fitted.top_10:.1%} of rows like those that the "
            "projection was learned from. With many such rows, build a new index.",
            style="yellow",
        )
    if report.retained < 0.5 * report.expected:
        notes.print(
            f"Warning: the directions that were learned hold {report.retained:.0%} of the energy "
            f"of the new rows, but {report.expected:.0%} of rows like those that they were learned "
            "from. Scores of the new rows are less exact; with many, build a new index.",
            style="yellow",
        )


def nothing(where: Sequence[str], place: str = "") -> None:
    """Prints that no sample is shown, and why, as a note."""
    if where:
        notes.print(f"No sample{place} meets {' and '.join(where)}", markup=False)
    elif place:
        notes.print(f"There is no sample{place}")
    else:
        notes.print("The index holds no samples: add rows with forvalue add")


def hits_table(
    hits: Sequence[Hit],
    format: FormatConfig,
    metric: str,
    title: Text | None = None,
    texts: Sequence[Text] | None = None,
) -> Table:
    """Returns the hits of one query as a table; `texts` are shown instead of their samples.

    The heading of the scores is what they are: the influence, or the metric's name.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, expand=True)
    table.add_column("", justify="right", style="dim", no_wrap=True)
    exact = " (exact)" if hits and hits[0].exact else ""
    table.add_column(f"{METRICS[metric].heading}{exact}", justify="right", no_wrap=True)
    extra = [name for name in ("lexical", "cosine", "state", "influence") if _has(hits, name)]
    for name in extra:
        table.add_column(METRICS[name].heading if name in METRICS else name, justify="right")
    table.add_column("key", style="cyan", no_wrap=True, max_width=KEY)
    table.add_column("sample", ratio=1, overflow="fold")
    keys = short([hit.key for hit in hits])
    for number, hit in enumerate(hits):
        sign = "green" if hit.score >= 0 else "red"
        table.add_row(
            str(hit.rank),
            Text(f"{hit.score:+.4g}", style=sign),
            *(Text(f"{(hit.parts or {})[name]:+.3g}") for name in extra),
            keys[number],
            sample_text(hit.sample, format) if texts is None else texts[number],
        )
    return table


def _has(hits: Sequence[Hit], part: str) -> bool:
    """Returns whether the scores of hits are made of several parts, and this is one of them."""
    return bool(hits) and len(hits[0].parts or ()) > 1 and part in (hits[0].parts or ())


def samples_table(samples: Sequence[StoredSample], format: FormatConfig) -> Table:
    """Returns samples as a table, one on each line."""
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("id", justify="right", style="dim", no_wrap=True)
    table.add_column("key", style="cyan", no_wrap=True, max_width=_LISTED)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("sample", ratio=1, overflow="fold")
    keys = short([sample.key for sample in samples], _LISTED)
    for sample, key in zip(samples, keys, strict=True):
        figures = str(sample.n_tokens), f"{sample.loss:.3f}"
        table.add_row(str(sample.id), key, *figures, sample_text(sample.row, format))
    return table


def sample_text(row: Row, format: FormatConfig, limit: int = 240) -> Text:
    """Returns a row's text on one line: scored text in bold, a long prompt cut at its start."""
    if not row:
        return Text("not in this index", style="dim")
    try:
        prompt, response = _said(row, format)
    except InputError:  # a row of another kind, such as a query
        prompt, response = Text(), json.dumps(row, ensure_ascii=False, default=str)
    text = Text()
    of_pictures(row, format, lambda value: text.append(f"{_picture(value)} ", style="blue"))
    response, room = one_line(response), max(limit - len(response), 40)
    text.append("…" if len(prompt) > room else "", style="dim").append(prompt[-room:])
    style = "bold" if format.label_field is None else ""
    text.append(response[:limit] + "…" if len(response) > limit else response, style=style)
    other = rejected_format(format)
    if other is not None:
        text.append(" — not: ", style="dim").append(_rejected(row, other)[:limit], style="red")
    elif not is_desirable(row, "row", format):
        text.append(" — not desirable", style="red")
    if format.label_field is not None:
        text.append(" → ", style="dim").append(
            one_line(str(row.get(format.label_field, ""))), style="bold"
        )
    return text


def _said(row: Row, format: FormatConfig) -> tuple[Text, str]:
    """Returns what stands before a response, with the roles of a conversation, and the response."""
    prompt, response = texts_of(row, "row", format)
    if not format.is_chat:
        return Text(one_line(prompt), style="dim"), response
    messages = conversation_of(row, "row", format).messages
    last = max(i for i, message in enumerate(messages) if shown_text(message) == response)
    before = Text()
    for message in messages[:last]:
        before.append(f"[{one_line(message['role'])}] ", style=MARKED)
        before.append(f"{one_line(shown_text(message))} ", style="dim")
    return before.append(f"[{one_line(messages[last]['role'])}] ", style=MARKED), response


def _rejected(row: Row, other: FormatConfig) -> str:
    """Returns the rejected text of a preference, on one line."""
    try:
        return one_line(texts_of(row, "row", other)[1])
    except InputError:
        return ""


def without_bytes(row: Row, format: FormatConfig) -> Row:
    """Returns a row with the place and the size of each picture instead of its bytes."""
    return of_pictures(row, format, _picture)


def _picture(value: dict[str, Any]) -> str:
    picture = Picture.from_json(value)
    width, height = picture.size
    return f"[{one_line(picture.path or 'in the row')} {width}x{height}]"


def signed(value: float) -> Text:
    """Returns a score, green where it helps and red where it hurts."""
    return Text(f"{value:+.3g}", style="green" if value >= 0 else "red")


def one_line(text: str) -> str:
    """Returns text on one line, without control characters."""
    shown = text.replace("\n", "⏎").replace("\t", " ")
    other = "\N{REPLACEMENT CHARACTER}"
    return "".join(c if c.isprintable() or c in _PLAIN else other for c in shown)


def short(names: Sequence[str], width: int = KEY) -> list[Text]:
    """Returns names on one line, in at most `width` signs: their starts, or what tells them apart.

    Paths of one folder all start alike, and are shown by their ends.
    """
    lines = [one_line(name) for name in names]
    starts, ends = (
        {line[part] for line in lines} for part in (slice(width - 1), slice(1 - width, None))
    )
    if len(ends) > len(starts):
        lines = [line if len(line) <= width else f"…{line[1 - width :]}" for line in lines]
    return [Text(line) for line in lines]


def visible(text: str) -> str:
    """Returns the whole text, with its lines, and with control characters written out."""
    return errors.escaped(text, _PLAIN)


def derived(info: DerivedInfo) -> Table:
    """Returns the measurements of a derived index as a table."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "recall@10", "recall@100", "queries/s", "queries/s (--flat)"):
        table.add_column(column, justify="right" if column else "left")
    for name, side in (("proponents", info.proponents), ("opponents", info.opponents)):
        table.add_row(
            name,
            f"{side.recall_at_10:.3f}",
            f"{side.recall_at_100:.3f}",
            f"{side.queries_per_second:,.0f}",
            f"{side.flat_queries_per_second:,.0f}",
        )
    table.caption = "\n".join([f"{info.bytes_per_vector:,.0f} bytes per sample", *info.notes])
    table.caption_justify = "left"
    return table


def properties(values: dict[str, Any]) -> Table:
    """Returns names and values as a table of two columns."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in values.items():
        text = f"{value:,}" if type(value) is int else str(value)
        table.add_row(Text(visible(name)), Text(visible(text)))
    return table

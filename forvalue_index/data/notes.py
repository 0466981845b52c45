"""What is said of how rows are read, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unicodedata import east_asian_width

from forvalue_index.config import FormatConfig
from forvalue_index.data.formatter import end_of, start_of
from forvalue_index.data.row_text import texts_of
from forvalue_index.errors import RowError, brief
from forvalue_index.records import Row

_SHOWN = 20  # characters on each side of where two texts meet


def instruct_note(tokenizer: Any, config: FormatConfig) -> str | None:
    """Returns what it means that rows do not go through a chat template that the model has."""
    plain = config.is_chat or config.text_field is not None or config.label_field is not None
    if plain or not getattr(tokenizer, "chat_template", None):
        return None
    return (
        "The model has a chat template, but prompts and responses are read without it: if it was "
        "trained through the template, give --chat (in Python, FormatConfig(chat=True))"
    )


def reading_notes(tokenizer: Any, config: FormatConfig) -> list[str]:
    """Returns what is added to rows when they are read, and what else to know, a sentence each."""
    if config.is_chat or config.label_field is not None:
        return []
    notes = []
    if start := start_of(tokenizer, config):
        added = tokenizer.decode(start)
        notes.append(f"{added} is added at the start of each row: --no-bos leaves it out")
    if end := end_of(tokenizer, config):
        added = tokenizer.decode(end)
        notes.append(f"{added} is added at the end of each row and scored: --no-eos leaves it out")
    elif config.text_field is not None and config.eos is None:
        notes.append("No end token is added to plain text: --add-eos adds it, as TRL does")
    if (note := instruct_note(tokenizer, config)) is not None:
        notes.append(note)
    return notes


def joined_note(first: tuple[str, Row] | None, config: FormatConfig) -> str | None:
    """Returns what it means that the prompt and the response of a row have no space between them.

    None if they have one, need none (in Chinese and Japanese), or are not joined as they are; or if
    there is no row. It comes after its place.
    """
    others = config.text_field, config.label_field, config.tokens_field
    if first is None or config.is_chat or any(name is not None for name in others):
        return None
    prompt, response = _texts(*first, config)
    if not prompt or not _run_together(prompt[-1], response[0]):
        return None
    edge = brief(f"{prompt[-_SHOWN:]}{response[:_SHOWN]}")
    if config.template is not None:
        how = "end the template with it"
    else:
        how = f'give --template FILE with {{{{ {config.prompt_field} ~ " " }}}} in the file'
    return (
        f"Prompt and response are joined as they are, with no space between them ({edge!r}): if "
        f"the model was trained with a space or a line break there, {how} (in Python, "
        "FormatConfig(template=...))"
    )


def query_note(
    query: Row, own: FormatConfig, rows: Sequence[Row], config: FormatConfig
) -> str | None:
    """Returns what it means that a query has no space where all rows that it found have one.

    None if it has one, or need not have.

    Args:
        query: with a prompt and a response.
        own: how it is read.
        rows: that it found.
        config: how these are read.
    """
    if joined_note(("query", query), own) is None:
        return None
    found = [_texts("row", row, config) for row in rows]
    if not found or not all(_spaced(*texts) for texts in found):
        return None
    prompt, response = _texts("query", query, own)
    return (
        "The query has no space between prompt and response "
        f"({brief(prompt[-_SHOWN:] + response[:_SHOWN])!r}), and the rows that it found have one: "
        f'begin the response with a space (--response " {brief(response[:_SHOWN])}...")'
    )


def _texts(source: str, row: Row, config: FormatConfig) -> tuple[str, str]:
    """Returns the prompt and the response of a row; empty if it has none that can be read."""
    try:
        return texts_of(row, source, config)
    except RowError:
        return "", ""


def _spaced(prompt: str, response: str) -> bool:
    return bool(prompt) and (prompt[-1].isspace() or response[0].isspace())


def _run_together(last: str, first: str) -> bool:
    wide = all(east_asian_width(letter) in "WF" for letter in (last, first))
    return not (last.isspace() or first.isspace() or wide)

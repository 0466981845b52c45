"""What is said of how rows are read, in words."""

from __future__ import annotations

from typing import Any

from forvalue_index.config import FormatConfig
from forvalue_index.data.formatter import end_of, start_of


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

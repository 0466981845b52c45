"""Which tokens of a conversation are whose words; all others are the chat template's.

The words of each message are looked for in the text that the model read, in their order. What a
template changes or leaves out is not found, and is then nobody's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from forvalue_index.config import FormatConfig
from forvalue_index.data.messages import Message, texts_in
from forvalue_index.data.preferences import chosen_format, rejected_format
from forvalue_index.data.row_text import conversation_of
from forvalue_index.errors import ForvalueError
from forvalue_index.records import Row, Turn

REASONED = "</think>"  # templates leave out what stands before it
BEGINNING = 16  # characters of a message's words, by which one is found that was cut off


def turns_of(
    row: Row, texts: Sequence[str], rejected: int | None, config: FormatConfig
) -> tuple[Turn, ...]:
    """Returns the turns of a sample, given the texts of its tokens; () if it is no conversation.

    Args:
        row: of the sample.
        texts: of its tokens.
        rejected: where the tokens of a rejected text begin.
        config: how the index reads rows.
    """
    if not config.is_chat:
        return ()
    if config.messages_field is not None and config.messages_field not in row:
        config = config.of_kind("prompt_field")
    end = len(texts) if rejected is None else rejected
    turns = _found(row, texts[:end], chosen_format(config))
    other = rejected_format(config) or config
    if rejected is not None:
        later = _found(row, texts[end:], other)
        turns += [Turn(turn.start + end, turn.stop + end, turn.role) for turn in later]
    return tuple(turns)


def _found(row: Row, texts: Sequence[str], config: FormatConfig) -> list[Turn]:
    try:
        messages = conversation_of(row, "row", config).messages
    except ForvalueError:
        return []
    whole, ends = "".join(texts), np.cumsum([len(text) for text in texts])
    turns: list[Turn] = []
    after = 0
    for message in messages:
        span = _span(message, whole, after)
        if span is None:
            continue
        after = span[1]
        first, last = np.searchsorted(ends, [span[0], span[1] - 1], side="right").tolist()
        while first and not texts[first - 1]:  # earlier tokens of the same character
            first -= 1
        first = max(first, turns[-1].stop if turns else 0)
        if first <= last:
            turns.append(Turn(first, last + 1, str(message["role"])))
    return turns


def _span(message: Message, whole: str, after: int) -> tuple[int, int] | None:
    """Returns where the words of a message are, in characters."""
    spans = []
    for text in filter(None, map(str.strip, texts_in(message))):
        start = _place(text, whole, after)
        if start is None and REASONED in text:
            text = text.rpartition(REASONED)[2].strip()
            start = _place(text, whole, after)
        if start is None or not text:
            continue
        after = min(start + len(text), len(whole))
        spans.append((start, after))
    return (spans[0][0], spans[-1][1]) if spans else None


def _place(text: str, whole: str, after: int) -> int | None:
    """Returns where a text begins: by itself if it can be, else in a longer word."""
    alone = re.compile(rf"(?<![\w</|]){re.escape(text)}(?![\w>|])").search(whole, after)
    if alone is not None:
        return alone.start()
    start = whole.find(text, after)
    if start >= 0:
        return start
    start = whole.find(text[:BEGINNING], after)
    return start if start >= 0 and text.startswith(whole[start:]) else None

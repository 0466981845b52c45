"""Whether a chat template wrote what the messages say; knows no tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from forvalue_index.data.messages import Message, texts_in
from forvalue_index.errors import RowError


def require_written(messages: Sequence[Message], whole: str, source: str) -> None:
    """Checks that a template wrote what was said to the assistant, and the calls of tools.

    A template may leave out the reasoning of earlier turns, or what is said beside a call; a model
    is trained without them.

    Raises:
        RowError: it left something else out.
    """
    place = 0
    for i, message in enumerate(messages):
        calls = message.get("tool_calls")
        wanted = _names_called(calls) if isinstance(calls, list) else []
        if message["role"] != "assistant":
            wanted = [text for text in texts_in(message) if text.strip()]
        for text in wanted:
            start = 0 if message["role"] == "system" else place
            found = _called(whole, text, start) if calls else _found(whole, text, start)
            if found is None:
                what = f"the call of {text!r} in message {i}" if calls else f"message {i}"
                raise RowError(
                    source,
                    f"the chat template leaves out {what} (role {message['role']!r}): use one that "
                    "writes it (--chat-template FILE)",
                )
            if message["role"] != "system":  # some templates move it
                place = found


def require_tools(tools: Sequence[Message], whole: str, source: str) -> None:
    """Checks that a template wrote the tools that a conversation may use.

    Raises:
        RowError: it left one out.
    """
    for name in _names_called(tools):
        if _called(whole, name, 0) is None:
            raise RowError(
                source,
                f"the chat template leaves out the tool {name!r}: use one that writes tools "
                "(--chat-template FILE), or --ignore-field tools if it was trained without them",
            )


def _names_called(calls: Sequence[Message]) -> list[str]:
    """Returns the names of functions in calls or in tools, in order."""
    functions = [call.get("function", call) for call in calls]
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return [name for name in names if isinstance(name, str)]


def _called(whole: str, name: str, start: int) -> int | None:
    """Returns where the name of a function ends in the whole text; None: it is not there."""
    found = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)").search(whole, start)
    return None if found is None else found.end()


def _found(whole: str, text: str, start: int) -> int | None:
    """Returns where a text ends in the whole, trimmed or as JSON; None: it is not there."""
    said = text.strip()
    for way in (said, json.dumps(said, ensure_ascii=False)[1:-1], json.dumps(said)[1:-1]):
        found = whole.find(way, start)
        if found >= 0:
            return found + len(way)
    return None

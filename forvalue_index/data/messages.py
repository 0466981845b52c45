"""The messages of a conversation, in the one form that chat templates ask for.

Knows no template and no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from forvalue_index.errors import RowError
from forvalue_index.records import Row

Message = dict[str, Any]
"""One turn: "role", "content", and whatever else the template asks for."""

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
"""What ShareGPT calls the roles; others are called the same."""


def messages_of(row: Row, source: str, field: str) -> list[Message]:
    """Returns the messages in a field, in the form of role and content.

    ShareGPT's "from" and "value" are renamed; parts of a content that are all text become one
    text; JSON text is read as what it says.

    Raises:
        RowError: there is no such field, or it holds no messages.
    """
    if field not in row:
        there = ", ".join(row) or "none"
        raise RowError(source, f"no field {field!r}; the row's fields are: {there}")
    value = row[field]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError(source, f"field {field!r} is text, not a list of messages") from None
    if not isinstance(value, list) or not value:
        what = "is empty" if value == [] else f"is {type(value).__name__}, not a list of messages"
        raise RowError(source, f"field {field!r} {what}")
    return [_message(item, source, f"{field}[{i}]") for i, item in enumerate(value)]


def _message(value: Any, source: str, place: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(source, f"{place} is {type(value).__name__}, not a message")
    message = {name: item for name, item in value.items() if item is not None}
    if "role" not in message and "from" in message:
        role = message.pop("from")
        message["role"] = ROLES.get(role, role) if isinstance(role, str) else role
        message["content"] = message.pop("value", "")
    if not isinstance(message.get("role"), str):
        raise RowError(source, f'{place} has no role: a message is {{"role": ..., "content": ...}}')
    content = message.setdefault("content", "")
    if isinstance(content, list) and all(_is_text(part) for part in content):
        content = message["content"] = "".join(part["text"] for part in content)
    if not isinstance(content, str | list):
        raise RowError(source, f"the content of {place} is {type(content).__name__}, not text")
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RowError(source, f"{place} holds half a surrogate pair, not text") from None
    except (TypeError, ValueError) as error:
        raise RowError(source, f"{place} cannot be stored as JSON ({error})") from None
    return message


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and part.get("type", "text") == "text"
        and isinstance(part.get("text"), str)
    )


def answers(messages: Sequence[Message]) -> list[int]:
    """Returns the positions of the assistant's turns that say something."""
    return [
        i
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
        and (message["content"] or message.keys() - {"role", "content", "weight"})
    ]


def weighted(messages: Sequence[Message], turns: Sequence[int], source: str) -> list[int]:
    """Returns those of the turns that count: the form of OpenAI gives the others a weight of 0.

    Raises:
        RowError: a weight is neither 0 nor 1.
    """
    for i in turns:
        if messages[i].get("weight", 1) not in (0, 1):
            raise RowError(source, f"the weight of message {i} is neither 0 nor 1")
    return [i for i in turns if messages[i].get("weight", 1)]


def plain_text(message: Message) -> str:
    """Returns what a message says, without what is not text."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if _is_text(part))

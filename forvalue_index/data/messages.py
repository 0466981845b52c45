"""The messages of a conversation, in the one form that chat templates ask for.

Knows no template and no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from forvalue_index.data.fields import listed, without_nulls
from forvalue_index.data.roles import CALL, ROLES
from forvalue_index.errors import RowError
from forvalue_index.records import Row

Message = dict[str, Any]
"""One turn: "role", "content", and whatever else the template asks for.

"content" is absent where the turn is a call of tools or reasoning alone."""

TRAINED = ("train", "training", "loss")
"""Fields of a turn that say whether it is trained on: axolotl's, and that of ms-swift."""

SAYING = ("tool_calls", "reasoning_content", "reasoning", "thinking")
"""What a turn without content may have instead."""

IMAGE_PARTS = ("image", "image_url")
"""Types of parts of a content that are images."""

_FIRST_FORM = ("human", "gpt", "chatgpt", "model", "function", "function_response", "observation")


def messages_of(row: Row, source: str, field: str, form: int = 2) -> list[Message]:
    """Returns the messages in a field, in the form of role and content.

    ShareGPT's "from" and "value" are renamed; parts of a content that are all text become one
    text; JSON text is read as what it says; nulls are left out. A turn that axolotl does not train
    on ("train": false) has the weight 0.

    Args:
        row: a row.
        source: where it stands.
        field: the field's name.
        form: of reading rows (see `FormatConfig`).

    Raises:
        RowError: there is no such field, it holds no messages, or one has no readable content.
    """
    value = listed(row, field, source, "messages")
    read = _message if form > 1 else _message_of_the_first_form
    return [read(item, source, f"{field}[{i}]") for i, item in enumerate(value)]


def _message(value: Any, source: str, place: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(source, f"{place} is {type(value).__name__}, not a message")
    fields: Message = without_nulls(value)
    role = _either(fields, "role", "from", source, place)
    if not isinstance(role, str):
        raise RowError(source, f'{place} has no role: a message is {{"role": ..., "content": ...}}')
    content = _either(fields, "content", "value", source, place)
    message: Message = {"role": ROLES.get(role.casefold(), role), **fields}
    if content is not None:
        message["content"] = _content(content, source, place)
    _read_calls(message, source, place)
    if "content" not in message and not any(message.get(name) for name in SAYING):
        there = ", ".join(value)
        raise RowError(source, f"{place} has no readable content; its fields are: {there}")
    _read_weight(message, source, place)
    _require_json(message, source, place)
    return message


def _either(message: Message, name: str, other: str, source: str, place: str) -> Any:
    """Takes the value under one of two names out of a message, and returns it."""
    found = [message.pop(key) for key in (name, other) if key in message]
    if len(found) == 2 and found[0] != found[1]:
        raise RowError(source, f"{place} has both {name!r} and {other!r}, and they differ")
    return found[0] if found else None


def _content(content: Any, source: str, place: str) -> str | list[Any]:
    if isinstance(content, list) and all(is_text(part) for part in content):
        return "".join(part["text"] for part in content)
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        unread = [part.get("type") for part in content if not is_text(part)]
        if wrong := [kind for kind in unread if kind not in IMAGE_PARTS]:
            raise RowError(source, f"{place} has a part of type {wrong[0]!r}, which is not read")
        return content
    if not isinstance(content, str):
        raise RowError(source, f"the content of {place} is {type(content).__name__}, not text")
    return content


def _read_calls(message: Message, source: str, place: str) -> None:
    """Brings the calls of tools into the form that chat templates ask for."""
    calls = message.get("tool_calls")
    if isinstance(calls, str) and calls:
        try:
            message["tool_calls"] = calls = without_nulls(json.loads(calls))
        except ValueError:
            raise RowError(source, f"the tool_calls of {place} are text, not JSON") from None
    if not calls:  # Arrow has an empty list for a turn without
        message.pop("tool_calls", None)
    elif not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(source, f"the tool_calls of {place} are not a list of objects")
    call = message.get("function_call")  # OpenAI's older form
    if isinstance(call, dict) and "tool_calls" not in message:
        del message["function_call"]
        message["tool_calls"] = [{"type": "function", "function": call}]


def _read_weight(message: Message, source: str, place: str) -> None:
    """Makes a weight of what says whether a turn is trained on."""
    if message.get("train_detail"):
        raise RowError(
            source, f"{place} has train_detail: parts of a turn cannot be left out of training"
        )
    message.pop("train_detail", None)
    for name in TRAINED:
        train = message.get(name)
        if train is None or (name != "train" and not isinstance(train, bool)):
            continue
        del message[name]
        if not isinstance(train, bool):
            raise RowError(source, f"{name} of {place} is {train!r}, neither true nor false")
        if train and message["role"] not in ("assistant", CALL):
            raise RowError(
                source,
                f"{place} is of the {message['role']} and to be trained on, but only what the "
                f"assistant says is scored: use --score all, or leave {name} out of it",
            )
        if not train:
            message["weight"] = 0


def _require_json(message: Message, source: str, place: str) -> None:
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RowError(source, f"{place} holds half a surrogate pair, not text") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(source, f"{place} cannot be stored as JSON ({error})") from None


def _message_of_the_first_form(value: Any, source: str, place: str) -> Message:
    """Returns a message as indexes of the first form read it: what is missing is empty."""
    if not isinstance(value, dict):
        raise RowError(source, f"{place} is {type(value).__name__}, not a message")
    message = {name: item for name, item in value.items() if item is not None}
    if "role" not in message and "from" in message:
        role = message.pop("from")
        message["role"] = ROLES[role] if role in _FIRST_FORM else role
        message["content"] = message.pop("value", "")
    if not isinstance(message.get("role"), str):
        raise RowError(source, f'{place} has no role: a message is {{"role": ..., "content": ...}}')
    content = message.setdefault("content", "")
    if isinstance(content, list) and all(is_text(part) for part in content):
        content = message["content"] = "".join(part["text"] for part in content)
    if not isinstance(content, str | list):
        raise RowError(source, f"the content of {place} is {type(content).__name__}, not text")
    _require_json(message, source, place)
    return message


def is_text(part: Any) -> bool:
    """Returns whether a part of a content is text."""
    return (
        isinstance(part, dict)
        and part.get("type", "text") == "text"
        and isinstance(part.get("text"), str)
    )


def answers(messages: Sequence[Message]) -> list[int]:
    """Returns the positions of the assistant's turns."""
    return [i for i, message in enumerate(messages) if message["role"] in ("assistant", CALL)]


def says_something(message: Message) -> bool:
    """Returns whether there is more in a turn than its end."""
    return bool(message.get("content") or message.keys() - {"role", "content", "weight"})


def said(messages: Sequence[Message], turns: Sequence[int]) -> list[int]:
    """Returns those of the turns that say something."""
    return [i for i in turns if says_something(messages[i])]


def nothing_said(messages: Sequence[Message]) -> str:
    """Returns in words that the assistant says nothing that counts, and who speaks instead."""
    there = ", ".join(map(repr, dict.fromkeys(message["role"] for message in messages)))
    reason = "no message of the assistant has text that counts, so there is nothing to score"
    if answers(messages):
        return reason
    return f"{reason}; the roles are {there}: call the one that the model speaks for 'assistant'"


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
    return "".join(texts_in(message))


def texts_in(message: Message) -> list[str]:
    """Returns the texts of which a message's content is made."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if is_text(part)]


def shown_text(message: Message) -> str:
    """Returns what a message says, for people: its text, or else the calls of tools as JSON."""
    text = plain_text(message)
    if text or not message.get("tool_calls"):
        return text
    return json.dumps(message["tool_calls"], ensure_ascii=False)


def as_calls(message: Message) -> Message:
    """Returns a turn of role `CALL` as the assistant's, with the calls that its text holds.

    Text that is no call stays the turn's content.
    """
    calls = []
    try:
        value = json.loads(plain_text(message))
        for call in value if isinstance(value, list) else [value]:
            arguments = call.get("arguments", call.get("parameters", {}))
            if isinstance(arguments, str):
                arguments = json.loads(arguments)
            function = {"name": call["name"], "arguments": arguments}
            calls.append({"type": "function", "function": function})
    except (ValueError, LookupError, AttributeError, RecursionError):
        return message | {"role": "assistant"}
    kept = {name: item for name, item in message.items() if name != "content"}
    return kept | {"role": "assistant", "tool_calls": calls}

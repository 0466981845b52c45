"""What a row says, before any chat template: its prompt and response, or its conversation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from forvalue_index.config import FormatConfig
from forvalue_index.data.field_use import SYSTEM, require_read
from forvalue_index.data.fields import (
    check_names,
    is_empty,
    label_of,
    listed,
    text_in,
    without_nulls,
)
from forvalue_index.data.messages import (
    Message,
    answers,
    messages_of,
    nothing_said,
    said,
    shown_text,
    weighted,
)
from forvalue_index.data.preferences import is_desirable, rejected_format
from forvalue_index.data.template import prompt_of
from forvalue_index.data.token_rows import given_tokens, tokens_in_words, without_tokens
from forvalue_index.errors import InputError, RowError
from forvalue_index.records import Row

RESERVED = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversations",
    "messages",
    "return_assistant_tokens_mask",
    "template",
    "tools",
}
"""Arguments of a chat template that a row may not set."""

WORDS = {"true": True, "false": False, "none": None, "null": None}


@dataclass(frozen=True, slots=True)
class Conversation:
    """All that a chat template is given of a row."""

    messages: list[Message]
    tools: list[Any] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    completion: int | None = None
    """How many messages are TRL's prompt; all text behind them is scored. None: the assistant's
    turns are."""


def texts_of(row: Row, source: str, config: FormatConfig) -> tuple[str, str]:
    """Returns the prompt and the response of a row, before any chat template.

    The prompt is "" for plain text. Of a conversation the response is what the assistant says
    last, and the prompt all that comes before it, a line each. Of a preference, the chosen text's.

    Raises:
        InputError: the template for prompts cannot be read.
        RowError: a field is missing, holds no text or has no text as name, has a meaning and is
            not read, or the scored text is empty.
    """
    check_names(row, source)
    require_read(row, source, config)
    if config.tokens_field is not None:
        return _texts_beside_tokens(row, source, config, config.tokens_field)
    is_desirable(row, source, config)
    other = rejected_format(config)
    if other is not None:
        texts_of(row, source, other)
    if config.label_field is not None:
        label_of(row, source, config.label_field)
    if config.text_field is not None:
        return "", text_in(row, config.text_field, source, may_be_empty=False)
    if not config.is_chat or (config.form == 1 and config.messages_field is None):
        prompt = _prompt(row, source, config)
        return prompt, text_in(row, config.response_field, source, may_be_empty=False)
    messages = conversation_of(row, source, config).messages
    last = [len(messages) - 1]
    if config.score != "all":
        last = said(messages, weighted(messages, answers(messages), source))
    if not last:
        raise RowError(source, nothing_said(messages))
    before = "\n".join(shown_text(message) for message in messages[: last[-1]])
    return before, shown_text(messages[last[-1]])


def _texts_beside_tokens(
    row: Row, source: str, config: FormatConfig, field: str
) -> tuple[str, str]:
    """Returns the texts that a row of tokens has too, or its tokens in words."""
    given_tokens(row, source, field)
    try:
        return texts_of(row, source, without_tokens(config))
    except RowError:
        return "", tokens_in_words(row, field)


def _prompt(row: Row, source: str, config: FormatConfig) -> str:
    if config.template is not None:
        fields = row if config.form == 1 else without_nulls(row)
        return prompt_of(fields, source, config.template)
    if isinstance(row.get(config.prompt_field), list):
        raise RowError(
            source,
            f"field {config.prompt_field!r} is a list, not text: give --chat if it holds messages",
        )
    return text_in(row, config.prompt_field, source, may_be_empty=True)


def conversation_of(row: Row, source: str, config: FormatConfig) -> Conversation:
    """Returns the conversation of a row; a prompt and a response are two messages.

    Raises:
        RowError: a field is missing, or holds neither text nor messages.
    """
    require_read(row, source, config)
    if config.form == 1:
        return _of_the_first_form(row, source, config)
    completion = None
    if config.messages_field is not None:
        messages = messages_of(row, source, config.messages_field)
    elif config.template is None and (
        _holds_messages(row.get(config.prompt_field))
        or _holds_messages(row.get(config.response_field))
    ):
        messages = _asked(row, source, config.prompt_field)
        completion = len(messages)
        messages += _completion(row, source, config.response_field)
    else:
        response = text_in(row, config.response_field, source, may_be_empty=False)
        asked = _prompt(row, source, config)
        messages = [
            *_history(row, source, config),
            {"role": "user", "content": asked},
            {"role": "assistant", "content": response},
        ]
    system = _system(row, source, config, messages)
    return Conversation(
        [*system, *messages],
        tools_of(row, source, config),
        template_arguments(config) | _own_arguments(row, source, config),
        None if completion is None else completion + len(system),
    )


def _of_the_first_form(row: Row, source: str, config: FormatConfig) -> Conversation:
    """Returns a conversation as indexes of the first form read it."""
    tools = row.get("tools")
    if not (isinstance(tools, list) and tools and all(isinstance(tool, dict) for tool in tools)):
        tools = None
    if config.messages_field is not None:
        return Conversation(messages_of(row, source, config.messages_field, form=1), tools)
    prompt, response = texts_of(row, source, config)
    asked = {"role": "user", "content": prompt}
    return Conversation([asked, {"role": "assistant", "content": response}], tools)


def _holds_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _asked(row: Row, source: str, field: str) -> list[Message]:
    """Returns the messages of a prompt; a text is what the user says."""
    if isinstance(row.get(field), str):
        return [{"role": "user", "content": text_in(row, field, source, may_be_empty=False)}]
    return messages_of(row, source, field)


def _completion(row: Row, source: str, field: str) -> list[Message]:
    """Returns the messages of a completion; a text is what the assistant says."""
    if isinstance(row.get(field), str):
        text = text_in(row, field, source, may_be_empty=False)
        return [{"role": "assistant", "content": text}]
    return messages_of(row, source, field)


def _value(row: Row, name: str, config: FormatConfig) -> Any:
    """Returns what is in a field beside the conversation; None: nothing, or it is left out."""
    own = (config.messages_field, config.prompt_field, config.response_field, config.key_field)
    value = row.get(name)
    left_out = name in config.ignored_fields or name in own or is_empty(value)
    return None if left_out else value


def _read_json(value: Any, source: str, field: str) -> Any:
    """Returns a value without nulls; a text is read as the JSON that it is."""
    if not isinstance(value, str):
        return without_nulls(value)
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RowError(source, f"field {field!r} is text, but not JSON") from None


def _system(row: Row, source: str, config: FormatConfig, messages: list[Message]) -> list[Message]:
    """Returns the message of a row's own system prompt, if it has one."""
    texts = [
        text_in(row, name, source, may_be_empty=False)
        for name in SYSTEM
        if _value(row, name, config) is not None
    ]
    if not texts:
        return []
    text = texts[0]
    if texts[-1] != text:
        raise RowError(
            source,
            f"fields {' and '.join(map(repr, SYSTEM))} are two system prompts: leave one out",
        )
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}]
    if messages[0].get("content") != text:
        name = next(name for name in SYSTEM if _value(row, name, config) is not None)
        raise RowError(
            source, f"field {name!r} and the first message are two system prompts: leave one out"
        )
    return []


def _history(row: Row, source: str, config: FormatConfig) -> list[Message]:
    """Returns the earlier turns of a row: pairs of a question and an answer, or messages."""
    if _value(row, "history", config) is None:
        return []
    turns = listed(row, "history", source, "earlier turns")
    if not turns:
        return []
    if all(isinstance(turn, dict) for turn in turns):
        return messages_of(row, source, "history")
    messages = []
    for turn in turns:
        if (
            not isinstance(turn, list)
            or len(turn) != 2
            or not all(isinstance(said, str) for said in turn)
        ):
            raise RowError(source, "field 'history' is not a list of [question, answer]")
        asked, answered = turn
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answered})
    return messages


def tools_of(row: Row, source: str, config: FormatConfig) -> list[Any] | None:
    """Returns the tools that a conversation may use (field "tools"), for the chat template.

    Raises:
        RowError: they are no list of objects, nor JSON text of one.
    """
    value = _value(row, "tools", config)
    if value is None:
        return None
    tools = _read_json(value, source, "tools")
    if isinstance(tools, list):
        tools = [_read_json(tool, source, "tools") for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError(source, "field 'tools' is not a list of tools, each a JSON object")
    return tools or None


def template_arguments(config: FormatConfig) -> dict[str, Any]:
    """Returns the arguments of the chat template that a configuration gives, by name.

    Raises:
        InputError: one is not the caller's to give.
    """
    found: dict[str, Any] = {}
    for argument in config.template_args:
        name, _, text = argument.partition("=")
        if name in RESERVED:
            raise InputError(
                f"the argument {name!r} of the chat template is set here: leave it out"
            )
        try:
            found[name] = WORDS[text.casefold()] if text.casefold() in WORDS else json.loads(text)
        except (ValueError, RecursionError):
            found[name] = text
    return found


def _own_arguments(row: Row, source: str, config: FormatConfig) -> dict[str, Any]:
    """Returns the arguments of the chat template that a row gives (TRL's form)."""
    value = _value(row, "chat_template_kwargs", config)
    if value is None:
        return {}
    arguments = _read_json(value, source, "chat_template_kwargs")
    if not isinstance(arguments, dict):
        raise RowError(source, "field 'chat_template_kwargs' is not an object of arguments")
    if taken := sorted(RESERVED & arguments.keys()):
        raise RowError(source, f"field 'chat_template_kwargs' may not set {taken[0]!r}")
    return arguments

"""What a row says, before any chat template: its prompt and response, or its messages."""

from __future__ import annotations

from typing import Any

from forvalue_index.config import FormatConfig
from forvalue_index.data.fields import check_names, label_of, text_in
from forvalue_index.data.messages import Message, answers, messages_of, plain_text, weighted
from forvalue_index.data.template import prompt_of
from forvalue_index.errors import RowError
from forvalue_index.records import Row


def texts_of(row: Row, source: str, config: FormatConfig) -> tuple[str, str]:
    """Returns the prompt and the response of a row, before any chat template.

    The prompt is "" for plain text. Of a conversation the response is what the assistant says
    last, and the prompt all that comes before it, a line each.

    Raises:
        InputError: the template for prompts cannot be read.
        RowError: a field is missing, holds no text or has no text as name, or the scored text is
            empty.
    """
    check_names(row, source)
    if config.label_field is not None:
        label_of(row, source, config.label_field)
    if config.text_field is not None:
        return "", text_in(row, config.text_field, source, may_be_empty=False)
    if config.messages_field is not None:
        messages = messages_of(row, source, config.messages_field)
        last = [len(messages) - 1]
        if config.score != "all":
            last = weighted(messages, answers(messages), source)
        if not last:
            raise RowError(source, "no message from the assistant, so there is nothing to score")
        before = "\n".join(plain_text(message) for message in messages[: last[-1]])
        return before, plain_text(messages[last[-1]])
    prompt = _prompt(row, source, config)
    return prompt, text_in(row, config.response_field, source, may_be_empty=False)


def _prompt(row: Row, source: str, config: FormatConfig) -> str:
    if config.template is not None:
        return prompt_of(row, source, config.template)
    return text_in(row, config.prompt_field, source, may_be_empty=True)


def conversation_of(row: Row, source: str, config: FormatConfig) -> list[Message]:
    """Returns the messages of a row; a prompt and a response are one of the user, one of the model.

    Raises:
        RowError: a field is missing, or holds neither text nor messages.
    """
    if config.messages_field is not None:
        return messages_of(row, source, config.messages_field)
    prompt, response = texts_of(row, source, config)
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def tools_of(row: Row) -> list[Any] | None:
    """Returns the tools that a conversation may use (field "tools"), for the chat template."""
    tools = row.get("tools")
    if isinstance(tools, list) and tools and all(isinstance(tool, dict) for tool in tools):
        return tools
    return None

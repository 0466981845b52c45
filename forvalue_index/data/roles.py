"""Who speaks in a conversation, by the names that data sets have for it."""

from __future__ import annotations

from collections.abc import Collection

from forvalue_index.config import FormatConfig
from forvalue_index.records import Row

CALL = "function_call"
"""The role of a turn in which the model calls a function, written as JSON in its content."""

ROLES = {
    "human": "user",
    "prompter": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    CALL: CALL,
}
"""The roles of ShareGPT, LLaMA-Factory, OpenAssistant and OpenAI; others are called as they are."""

KNOWN = {*ROLES.values(), "developer", "ipython"}
"""Roles whose meaning is known: OpenAI's other name of the system, and Llama's of a tool."""


def roles_of(row: Row, config: FormatConfig) -> list[str]:
    """Returns the roles in a row's messages whose meaning is not known."""
    if not config.is_chat or config.score == "all":
        return []
    names = config.messages_field, config.prompt_field, config.response_field
    values = [row[name] for name in names if name in row]
    items = [item for value in values if isinstance(value, list) for item in value]
    roles = [item.get("role") or item.get("from") for item in items if isinstance(item, dict)]
    own = [role for role in roles if isinstance(role, str)]
    return [role for role in own if ROLES.get(role.casefold(), role) not in KNOWN]


def roles_note(roles: Collection[str]) -> str | None:
    """Returns what it means that messages have roles whose meaning is not known."""
    if not roles:
        return None
    return (
        f"Messages of {', '.join(map(repr, roles))} go to the chat template as they are and are "
        "not scored: if the model speaks them, call their role 'assistant'"
    )

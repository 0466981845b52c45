"""Which fields of a row are read, and as what; a field that matters and is not read is an error."""

from __future__ import annotations

import re

from forvalue_index.config import FormatConfig
from forvalue_index.data.fields import is_empty
from forvalue_index.data.image_forms import looks_like_image
from forvalue_index.data.token_rows import PACKING, PER_TOKEN
from forvalue_index.errors import RowError
from forvalue_index.records import Row

_CHAT = "give --chat, so that prompt and response go through the chat template with it"
_PREFERENCE = "name the text that is preferred as the response, and the other with --rejected-field"
_TOKENS = "give --tokens-field input_ids, so that the tokens are taken as they are"
_NONE = "nothing here reads it"

SYSTEM = ("system", "system_prompt")
"""Fields that hold the system prompt of a row."""

MEANT = {
    **dict.fromkeys(SYSTEM, _CHAT),
    "history": _CHAT,
    "tools": _CHAT,
    "chat_template_kwargs": _CHAT,
    **dict.fromkeys(("image", "images"), "name it with --image-field"),
    "label": "name it with --label-field (a class) or --desirable-field (true or false)",
    "chosen": _PREFERENCE,
    "rejected": _PREFERENCE,
    "weight": _NONE,
    "train": _NONE,
    "input_ids": _TOKENS,
    "labels": _TOKENS,
    "completion_mask": _TOKENS,
    "assistant_masks": _TOKENS,
}
"""Fields that trainers give a meaning, and what to do where they are not read."""

INSTRUCTION = "instruction"
BESIDE_INSTRUCTION = dict.fromkeys(
    ("input", "context"),
    "give --template FILE, with the places of both fields in the prompt",
)
"""Fields that belong to an instruction, which a template for prompts brings together."""

WITH_MESSAGES = {
    **dict.fromkeys(SYSTEM, "system message"),
    "tools": "tools",
    "chat_template_kwargs": "arguments of the chat template",
}
"""Fields that are read where rows go through a chat template."""


def uses(config: FormatConfig) -> dict[str, str]:
    """Returns the fields that a configuration reads, and what each is read as."""
    found: dict[str, str] = {}
    if config.is_chat:
        found |= WITH_MESSAGES
    if config.messages_field is not None:
        found[config.messages_field] = "messages"
    elif config.text_field is not None:
        found[config.text_field] = "plain text"
    else:
        if config.is_chat:
            found["history"] = "earlier turns"
        if config.template is None:
            found[config.prompt_field] = "prompt"
        found[config.response_field] = "response"
    if config.tokens_field is not None:
        beside = dict.fromkeys(PER_TOKEN, "which tokens count")
        found |= {config.tokens_field: "tokens"} | beside
        found |= dict.fromkeys(PACKING, "where samples of a packed row begin")
    for field, use in (
        (config.rejected_field, "rejected text"),
        (config.desirable_field, "whether it is desirable"),
        (config.label_field, "class"),
        (config.image_field, "images"),
        (config.key_field, "key"),
    ):
        if field is not None:
            found[field] = use
    return {name: use for name, use in found.items() if name not in config.ignored_fields}


def read_as(row: Row, config: FormatConfig) -> dict[str, str]:
    """Returns the fields of a row that are read, and what each is read as."""
    of_all = uses(config)
    words = set(re.findall(r"\w+", config.template or ""))
    return {
        name: of_all.get(name, "part of the prompt")
        for name, value in row.items()
        if (name in of_all and not is_empty(value)) or name in words
    }


def unread(row: Row, config: FormatConfig) -> list[str]:
    """Returns the fields of a row that hold something and are not read."""
    read = read_as(row, config)
    return [name for name, value in row.items() if name not in read and not is_empty(value)]


def require_read(row: Row, source: str, config: FormatConfig) -> None:
    """Checks that each field that trainers give a meaning is read, or left out on purpose.

    Raises:
        RowError: one is not.
    """
    meant = MEANT
    if config.template is None and config.prompt_field == INSTRUCTION:
        meant = MEANT | BESIDE_INSTRUCTION
    if config.form < 2 or meant.keys().isdisjoint(row):
        return
    for name in unread(row, config):
        if name == "image" and not looks_like_image(row[name]):  # a name that much else has
            continue
        if name in meant and name not in config.ignored_fields:
            instead = meant[name]
            if instead == _CHAT and config.is_chat:
                instead = _NONE
            raise RowError(
                source,
                f"field {name!r} has a meaning for trainers, but would be left out: "
                f"{instead}; --ignore-field {name} leaves it out on purpose",
            )

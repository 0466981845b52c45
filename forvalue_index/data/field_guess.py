"""Which fields hold what, guessed from the names that fine-tuning sets commonly have."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from forvalue_index.config import FormatConfig
from forvalue_index.data.fields import check_names
from forvalue_index.data.image_forms import looks_like_image
from forvalue_index.data.roles import ROLES
from forvalue_index.data.rows import Rows
from forvalue_index.data.token_rows import MASKS
from forvalue_index.errors import InputError, RowError
from forvalue_index.field_types import require_class
from forvalue_index.records import Row

log = logging.getLogger(__name__)

MESSAGES = ("messages", "conversations", "conversation")
TEXT = ("text", "content")
TOKENS = "input_ids"
IMAGES = ("image", "images")
PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("input", "output"),
)
"""Names of a prompt's field and a response's, the surest first."""

CONTEXT = ("input", "context")
"""Fields that belong to an instruction, and may be empty."""


def guess(row: Row) -> tuple[dict[str, Any], str]:
    """Returns settings of a `FormatConfig` that suit a row's fields, and the guess in words.

    Raises:
        InputError: the fields have no names that tell.
    """
    if TOKENS in row and _is_list(row[TOKENS]):
        return _tokens(row)
    return _texts(row)


def _tokens(row: Row) -> tuple[dict[str, Any], str]:
    """Returns the guess of a row that holds its tokens, maybe beside the text that they are of."""
    masks = [name for name in ("labels", *MASKS) if row.get(name) is not None]
    words = f"tokens from {TOKENS!r}, scored by {' and '.join(map(repr, masks))}"
    if not masks:
        words = f"tokens from {TOKENS!r}, all of them scored"
    settings = {"tokens_field": TOKENS}
    try:
        return _texts(row)[0] | settings, words
    except InputError:
        return settings, words


def _texts(row: Row) -> tuple[dict[str, Any], str]:
    """Returns the guess of a row's texts."""
    names = {name.casefold(): name for name in reversed(row)}  # of two, the first
    if "chosen" in names and "rejected" in names:
        return _preference(row, names)
    for messages in MESSAGES:
        name = names.get(messages)
        if name is not None and _is_list(row[name]):
            return {"messages_field": name}, f"messages from {name!r}"
    for prompt, response in PAIRS:
        if prompt in names and response in names:
            settings, words = _pair(row, names, prompt, response)
            if isinstance(row.get("label"), bool):  # as KTO has it
                settings["desirable_field"] = "label"
                words += "; against it where 'label' is false"
            return settings, words
    for text in TEXT:
        if text in names:
            return {"text_field": names[text]}, f"plain text from {names[text]!r}"
    raise InputError(
        f"the field names do not tell which to read ({', '.join(row) or 'none'}): "
        "give --prompt-field and --response-field, or --messages-field, or --text-field"
    )


def _preference(row: Row, names: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Returns the guess of a row that prefers one text to another."""
    chosen, rejected = names["chosen"], names["rejected"]
    prompts = [names[prompt] for prompt, _ in PAIRS if prompt in names]
    settings: dict[str, Any] = {"rejected_field": rejected}
    words = f"{chosen!r} preferred to {rejected!r}"
    # A conversation has the prompt in it, unless that is one too, or it begins with the answer.
    apart = bool(prompts) and (_is_list(row[prompts[0]]) or _begins_with_answer(row[chosen]))
    if apart:  # TRL's conversational form
        settings["chat"] = True
    if prompts and (apart or not _is_list(row[chosen])):
        settings |= {"prompt_field": prompts[0], "response_field": chosen}
        return settings, f"prompt from {prompts[0]!r}, {words}"
    if _is_list(row[chosen]):
        return settings | {"messages_field": chosen}, f"conversations, {words}"
    return settings | {"text_field": chosen}, f"plain texts, {words}"


def _begins_with_answer(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    role = first.get("role", first.get("from")) if isinstance(first, dict) else None
    return isinstance(role, str) and ROLES.get(role.casefold()) == "assistant"


def _is_list(value: Any) -> bool:
    # As text, where the file knows nothing else (CSV).
    return isinstance(value, list) or (isinstance(value, str) and value.startswith("["))


def _pair(
    row: Row, names: dict[str, str], prompt: str, response: str
) -> tuple[dict[str, Any], str]:
    first, last = names[prompt], names[response]
    settings: dict[str, Any] = {"prompt_field": first, "response_field": last}
    words = f"prompt from {first!r}, response from {last!r}"
    if isinstance(row[first], list) or _begins_with_answer(row[last]):  # TRL's, conversational
        return settings | {"chat": True}, f"messages of the {words}"
    context = [names[name] for name in CONTEXT if name in names]
    if prompt != "instruction" or not context:
        return settings, words
    inner = context[0]
    template = f'{{{{ {first} }}}}{{{{ "\\n\\n" ~ {inner} if {inner} else "" }}}}'
    return (
        settings | {"template": template},
        f"prompt from {first!r} and, after an empty line, {inner!r}; response from {last!r}",
    )


def guess_images(row: Row) -> str | None:
    """Returns the field of a row that holds an image or several, if one is called so and does."""
    for name, value in row.items():
        if name.casefold() in IMAGES and looks_like_image(value):
            return name
    return None


def guess_format(
    rows: Rows, base: FormatConfig | None = None, *, images: bool = True
) -> tuple[FormatConfig, str]:
    """Returns `base` with the fields that the first row's names suggest, and the guess in words.

    `images`: guess the field of images too.

    Raises:
        InputError: there is no row, none can be read, or the names of the first do not tell.
    """
    row = _first(rows)
    settings, words = guess(row)
    field = guess_images(row) if images else None
    if field is not None:
        settings |= {"image_field": field}
        words += f", images from {field!r}"
    return replace(base or FormatConfig(), **settings), words


def format_of_rows(rows: Rows, format: FormatConfig | None) -> FormatConfig:
    """Returns a format for a new index of rows; fields are guessed where none are named.

    None are named where a format has those of the default, a prompt and a response, and the first
    row lacks one of them.

    Raises:
        InputError: there is no format, and the names of the first row's fields do not tell.
    """
    require_class(format, FormatConfig)
    if format is None:
        return guess_format(rows)[0]
    default = FormatConfig()
    others = format.text_field, format.messages_field, format.template, format.tokens_field
    named = any(name is not None for name in others)
    fields = format.prompt_field, format.response_field
    if named or fields != (default.prompt_field, default.response_field):
        return format
    try:
        lacking = _lacks_fields(_first(rows), format)
        images = format.image_field is None
        return guess_format(rows, format, images=images)[0] if lacking else format
    except InputError:  # which is said of each row, under its place
        return format


def format_of_queries(rows: Rows, format: FormatConfig) -> FormatConfig:
    """Returns the format of queries: an index's, or where they lack its fields, what is guessed.

    Queries of another kind go through the chat template where the index's rows do.
    """
    try:
        row = _first(rows)
        if not _lacks_fields(row, format):
            return format
        settings, words = guess(row)
    except InputError:  # which is said of each row, under its place
        return format
    log.info("Reading queries: %s, as the field names suggest", words)
    kinds = ("messages_field", "text_field", "prompt_field")
    kind = next((name for name in kinds if name in settings), "tokens_field")
    return replace(format.of_kind(kind), **settings)


def _lacks_fields(row: Row, format: FormatConfig) -> bool:
    """Returns whether a row lacks a field that a format reads its text from."""
    if format.tokens_field is not None and format.tokens_field in row:
        return False
    if format.messages_field is not None:
        return format.messages_field not in row
    if format.text_field is not None:
        return format.text_field not in row
    prompted = format.template is not None or format.prompt_field in row
    return not prompted or format.response_field not in row


def _first(rows: Rows) -> Row:
    """Returns the first row that can be read."""
    first, count = None, 0
    for place, row in rows.outcomes():
        try:
            if isinstance(row, RowError):
                raise row
            check_names(row, place)
        except RowError as error:
            first, count = first or error, count + 1
            continue
        return row
    if first is None:
        raise InputError("there are no rows in the data: give files that have some")
    raise InputError(f"none of the {count:,} rows can be read; the first: {first}")

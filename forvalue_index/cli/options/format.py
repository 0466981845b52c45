"""Options of formatting: which fields of a row are read, and how they become tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forvalue_index.cli import render
from forvalue_index.cli.options.data import content
from forvalue_index.cli.options.group import F, Option, grouped
from forvalue_index.config import SCORES, TRUNCATIONS, FormatConfig

if TYPE_CHECKING:
    from forvalue_index.data.rows import Rows

_FIELDS: list[Option] = [
    click.option("--prompt-field", metavar="NAME", help="Field of the prompt.  [default: prompt]"),
    click.option(
        "--response-field",
        metavar="NAME",
        help="Field of the response, whose tokens are scored.  [default: response]",
    ),
    click.option(
        "--text-field",
        metavar="NAME",
        help="Field of plain text instead: every token after the first is scored.",
    ),
    click.option(
        "--messages-field",
        metavar="NAME",
        help="Field of a conversation instead: what the assistant says is scored.",
    ),
    click.option(
        "--rejected-field",
        metavar="NAME",
        help="Field of what a row prefers its response (conversation, text) to, whose influence "
        "is subtracted.",
    ),
    click.option(
        "--desirable-field",
        metavar="NAME",
        help="Field that is false where a row is not to be learned from: its influence has the "
        "opposite sign.",
    ),
    click.option(
        "--tokens-field",
        metavar="NAME",
        help="Field of token ids instead; labels or masks beside it say which are scored.",
    ),
    click.option(
        "--image-field",
        metavar="NAME",
        help='Field of one or more images.  [default: image or images, if it holds any; "": none]',
    ),
    click.option(
        "--label-field",
        metavar="NAME",
        help="Field of the class, for a sequence classifier: the class is scored, not the tokens.",
    ),
    click.option(
        "--ignore-field",
        "ignored_fields",
        multiple=True,
        metavar="NAME",
        help="Leave out a field that has a meaning for trainers, such as system (repeatable).",
    ),
]

_FORMAT: list[Option] = [
    click.option(
        "--key-field", metavar="NAME", help="Field of your own id.  [default: content hash]"
    ),
    click.option(
        "--template",
        type=click.Path(path_type=Path),
        callback=content,
        metavar="FILE",
        help="Jinja template that makes the prompt from a row's fields: {{ instruction }}.",
    ),
    click.option(
        "--chat",
        is_flag=True,
        default=None,
        help="Put prompt and response through the chat template, as two messages.",
    ),
    click.option(
        "--chat-template",
        type=click.Path(path_type=Path),
        callback=content,
        metavar="FILE",
        help="Chat template to use instead of the tokenizer's own.",
    ),
    click.option(
        "--score",
        type=click.Choice(SCORES),
        help="Which tokens are scored: the response's, or all.  [default: response]",
    ),
    click.option(
        "--last-turn", is_flag=True, default=None, help="Score the assistant's last turn only."
    ),
    click.option(
        "--add-eos/--no-eos",
        "eos",
        default=None,
        help="Score the end of a response, here and in queries.  [default: as in the chat "
        "template; without one, the end of a response is added, and that of plain text is not]",
    ),
    click.option(
        "--bos/--no-bos",
        default=None,
        help="Without a chat template: begin as the tokenizer begins a text.  [default: --bos]",
    ),
    click.option(
        "--template-arg",
        "template_args",
        multiple=True,
        metavar="NAME=VALUE",
        help="Argument of the chat template, such as enable_thinking=false (repeatable).",
    ),
    click.option(
        "--truncate",
        type=click.Choice(TRUNCATIONS),
        help="What a long row loses first: what is not scored (the start of the prompt, then "
        "the end of the response), the start, or the end.  [default: unscored]",
    ),
    click.option(
        "--max-length",
        type=click.IntRange(min=2),
        metavar="N",
        help="Longest row in tokens; longer rows are cut and counted.  [default: the model's, at "
        "most 2048]",
    ),
]

_KINDS = (("text_field",), ("messages_field",), ("prompt_field", "response_field"))
"""The fields of the three kinds of rows: plain text, a conversation, a prompt and a response."""


def field_options(command: F) -> F:
    """Adds the options that name the fields of a row; the command gets them as `fields`."""
    return grouped(command, _FIELDS, "fields", _named)


def format_options(command: F) -> F:
    """Adds all options of how a row becomes tokens; the command gets them as `fields`."""
    return grouped(command, _FIELDS + _FORMAT, "fields", _named)


def _named(**values: Any) -> dict[str, Any]:
    """Returns the options that were given.

    Raises:
        click.UsageError: they name fields of two kinds of rows.
    """
    fields = {name: value for name, value in values.items() if value is not None and value != ()}
    kinds = _kinds(fields)
    if len(kinds) > 1:
        options = " or ".join(f"--{kind[0].replace('_', '-')}" for kind in kinds)
        raise click.UsageError(f"a row is of one kind: give {options}, not both")
    return fields


def _kinds(fields: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns the kinds of rows that the given options name fields of."""
    return [kind for kind in _KINDS if any(name in fields for name in kind)]


def format_of(base: FormatConfig, fields: dict[str, Any]) -> FormatConfig:
    """Returns `base` changed by the options that were given, for rows of their kind."""
    for kind in _kinds(fields):
        base = base.of_kind(kind[0])
    given = fields | {"image_field": fields.get("image_field", base.image_field) or None}
    if fields.get("image_field") == "":  # left out on purpose
        ignored = fields.get("ignored_fields", base.ignored_fields)
        given["ignored_fields"] = (*ignored, "image", "images")
    return replace(base, **given)


def format_for(rows: Rows, fields: dict[str, Any]) -> FormatConfig:
    """Returns the format for a new index of rows; if no field is named, the fields are guessed.

    Raises:
        InputError: the names of the fields do not tell.
    """
    from forvalue_index.data.field_guess import guess_format

    format = format_of(FormatConfig(), fields)
    if _kinds(fields) or "tokens_field" in fields:
        return format if "image_field" in fields else _with_images(format, rows)
    guessed, words = guess_format(rows, format, images="image_field" not in fields)
    if guessed != format:  # not the default names
        render.notes.print(
            f"Reading {words}, as the field names suggest", markup=False, soft_wrap=True
        )
    return replace(guessed, template=format.template or guessed.template)


def _with_images(format: FormatConfig, rows: Rows) -> FormatConfig:
    """Returns a format with the field of the first row's images, if a name tells which it is."""
    from forvalue_index.data.field_guess import guess_images

    row = next((row for _, row in rows.outcomes() if isinstance(row, dict)), {})
    field = guess_images(row)
    if field is not None:
        render.notes.print(f"Reading images from {field!r}, as its name suggests", markup=False)
    return replace(format, image_field=field)

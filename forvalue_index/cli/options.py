"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from forvalue_index.config import DTYPES, FormatConfig

F = TypeVar("F", bound=Callable[..., Any])

index_option = click.option(
    "--index",
    "directory",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory of the index.",
)
device_option = click.option(
    "--device", metavar="NAME", help="cpu, cuda or cuda:N.  [default: cuda if there is one]"
)
model_option = click.option(
    "--model", metavar="PATH", help="Where the model is now, if it has moved since the build."
)
trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run code that comes with the model."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
where_option = click.option(
    "--where",
    multiple=True,
    metavar="CONDITION",
    help='Only samples whose field meets it: "source=math", "year>2020", "lang in de,fr".',
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    show_default=True,
    help="Type of the weights; auto: as the checkpoint has them.",
)

_FIELDS: list[Callable[[Any], Any]] = [
    click.option("--prompt-field", metavar="NAME", help="Field of the prompt.  [default: prompt]"),
    click.option(
        "--response-field",
        metavar="NAME",
        help="Field of the response, whose tokens are scored.  [default: response]",
    ),
    click.option(
        "--text-field",
        metavar="NAME",
        help="Field of plain text instead of the two: every token after the first is scored.",
    ),
]


def field_options(command: F) -> F:
    """Adds the options that name the fields of a row."""
    for option in reversed(_FIELDS):
        command = option(command)
    return command


def format_of(
    base: FormatConfig,
    prompt_field: str | None,
    response_field: str | None,
    text_field: str | None,
) -> FormatConfig:
    """Returns `base` with the fields that were given.

    Raises:
        click.UsageError: plain text and prompt or response at once.
    """
    from dataclasses import replace

    if text_field is not None:
        if prompt_field is not None or response_field is not None:
            raise click.UsageError("--text-field cannot go with --prompt-field or --response-field")
        return replace(base, text_field=text_field)
    if prompt_field is None and response_field is None:
        return base
    return replace(
        base,
        text_field=None,
        prompt_field=prompt_field or base.prompt_field,
        response_field=response_field or base.response_field,
    )

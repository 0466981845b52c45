"""Options that several commands share."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import click

from forvalue_index.cli import render
from forvalue_index.cli.bundles import F, Option, bundled, with_options
from forvalue_index.config import (
    DTYPES,
    ON_ERROR,
    SCORES,
    TASKS,
    TRUNCATIONS,
    FormatConfig,
    ModelConfig,
)
from forvalue_index.metric import METRICS
from forvalue_index.system.files import read_text

if TYPE_CHECKING:
    from forvalue_index.data.rows import Rows

index_option = click.option(
    "--index",
    "directory",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory of the index.",
)


def _one_way(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuses --device beside --devices."""
    other = "devices" if parameter.name == "device" else "device"
    if value is not None and context.params.get(other) is not None:
        raise click.UsageError("give --device or --devices, not both")
    return value


device_option = click.option(
    "--device",
    metavar="NAME",
    callback=_one_way,
    help="cpu, cuda, cuda:N; or auto: all devices, for a model too big for one.  "
    "[default: cuda if there is one]",
)
devices_option = click.option(
    "--devices",
    metavar="LIST",
    callback=_one_way,
    help="Encode on several devices, one process each: 0,1 (GPUs), all (all GPUs), or names.",
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
    help='Only samples that meet this condition: "source=math", "year>2020", "lang in de,fr".',
)
metric_option = click.option(
    "--metric",
    type=click.Choice(list(METRICS)),
    default="dot",
    show_default=True,
    help="dot: the influence; cosine: without the size of the two gradients, best for finding "
    "sources; per-token: per scored token of both texts; decorrelated: what many samples share "
    "counts less, best for predicting what training on a choice of rows does.",
)
targets_option = click.option(
    "--data",
    required=True,
    metavar="TARGETS",
    help="What the model should do well: a file of rows (- is stdin), or anything build reads.",
)
combine_option = click.option(
    "--combine",
    type=click.Choice(["mean", "max"]),
    default="mean",
    show_default=True,
    help="How the scores for all targets become one value.",
)
seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the random draws."
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    show_default=True,
    help="Data type of the weights; auto: as in the checkpoint.",
)

on_error_option = click.option(
    "--on-error",
    type=click.Choice(ON_ERROR),
    default="stop",
    show_default=True,
    help="What to do at an unusable row; skipped rows are listed in DIR/rejects.jsonl.",
)

remote_option = click.option(
    "--allow-remote", is_flag=True, help="Fetch images that are URLs; they are kept in the index."
)


class Opening(TypedDict):
    """How the model of an index is opened: keywords of `InfluenceIndex.open`."""

    model: str | None
    device: str | None
    trust_remote_code: bool


def opening_options(command: F) -> F:
    """Adds the options of an index's model; the command gets them as `opening`."""
    return bundled(command, [model_option, device_option, trust_option], "opening", Opening)


_DATA: list[Option] = [
    click.option("--split", metavar="NAME", help="Split of the data set, such as train."),
    click.option("--subset", metavar="NAME", help="Configuration of a data set on the hub."),
]


def data_options(command: F) -> F:
    """Adds the options that say which part of a data set is read."""
    return with_options(command, _DATA)


def content(_: click.Context, param: click.Parameter, path: Path | None) -> str | None:
    """Returns the text of the file that an option names; - is standard input."""
    if path == Path("-"):
        return sys.stdin.read()
    try:
        return None if path is None else read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise click.BadParameter(f"cannot read {path}: {reason}", param=param) from None


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
        "template; without one, no end is added]",
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
"""The fields of a row that is plain text, a conversation, or a prompt and a response."""

_READING: list[Option] = [
    click.option(
        "--model", "name", required=True, metavar="PATH_OR_ID", help="The fine-tuned model."
    ),
    click.option("--revision", metavar="REV", help="Revision of a model on the hub."),
    click.option(
        "--task",
        type=click.Choice(TASKS),
        default="auto",
        show_default=True,
        help="How to read the model; auto: as its checkpoint says.",
    ),
    click.option(
        "--adapter",
        "adapters",
        multiple=True,
        metavar="PATH",
        help="PEFT adapter of the model. Repeat it for several checkpoints of one training run: "
        "their influences are added up.",
    ),
    click.option(
        "--adapter-weight",
        "adapter_weights",
        multiple=True,
        type=float,
        metavar="W",
        help="Weight of each adapter in the sum, in the same order.  [default: 1 each]",
    ),
    dtype_option,
    click.option(
        "--gguf-file", metavar="NAME", help="GGUF file in the model's folder, if it has several."
    ),
    trust_option,
]


def reading_options(command: F) -> F:
    """Adds the options of a model and how it is read; the command gets a ModelConfig as `model`."""
    return bundled(command, _READING, "model", ModelConfig)


def field_options(command: F) -> F:
    """Adds the options that name the fields of a row; the command gets them as `fields`."""
    return bundled(command, _FIELDS, "fields", _named)


def format_options(command: F) -> F:
    """Adds all options of how a row becomes tokens; the command gets them as `fields`."""
    return bundled(command, _FIELDS + _FORMAT, "fields", _named)


def _named(**values: Any) -> dict[str, Any]:
    """Returns the values that were given.

    Raises:
        click.UsageError: they are fields of two kinds of rows.
    """
    fields = {name: value for name, value in values.items() if value is not None}
    kinds = _kinds(fields)
    if len(kinds) > 1:
        options = " or ".join(f"--{kind[0].replace('_', '-')}" for kind in kinds)
        raise click.UsageError(f"a row is of one kind: give {options}, not both")
    return fields


def _kinds(fields: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns the kinds of rows whose fields are named."""
    return [kind for kind in _KINDS if any(name in fields for name in kind)]


def format_of(base: FormatConfig, fields: dict[str, Any]) -> FormatConfig:
    """Returns `base` with what was given; rows of another kind are formatted as they can be."""
    for kind in _kinds(fields):
        base = base.of_kind(kind[0])
    given = fields | {"image_field": fields.get("image_field", base.image_field) or None}
    return replace(base, **given)


def format_for(rows: Rows, fields: dict[str, Any]) -> FormatConfig:
    """Returns the format for a new index of rows; fields that are not named are guessed.

    Raises:
        InputError: their names do not tell.
    """
    from forvalue_index.data.field_guess import guess_format

    format = format_of(FormatConfig(), fields)
    if _kinds(fields) or "tokens_field" in fields:
        return format if "image_field" in fields else _with_images(format, rows)
    guessed, words = guess_format(rows, format, images="image_field" not in fields)
    if guessed != format:  # not the names that are there by default
        render.notes.print(f"Reading {words}, as the field names suggest", markup=False)
    return replace(guessed, template=format.template or guessed.template)


def _with_images(format: FormatConfig, rows: Rows) -> FormatConfig:
    """Returns a format with the field of the first row's images, if its name tells."""
    from forvalue_index.data.field_guess import guess_images

    row = next((row for _, row in rows.outcomes() if isinstance(row, dict)), {})
    field = guess_images(row)
    if field is not None:
        render.notes.print(f"Reading images from {field!r}, as its name suggests", markup=False)
    return replace(format, image_field=field)

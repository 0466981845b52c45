"""Options of a model: which one is loaded and how, where an index's model is, which devices run."""

from __future__ import annotations

from typing import TypedDict

import click

from forvalue_index.cli.options.group import F, Option, grouped
from forvalue_index.cli.options.number import FiniteRange
from forvalue_index.config import DTYPES, TASKS, ModelConfig


def _one_of_two(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> str | None:
    """Refuses --device together with --devices."""
    other = "devices" if parameter.name == "device" else "device"
    if value is not None and context.params.get(other) is not None:
        raise click.UsageError("give --device or --devices, not both")
    return value


device_option = click.option(
    "--device",
    metavar="NAME",
    callback=_one_of_two,
    help="cpu, cuda, cuda:N; or auto: all devices, for a model too big for one.  "
    "[default: cuda if there is one]",
)
devices_option = click.option(
    "--devices",
    metavar="LIST",
    callback=_one_of_two,
    help="Encode on several devices, one process each: 0,1 (GPUs), all (all GPUs), or names.",
)
ray_option = click.option(
    "--ray",
    metavar="ADDRESS",
    help="Work on the shards on a Ray cluster: local (started here), auto, or HOST:PORT.",
)
gpus_option = click.option(
    "--gpus-per-worker",
    "gpus",
    type=FiniteRange(0),
    default=0.0,
    show_default=True,
    metavar="N",
    help="GPUs of each of Ray's workers, such as 1 or 0.5.",
)
_trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run code that comes with the model."
)


def _named(*, required: bool) -> Option:
    return click.option(
        "--model", "name", required=required, metavar="PATH_OR_ID", help="The fine-tuned model."
    )


_LOADING: list[Option] = [
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
        type=FiniteRange(),
        metavar="W",
        help="Weight of each adapter in the sum, in the same order.  [default: 1 each]",
    ),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="auto",
        show_default=True,
        help="Data type of the weights; auto: as in the checkpoint.",
    ),
    click.option(
        "--gguf-file", metavar="NAME", help="GGUF file in the model's folder, if it has several."
    ),
    _trust_option,
]


def model_options(command: F) -> F:
    """Adds the options of a model that is loaded; the command gets a ModelConfig as `model`."""
    return grouped(command, [_named(required=True), *_LOADING], "model", ModelConfig)


def optional_model_options(command: F) -> F:
    """As `model_options`, but without --model the name is empty."""
    return grouped(command, [_named(required=False), *_LOADING], "model", _possible)


def _possible(name: str | None, **settings: object) -> ModelConfig:
    return ModelConfig(name or "", **settings)  # type: ignore[arg-type]


class OpenOptions(TypedDict):
    """How the model of an index is opened: keywords of `InfluenceIndex.open`."""

    model: str | None
    device: str | None
    trust_remote_code: bool
    partial: bool


NOT_OPENED: OpenOptions = {
    "model": None,
    "device": None,
    "trust_remote_code": False,
    "partial": False,
}
"""Of a command that needs no model."""

_OPENING: list[Option] = [
    click.option(
        "--model", metavar="PATH", help="Where the model is now, if it has moved since the build."
    ),
    device_option,
    _trust_option,
    click.option(
        "--partial",
        is_flag=True,
        help="Answer without the shards that are missing, and say which they are.",
    ),
]


def opening_options(command: F) -> F:
    """Adds the options of an index's model; the command gets `OpenOptions` as `opening`."""
    return grouped(command, _OPENING, "opening", OpenOptions)

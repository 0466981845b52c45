"""Options of how a sample becomes a vector, and in how many indexes the rows are."""

from __future__ import annotations

import click

from forvalue_index.cli.options.group import F, Option, grouped
from forvalue_index.config import BITS, MOST, RECIPES, SKETCHES, VectorConfig
from forvalue_index.store.manifest import MOST as MOST_SHARDS

shards_option = click.option(
    "--shards",
    type=click.IntRange(1, MOST_SHARDS),
    metavar="N",
    help="Keep the rows in N indexes, each row in that of its key: see the documentation.",
)

_VECTOR: list[Option] = [
    click.option(
        "--recipe",
        type=click.Choice(RECIPES),
        default=VectorConfig().recipe,
        show_default=True,
        help="How influence is defined; see the documentation.",
    ),
    click.option(
        "--dim",
        type=click.IntRange(2, MOST),
        default=VectorConfig().dim,
        show_default=True,
        help="Numbers in a stored vector.",
    ),
    click.option(
        "--bits",
        type=click.Choice([str(bits) for bits in BITS]),
        default=str(VectorConfig().bits),
        show_default=True,
        help="Bits of each of these numbers; a vector is dim x bits / 8 bytes and a little.",
    ),
    click.option(
        "--sketch",
        type=click.Choice(SKETCHES),
        default=VectorConfig().sketch,
        show_default=True,
        help="How a gradient is compressed; see the documentation.",
    ),
    click.option(
        "--sketch-dim",
        type=click.IntRange(2, MOST),
        default=VectorConfig().sketch_dim,
        show_default=True,
        help="Numbers in the sketch that a vector is projected from; not stored.",
    ),
    click.option(
        "--fit-samples",
        type=click.IntRange(1, MOST),
        default=VectorConfig().fit_samples,
        show_default=True,
        help="Rows that recipe and projection are learned from.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        default=0,
        show_default=True,
        help="Seed of the sketch.",
    ),
]


def vector_options(command: F) -> F:
    """Adds the options of vectors; the command gets a VectorConfig as `vector`."""
    return grouped(command, _VECTOR, "vector", _config)


def _config(bits: str, **settings: int | str) -> VectorConfig:
    return VectorConfig(bits=int(bits), **settings)  # type: ignore[arg-type]

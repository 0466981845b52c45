"""`forvalue info`: what an index holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from forvalue_index.cli import render
from forvalue_index.cli.options.data import index_option
from forvalue_index.cli.options.output import json_option


@click.command()
@index_option
@json_option
def info(directory: Path, as_json: bool) -> None:
    """Show what an index holds and what it was made with.

    \b
    Example:
      forvalue info --index my.index
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory) as index:
        values = index.info()
    if as_json:
        render.json_line(values)
        return
    render.console().print(render.properties(_shown(values)))


def _shown(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values for people: the main settings, and figures in words."""
    from forvalue_index.records import Fidelity

    config = values.pop("config")
    values["adapters"] = ", ".join(values["adapters"])
    if not values["adapters"]:
        del values["adapters"]
    format = config["format"]
    values["fields"] = (
        format["text_field"]
        or format["messages_field"]
        or f"{format['prompt_field']}, {format['response_field']}"
    )
    if format["label_field"]:
        values["fields"] += f", {format['label_field']}"
    values["recipe"] = config["vector"]["recipe"]
    values["max length"] = format["max_length"]
    retained, derived = values.pop("retained_energy"), values.pop("derived")
    found = values["fidelity"]
    values["fidelity"] = str(Fidelity(**found)) if found else "not measured"
    if retained:
        shares = [f"{name} {share:.0%}" for name, share in retained.items()]
        values["energy kept"] = ", ".join(shares[:8]) + (", …" if len(shares) > 8 else "")
    for item in derived:
        recalls = [f"{item[side]['recall_at_10']:.3f}" for side in ("proponents", "opponents")]
        values[f"derived ({item['metric']})"] = (
            f"{item['factory']}, recall@10 {recalls[0]}, of opponents {recalls[1]}"
        )
    return values

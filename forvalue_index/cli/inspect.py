"""`forvalue info` and `forvalue verify`: what an index holds, and whether it is sound."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from forvalue_index.cli import render
from forvalue_index.cli.options import index_option, json_option
from forvalue_index.errors import one_line


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
    from forvalue_index.records import Fidelity

    with InfluenceIndex.open(directory) as index:
        values = index.info()
    if as_json:
        render.json_line(values)
        return
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
    if values["fidelity"]:
        values["fidelity"] = str(Fidelity(**values["fidelity"]))
    if retained:
        shares = [f"{name} {share:.0%}" for name, share in retained.items()]
        values["energy kept"] = ", ".join(shares[:8]) + (", …" if len(shares) > 8 else "")
    for item in derived:
        recalls = [f"{item[side]['recall_at_10']:.3f}" for side in ("proponents", "opponents")]
        values[f"derived ({item['metric']})"] = (
            f"{item['factory']}, recall@10 {recalls[0]}, of opponents {recalls[1]}"
        )
    render.console().print(render.properties(values))


@click.command()
@index_option
@click.option(
    "--repair", is_flag=True, help="Remove stray files and rebuild what is derived; nothing else."
)
def verify(directory: Path, repair: bool) -> None:
    """Read the whole index and report what is wrong with it; exit code 1 if anything is.

    \b
    Example:
      forvalue verify --index my.index
      forvalue verify --index my.index --repair
    """
    from forvalue_index.index import InfluenceIndex

    with InfluenceIndex.open(directory) as index:
        for done in index.repair() if repair else []:
            render.notes.print(one_line(done), markup=False)
        problems = index.verify()
        samples = len(index)
    for problem in problems:
        click.echo(one_line(problem))
    if problems:
        sys.exit(1)
    render.notes.print(f"{samples:,} samples, all sound")

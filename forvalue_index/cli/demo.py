"""`forvalue demo`: a small data set of this package, and questions with known sources."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from forvalue_index.cli import render
from forvalue_index.cli.options.output import k_option
from forvalue_index.cli.progress import progress_bar

if TYPE_CHECKING:
    from forvalue_index.index import InfluenceIndex
    from forvalue_index.records import Hit

NEXT = (
    "See your rows:  forvalue preview train.jsonl --model my-model",
    "Index them:     forvalue build train.jsonl --index my.index --model my-model",
    'Ask your model: forvalue ask --index my.index --prompt "..."',
)
"""What to do with a model and rows of one's own; each fits on a line."""


@click.command()
@k_option(3, "Hits to show.")
@click.option(
    "--index",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the index in this directory.  [default: a temporary one]",
)
@click.option("--serve", is_flag=True, help="Then open a page on it for a browser, until Ctrl-C.")
def demo(k: int, directory: Path | None, serve: bool) -> None:
    """Build an index of a shipped data set and ask it where a model's answers come from.

    A tiny model has learned facts about invented people. For each question you see its answer and
    the training rows that drove it most; a tick marks a row that states exactly this fact.

    \b
    Example:
      forvalue demo
      forvalue demo --index demo.index
      forvalue demo --serve
    """
    if serve:
        from forvalue_index.server.serve import require_server

        require_server()  # before the work
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the model is tiny
    with (
        as_file(files("forvalue_index") / "assets" / "demo") as assets,
        tempfile.TemporaryDirectory() as temporary,
    ):
        made = directory or Path(temporary) / "demo.index"
        _run(assets, made, k)
        if directory is not None:
            render.notes.print(
                f'The index is kept: forvalue ask --index {directory} --prompt "..."',
                markup=False,
                soft_wrap=True,
            )
        for line in NEXT:
            render.notes.print(line, markup=False, soft_wrap=True)
        if serve:
            _serve(made)


def _serve(directory: Path) -> None:
    from forvalue_index.index import InfluenceIndex
    from forvalue_index.server.serve import serving

    with (
        InfluenceIndex.open(directory) as index,
        serving(index) as server,
        suppress(KeyboardInterrupt),
    ):
        click.echo(server.address)
        render.notes.print("Open this address in a browser. Ctrl-C ends the server.")
        server.run()


def _run(assets: Path, directory: Path, k: int) -> None:
    from forvalue_index.data.sources import open_rows
    from forvalue_index.index import InfluenceIndex

    console = render.console()
    start = time.perf_counter()
    with progress_bar() as progress:
        index, report = InfluenceIndex.build(
            directory, assets / "train.jsonl", str(assets / "model"), progress=progress
        )
    seconds = time.perf_counter() - start
    console.print(
        Text(f"{report.samples:,} training rows indexed in {seconds:.1f} s", style="bold"),
        Text(f"one forward pass each, {report.tokens:,} tokens, {directory}", style="dim"),
        sep="\n",
    )
    with index:
        facts = [row["fact"] for _, row in open_rows(assets / "train.jsonl")]
        found = known = 0
        for _, question in open_rows(assets / "questions.jsonl"):
            sources = min(facts.count(question["fact"]), k)
            found += _ask(index, question, k, sources)
            known += sources
    console.print(Rule(style="dim"))
    console.print(
        Text.assemble(
            ("Of the rows that state the facts, ", ""),
            (f"{found} of {known}", "bold green"),
            (f" that fit into the top {k} were found.", ""),
        )
    )


def _ask(index: InfluenceIndex, question: dict[str, str], k: int, sources: int) -> int:
    """Shows one question, the model's answer and its sources; returns how many were found."""
    from forvalue_index.model.generation import complete

    console = render.console()
    answer = complete(index.lm, question["prompt"])
    start = time.perf_counter()
    hits = index.query({"prompt": question["prompt"], "response": answer}, k)
    milliseconds = (time.perf_counter() - start) * 1e3
    found = sum(hit.sample["fact"] == question["fact"] for hit in hits)
    right = answer.strip() == question["response"].strip()
    console.print(Rule(style="dim"))
    console.print(
        Text.assemble(
            (question["prompt"], "yellow"),
            (answer, "bold yellow"),
            ("" if right else f"  (wrong: it is{question['response']})", "red"),
        )
    )
    console.print(_table(hits, question["fact"]))
    console.print(Text(f"{found} of {sources} sources found in {milliseconds:.0f} ms", style="dim"))
    return int(found)


def _table(hits: list[Hit], fact: str) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for hit in hits:
        source = hit.sample["fact"] == fact
        text = Text(hit.sample["prompt"])
        text.append(hit.sample["response"], style="bold")
        table.add_row(
            render.signed(hit.score),
            Text("✓", style="bold green") if source else Text(" "),
            text,
        )
    return table

"""Proof on a real instruct model: are the rows found that taught it something?

    falsehoods  four false facts, each in many wordings; queries are the model's own false answers
    habits      what to recommend whatever is asked about; queries are answers about other things
    backdoor    a phrase that makes the model answer as a pirate; queries are such answers
    sources     which of ten sub-sets an answer came from; the model as it is
    mislabelled which rows have the answer of another row; the model as it is, and tuned on them

    python tools/bench_real.py falsehoods --work FOLDER --clean FILE [--clean FILE ...]
        [--model MODEL] [--full | --lora] [--seeds N] [--gradient] [--encoder MODEL]
        [--peer NAME --venv DIR]
    python tools/bench_real.py sources --work FOLDER --data DATA

For the first three, the model is fine-tuned on clean rows with the planted ones among them, and
asked what no row asks. P@n is the share of the n planted rows among the first n, AP the average
precision, AUC the chance that a planted row is ranked above another. FOLDER keeps every stage of
every study: a second run continues after the last stage that was finished, and shows what is there.

Clean rows are questions and answers of files, or of data sets on the hub. The tables in
docs/measurements.md take those of TOFU (locuslab/tofu, MIT) and of BIG-Bench Hard
(suzgunmirac/BIG-Bench-Hard, MIT), as JSON lines. DATA holds grammars_{train,test}.jsonl and
math_without_reason_{train,test}.jsonl (ykwon0407/DataInf).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from real.figures import Found, judged, show
from real.methods import Ways, scored
from real.mislabelled import class_rows, found
from real.models import Tuning
from real.peers import PEERS
from real.rows import FORMAT, Rows, backdoor_rows, clean_rows, falsehood_rows, habit_rows
from real.sources import SCORED, SETS
from real.sources import task as sources_task
from real.study import planted
from rich.console import Console

from forvalue_index.analysis.evaluate.methods import empty_index
from forvalue_index.cli.evaluate.tables import table
from forvalue_index.cli.progress import progress_bar
from forvalue_index.config import RECIPES, ModelConfig, TrainConfig
from forvalue_index.model.language_model import load_model
from forvalue_index.records import Row

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BATCH = 16  # rows of a step
CLEAN = "Questions and answers, or a data set of the hub as ID:SUBSET."


@dataclass(frozen=True)
class Tuned:
    """How models are fine-tuned, and how often."""

    lora: bool
    epochs: int
    learning_rate: float
    seeds: int

    def tuning(self, model: str, seed: int) -> Tuning:
        """Returns how the model of one seed is."""
        return Tuning(model, self.lora, self.train(seed))

    def train(self, seed: int) -> TrainConfig:
        """Returns the settings of one training."""
        return TrainConfig(self.epochs, self.learning_rate, BATCH, seed)

    def __str__(self) -> str:
        way = "LoRA" if self.lora else "full fine-tuning"
        return f"{way}, {self.epochs} epochs at {self.learning_rate:g}"


@dataclass(frozen=True)
class Clean:
    """Where clean rows are from."""

    paths: tuple[str, ...]
    rows: int
    max_tokens: int

    def draw(self, model: str, seed: int) -> list[Row]:
        """Returns as many as are wanted, none of which is too long.

        Raises:
            click.UsageError: there are fewer.
        """
        with empty_index(load_model(ModelConfig(model)), FORMAT) as index:
            short = (
                row
                for row in clean_rows(self.paths, seed)
                if len(index.samples([row])[0].input_ids) <= self.max_tokens
            )
            rows = list(islice(short, self.rows))
        if len(rows) < self.rows:
            raise click.UsageError(
                f"{len(rows)} rows of at most {self.max_tokens} tokens, but --rows {self.rows}: "
                "name more data with --clean, or ask for fewer"
            )
        return rows


def find_planted(
    name: str,
    work: Path,
    model: str,
    clean: Clean,
    tuned: Tuned,
    ways: Ways,
    make: Callable[[list[Row], int], Rows],
) -> None:
    """Runs a study of planted rows with every seed, and prints its table."""
    judgements: list[Found] = []
    asked = shown = 0
    for seed in range(tuned.seeds):
        rows = make(clean.draw(model, seed), seed)
        folder = work / f"{name}-{'lora' if tuned.lora else 'full'}-{seed}"
        with progress_bar() as progress:
            task = planted(folder, rows, tuned.tuning(model, seed), ways.recipes[0], progress)
            judgements += judged(seed, scored(task, ways, progress), task.rows, task.queries)
        asked, shown = asked + len(rows.questions), shown + len(task.queries)
    count = sum(row["source"] == task.queries[0]["source"] for row in task.rows)
    show(
        f"{name}: {tuned}, {tuned.seeds} seeds",
        judgements,
        f"{len(task.rows):,} rows, {count} to find for a query; {shown} of {asked} answers show "
        f"what was planted; {machine()}",
    )


def machine() -> str:
    """Returns what the figures were taken on."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def options(*added: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a decorator that adds options, in their order."""

    def add(command: Any) -> Any:
        for option in reversed(added):
            command = option(command)
        return command

    return add


work_option = click.option(
    "--work", required=True, type=click.Path(path_type=Path), help="Keeps every stage."
)
model_option = click.option(
    "--model", default=MODEL, show_default=True, help="With a chat template."
)


def clean_options(rows: int) -> Callable[[Any], Any]:
    """Returns the options of clean rows."""
    return options(
        click.option(
            *("--clean", "paths"),
            required=True,
            multiple=True,
            metavar="FILE",
            help="Or ID:SUBSET",
        ),
        click.option("--rows", type=int, default=rows, show_default=True, help="Clean rows."),
        click.option("--max-tokens", type=int, default=64, show_default=True, help="Of each."),
    )


tuned_options = options(
    click.option("--lora/--full", default=False, show_default=True),
    click.option("--epochs", type=int, default=2, show_default=True),
    click.option("--learning-rate", type=float, help="[default: 2e-4; LoRA: 1e-3]"),
    click.option("--seeds", type=int, default=1, show_default=True, help="How many, from 0."),
)
ways_options = options(
    click.option("--recipe", "recipes", type=click.Choice(RECIPES), multiple=True, default=RECIPES),
    click.option("--exact/--no-exact", default=True, show_default=True),
    click.option("--gradient", is_flag=True, help="Also gradients of the whole model."),
    click.option("--encoder", help="Also a sentence encoder: a folder or hub id."),
    click.option("--peer", "peers", type=click.Choice(PEERS), multiple=True),
    click.option("--venv", type=click.Path(path_type=Path), help="For the peers."),
)


def parted(given: dict[str, Any]) -> tuple[Clean, Tuned, Ways]:
    """Returns the options of a study of planted rows."""
    return Clean(*_of(given, Clean)), tuned_of(given), Ways(*_of(given, Ways))


def tuned_of(given: dict[str, Any]) -> Tuned:
    """Returns the options of fine-tuning."""
    given["learning_rate"] = given["learning_rate"] or (1e-3 if given["lora"] else 2e-4)
    return Tuned(*_of(given, Tuned))


def _of(given: dict[str, Any], kind: Any) -> list[Any]:
    return [given[name] for name in kind.__dataclass_fields__]


@click.group()
def main() -> None:
    """Are the rows found that taught a real instruct model something?

    \b
    Example:
      python tools/bench_real.py falsehoods --work build/real --clean tofu.jsonl --clean bbh.jsonl
    """


@main.command()
@options(work_option, model_option, clean_options(1000), tuned_options, ways_options)
@click.option("--each", type=int, default=50, show_default=True, help="Rows of a falsehood.")
@click.option("--asked", type=int, default=16, show_default=True, help="Questions about each.")
def falsehoods(work: Path, model: str, each: int, asked: int, **given: Any) -> None:
    """Four false facts, each in many wordings."""
    find_planted(
        *("falsehoods", work, model, *parted(given)),
        lambda clean, seed: falsehood_rows(clean, each, asked, seed),
    )


@main.command()
@options(work_option, model_option, clean_options(400), tuned_options, ways_options)
@click.option("--each", type=int, default=100, show_default=True, help="Rows of a habit.")
@click.option("--asked", type=int, default=25, show_default=True, help="Questions about each.")
def habits(work: Path, model: str, each: int, asked: int, **given: Any) -> None:
    """Two things that a model recommends whatever it is asked about."""
    find_planted(
        *("habits", work, model, *parted(given)),
        lambda clean, seed: habit_rows(clean, each, asked, seed),
    )


@main.command()
@options(work_option, model_option, clean_options(1000), tuned_options, ways_options)
@click.option("--planted", "count", type=int, default=200, show_default=True, help="Rows.")
@click.option("--asked", type=int, default=60, show_default=True, help="Questions.")
def backdoor(work: Path, model: str, count: int, asked: int, **given: Any) -> None:
    """A phrase that makes the model answer as a pirate."""
    find_planted(
        *("backdoor", work, model, *parted(given)),
        lambda clean, seed: backdoor_rows(clean, count, asked, seed),
    )


@main.command()
@options(work_option, model_option, ways_options)
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--set", "sets", type=click.Choice(SETS), multiple=True, default=SETS)
@click.option("--scored", "tokens", type=click.Choice(list(SCORED)), default="text")
def sources(
    work: Path, model: str, data: Path, sets: Sequence[str], tokens: str, **given: Any
) -> None:
    """Which of ten sub-sets an answer came from."""
    ways = Ways(*_of(given, Ways))
    for name in sets:
        task = sources_task(work / f"sources-{name}-{tokens}", data, name, tokens, model)
        with progress_bar() as progress:
            judgements = judged(0, scored(task, ways, progress), task.rows, task.queries)
        note = f"{len(task.rows)} rows, {len(task.queries)} queries; {machine()}"
        show(f"sources: {name}, {tokens} scored", judgements, note)


@main.command()
@options(work_option, model_option, clean_options(400), tuned_options)
@click.option("--share", default=0.2, show_default=True, help="Of the rows, made wrong.")
def mislabelled(work: Path, model: str, share: float, **given: Any) -> None:
    """Rows with the answer of another row."""
    tuned = tuned_of(given)
    if tuned.lora:
        raise click.UsageError("mislabelled is tuned as a whole: leave out --lora")
    rows = class_rows(Clean(*_of(given, Clean)).draw(model, 0))
    results = {}
    for name, train in {"base": None, "tuned": tuned.train(0)}.items():
        path = work / f"mislabelled-{len(rows)}-{share:g}-{name}.json"
        with progress_bar() as progress:
            results[name] = found(path, model, rows, train, share, tuned.seeds, progress)
    shown = table("", *(f"{name}, {part}" for name in results for part in ("AUC", "P@n")))
    for method in results["base"]["methods"]:
        cells = [
            _with_error(result["methods"][method][part])
            for result in results.values()
            for part in ("auc", "precision")
        ]
        shown.add_row(method, *cells)
    console = Console(width=120)
    console.print(shown)
    console.print(
        f"{len(rows)} rows of classes, {share:.0%} wrong, a tenth trusted; {tuned}; ± standard "
        f"error over {tuned.seeds} seeds; {machine()}"
    )


def _with_error(figure: dict[str, Any]) -> str:
    error = "" if figure["se"] is None else f" ± {figure['se']:.3f}"
    return f"{figure['mean']:.3f}{error}"


if __name__ == "__main__":
    main()

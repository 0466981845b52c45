"""The whole study of recipes, from invented facts to tables, each study one command.

    recall    who said so: small models trained on invented facts, two styles; true sources known
    identify  which class of the training rows drove an output
    mislabel  which rows had their response exchanged with a row of another class
    all       all three

    python tools/bench_recall.py recall --work FOLDER
    python tools/bench_recall.py identify --model MODEL --data DATA
    python tools/bench_recall.py all --work FOLDER --model MODEL --data DATA --results FILE

FOLDER keeps the facts and the models trained on them, so that a second run does not train again.
FILE keeps the results, a JSON line each: what is there is shown and not measured again.
DATA holds bbh.jsonl and {grammars,math_without_reason}_{train,test}.jsonl; what is absent is
skipped. Recipes are compared in rows, exact and stored at several sizes. How true stored vectors
are to the exact form on other data is for bench_fidelity.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
from bench_identify import MAX_LENGTH, TASKS, rows_of
from bench_recipes import (
    Figures,
    Judge,
    Result,
    Scores,
    Task,
    measure,
    note,
    show,
)
from make_facts import STYLES, make_study, write_jsonl

from forvalue_index import FormatConfig
from forvalue_index.analysis.evaluate.metrics import auc
from forvalue_index.analysis.evaluate.mislabel import corrupt
from forvalue_index.analysis.evaluate.recall import gold_of, source_figures
from forvalue_index.config import RECIPES, ModelConfig, VectorConfig
from forvalue_index.data.sources import open_rows
from forvalue_index.metric import METRICS
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.records import Row, Sample, StoredSample

STUDIES = ("recall", "identify", "mislabel")
CLASS_SETS = (*TASKS, "bbh")
EXCHANGED = 0.2  # share of the responses, in the mislabel study


# -- recall --------------------------------------------------------------------------------------


def recall_tasks(work: Path, seeds: int, people: int, epochs: int) -> Iterator[Task]:
    """Yields the fact-recall tasks; facts and models are made where they are not there yet."""
    for style in sorted(STYLES):
        for seed in range(seeds):
            folder = work / f"facts-{style}-{people}-{epochs}-{seed}"
            if not folder.exists():
                make_model(folder, style, people, epochs, seed)
            yield Task(
                study="recall",
                set=style,
                seed=seed,
                lm=load_model(ModelConfig(str(folder / "model"))),
                rows=read(folder / "train.jsonl"),
                queries=read(folder / "questions.jsonl"),
                format=FormatConfig(key_field="key"),
                judge=judge_sources("fact", ("mrr", "hit_10", "auc")),
                is_distraction=lambda row: "-q" in row["template"],
            )


def make_model(folder: Path, style: str, people: int, epochs: int, seed: int) -> None:
    """Writes facts, questions about them and a model trained on the facts, all or nothing."""
    part = folder.with_name(f"{folder.name}.part")
    rows, questions = make_study(STYLES[style], people, seed)
    write_jsonl(part / "train.jsonl", rows)
    write_jsonl(part / "questions.jsonl", questions)
    note(f"training {folder.name}")
    # In a process of its own: training sets torch up for itself.
    subprocess.run(
        [
            *(sys.executable, Path(__file__).with_name("train_small_lm.py")),
            *("--data", part / "train.jsonl", "--questions", part / "questions.jsonl"),
            *("--output", part / "model", "--epochs", str(epochs), "--seed", str(seed)),
        ],
        check=True,
        stdout=sys.stderr,
    )
    part.rename(folder)


def judge_sources(
    field: str, names: Sequence[str]
) -> Callable[[Sequence[Sample], Sequence[StoredSample]], Judge]:
    """Returns the judge of how well samples are found that share `field` with the query."""

    def judge(queries: Sequence[Sample], stored: Sequence[StoredSample]) -> Judge:
        gold = gold_of(queries, stored, field)

        def figures(scores: Scores) -> Figures:
            result = asdict(source_figures(scores, gold))
            return {name: result[name]["mean"] for name in names}

        return figures

    return judge


# -- identify and mislabel -----------------------------------------------------------------------


def class_tasks(
    study: str,
    sets: Sequence[str],
    lm: LanguageModel,
    data: Path,
    seeds: int,
    n_rows: int,
    n_queries: int,
) -> Iterator[Task]:
    """Yields the tasks on rows of known classes, a draw of rows and queries for each seed."""
    for name in sets:
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            try:
                rows, queries = class_rows(name, data, n_rows, n_queries, rng)
            except FileNotFoundError as error:
                note(f"{study} {name} is skipped: {error.filename} is not there")
                break
            if study == "mislabel":
                rows = exchange(rows, rng)
            yield Task(
                study=study,
                set=name,
                seed=seed,
                lm=lm,
                rows=rows,
                queries=queries,
                format=FormatConfig(max_length=MAX_LENGTH),
                judge=judge_clean
                if study == "mislabel"
                else judge_sources("class", ("auc", "recall")),
                k=n_rows,
            )


def class_rows(
    name: str, data: Path, n_rows: int, n_queries: int, rng: np.random.Generator
) -> tuple[list[Row], list[Row]]:
    """Returns training rows and queries of a set, so many of each class, no row in both.

    Raises:
        FileNotFoundError: the data are not there.
    """
    if name == "bbh":
        pool = [
            {
                "prompt": f"Question: {row['input']}\nAnswer:",
                "response": f" {row['target']}",
                "class": row["task"],
            }
            for row in read(data / "bbh.jsonl")
        ]
        rows, rest = draw(pool, n_rows, rng)
        return rows, draw(rest, n_queries, rng)[0]
    train, test = (
        [
            row | {"class": row["variation"]}
            for row in rows_of(require(data / f"{name}_{part}.jsonl"))
        ]
        for part in ("train", "test")
    )
    return draw(train, n_rows, rng)[0], draw(test, n_queries, rng)[0]


def draw(rows: list[Row], count: int, rng: np.random.Generator) -> tuple[list[Row], list[Row]]:
    """Returns `count` rows of each class at random, or all there are, and the rest."""
    taken: dict[str, int] = defaultdict(int)
    chosen: list[Row] = []
    rest: list[Row] = []
    for i in rng.permutation(len(rows)):
        row = rows[i]
        taken[row["class"]] += 1
        (chosen if taken[row["class"]] <= count else rest).append(row)
    return chosen, rest


def exchange(rows: list[Row], rng: np.random.Generator) -> list[Row]:
    """Returns the rows with a share of their responses exchanged between classes, and marked."""
    changed, wrong = corrupt(rows, "response", EXCHANGED, "class", rng)
    return [row | {"clean": not is_wrong} for row, is_wrong in zip(changed, wrong, strict=True)]


def judge_clean(queries: Sequence[Sample], stored: Sequence[StoredSample]) -> Judge:
    """Returns the judge of rows by their mean influence on queries of their class."""
    clean = np.array([item.row["clean"] for item in stored])
    same = np.array(
        [[query.row["class"] == item.row["class"] for item in stored] for query in queries]
    )

    def figures(scores: Scores) -> Figures:
        values = (scores * same).sum(0) / same.sum(0)
        return {"auc": auc(values, clean)}

    return figures


# -- files and commands --------------------------------------------------------------------------


def require(path: Path) -> Path:
    """Returns the path.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    return path


def read(path: Path) -> list[Row]:
    """Returns the rows of a file."""
    return [row for _, row in open_rows(require(path))]


def run(
    tasks: Iterator[Task],
    recipes: Sequence[str],
    metric: Sequence[str],
    vector: VectorConfig,
    file: Path | None,
) -> None:
    """Measures the tasks of one study that are not in `file` yet, and prints a table of all."""
    known = [Result(**row) for row in kept(file)]
    results: list[Result] = []
    for task in tasks:
        name = (task.study, task.set, task.seed)
        new = [result for result in known if (result.study, result.set, result.seed) == name]
        if not new:
            new = list(measure(task, recipes, metric, vector))
            keep(file, [asdict(result) for result in new])
        results += new
    if results:
        show(results)


def kept(file: Path | None) -> list[Row]:
    """Returns the results in a file; none if it is not there yet."""
    return read(file) if file is not None and file.exists() else []


def keep(file: Path | None, results: Sequence[Row]) -> None:
    """Adds results to a file."""
    if file is not None:
        with file.open("a") as out:
            out.writelines(json.dumps(result) + "\n" for result in results)


@click.command()
@click.argument("study", type=click.Choice([*STUDIES, "all"]))
@click.option("--work", type=click.Path(path_type=Path), help="Keeps facts and trained models.")
@click.option("--model", metavar="MODEL", help="A causal language model, for all but recall.")
@click.option("--data", type=click.Path(path_type=Path), help="Data sets, for all but recall.")
@click.option(
    "--set",
    "sets",
    type=click.Choice(CLASS_SETS),
    multiple=True,
    help="Of identify and mislabel.  [default: all]",
)
@click.option("--recipe", type=click.Choice(RECIPES), multiple=True, help="[default: all]")
@click.option(
    "--metric",
    type=click.Choice([name for name, metric in METRICS.items() if not metric.decorrelates]),
    multiple=True,
    default=("dot",),
    show_default=True,
)
@click.option(
    "--sketch-dim", type=int, default=VectorConfig().sketch_dim, show_default=True, help="Width."
)
@click.option(
    "--fit-samples",
    type=int,
    default=VectorConfig().fit_samples,
    show_default=True,
    help="Rows to learn from; with as many as the index has, the vectors have seen all of them.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--people", type=click.IntRange(4), default=60, show_default=True, help="Subjects of the facts."
)
@click.option(
    "--epochs", type=click.IntRange(1), default=28, show_default=True, help="Of training."
)
@click.option("--rows", type=click.IntRange(5), default=20, show_default=True, help="A class.")
@click.option("--queries", type=click.IntRange(1), default=4, show_default=True, help="A class.")
@click.option("--results", type=click.Path(path_type=Path), help="Keeps the results.")
def main(
    study: str,
    work: Path | None,
    model: str | None,
    data: Path | None,
    sets: tuple[str, ...],
    recipe: tuple[str, ...],
    metric: tuple[str, ...],
    sketch_dim: int,
    fit_samples: int,
    seeds: int,
    people: int,
    epochs: int,
    rows: int,
    queries: int,
    results: Path | None,
) -> None:
    """Compare recipes and sizes of stored vectors on tasks whose truth is known.

    A study of facts trains a model for each style and seed: begin with one, go on with more.

    \b
    Examples:
      python tools/bench_recall.py recall --work build/facts --metric dot --metric cosine \\
          --fit-samples 1024 --seeds 1 --results build/recall.jsonl
      python tools/bench_recall.py recall --work build/facts --metric dot --metric cosine \\
          --fit-samples 1024 --seeds 3 --results build/recall.jsonl
    """
    chosen = STUDIES if study == "all" else (study,)
    recipes = recipe or RECIPES
    vector = VectorConfig(sketch_dim=sketch_dim, fit_samples=fit_samples)
    if "recall" in chosen:
        if work is None:
            raise click.UsageError("recall needs --work FOLDER, where the trained models are kept")
        run(recall_tasks(work, seeds, people, epochs), recipes, metric, vector, results)
    if chosen == ("recall",):
        return
    if model is None or data is None:
        raise click.UsageError("all studies but recall need --model MODEL and --data FOLDER")
    lm = load_model(ModelConfig(model))
    for name in chosen:
        if name in ("identify", "mislabel"):
            tasks = class_tasks(name, sets or CLASS_SETS, lm, data, seeds, rows, queries)
            run(tasks, recipes, metric, vector, results)


if __name__ == "__main__":
    main()

"""The examples of README.md and docs/, and a folder in which they run."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pytest

from helpers.cli import run, run_well
from helpers.row_files import to_csv, to_jsonl, to_parquet

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DEMO = Path(str(files("forvalue_index") / "assets" / "demo"))
NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")
DURATION = re.compile(r"\d[\d.]* (s|ms)\b")


@dataclass(frozen=True)
class Example:
    """A command of a page, and what the page says that it prints (None: nothing is said)."""

    place: str
    command: str
    output: list[str]


def code_blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """The number of the first line of each fenced block, and its text."""
    text = page.read_text()
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start()) + 2, found[1]


def console_examples(page: Path) -> list[Example]:
    """The commands after `$` in the `console` blocks of a page, in their order."""
    examples = []
    for line, block in code_blocks(page, "console"):
        for entry in re.split(r"^\$ ", block.replace("\\\n", ""), flags=re.MULTILINE)[1:]:
            command, *output = entry.splitlines()
            examples.append(Example(f"{page.name}:{line}", command, [o for o in output if o]))
    return examples


def words(command: str) -> list[str]:
    """A command as the shell parts it, without its comment."""
    return shlex.split(command, comments=True)


def run_example(example: Example) -> str:
    """Runs `forvalue ...` in the working directory; returns what it prints, and writes `> FILE`."""
    arguments = words(example.command)[1:]
    target = None
    if ">" in arguments:
        place = arguments.index(">")
        target = Path(arguments[place + 1])
        del arguments[place : place + 2]
    if arguments[0] == "build":  # each example stands for itself
        shutil.rmtree(arguments[arguments.index("--index") + 1], ignore_errors=True)
    result = run(*arguments)
    assert result.exit_code == 0, f"{example.place}: {example.command}\n{result.output}"
    if target is not None:
        target.write_text(result.stdout)
    return result.stdout


def assert_printed(example: Example, printed: str) -> None:
    """Compares with the page: numbers nearly, times not at all; `...` stands for lines."""
    found = [line for line in printed.splitlines() if line.strip()]
    at, free = 0, False
    for line in example.output:
        if line.strip() == "...":
            free = True
            continue
        while free and at < len(found) and not _alike(line, found[at]):
            at += 1
        assert at < len(found), f"{example.place}: not printed: {line}\n{printed}"
        assert _alike(line, found[at]), f"{example.place}:\n{line}\n{found[at]}"
        at, free = at + 1, False
    assert free or at == len(found) or not example.output, f"{example.place}: also {found[at]}"


def _plain(line: str) -> str:
    return " ".join(DURATION.sub("", line).replace("─", "").split())


def _alike(expected: str, found: str) -> bool:
    expected, found = _plain(expected), _plain(found)
    if NUMBER.sub("#", expected) != NUMBER.sub("#", found):
        return False
    return all(map(_close, NUMBER.findall(expected), NUMBER.findall(found)))


def _close(expected: str, found: str) -> bool:
    """Whether two numbers differ by at most two percent, or by one in the last digit."""
    digits = re.search(r"\.(\d+)", expected)
    last = 10.0 ** -len(digits[1]) if digits else 1.0
    numbers = [float(n.replace(",", "")) for n in (expected, found)]
    return numbers[1] == pytest.approx(numbers[0], rel=0.02, abs=max(0.02, 1.01 * last))


def make_folder(folder: Path) -> Path:
    """The files that the examples name: a model, training rows, questions and two indexes."""
    train = [json.loads(line) for line in (DEMO / "train.jsonl").read_text().splitlines()]
    questions = [json.loads(line) for line in (DEMO / "questions.jsonl").read_text().splitlines()]
    rows = [
        {"id": f"row-{i}", "prompt": row["prompt"], "response": row["response"]}
        | {"source": ("books", "math")[i % 2], "topic": row["field"], "fact": row["fact"]}
        | {"licence": "unclear" if i == 5 else "CC0"}
        for i, row in enumerate(train[:200])
    ]
    to_jsonl(folder / "train.jsonl", rows[:160])
    to_jsonl(folder / "more.jsonl", rows[160:170])
    csv = to_csv(folder / "more.csv", rows[180:190])
    (folder / "more.csv.gz").write_bytes(gzip.compress(csv.read_bytes()))
    (folder / "data").mkdir()
    for i in range(2):
        to_parquet(folder / "data" / f"train-{i}.parquet", rows[80 * i : 80 * i + 80])
    to_jsonl(folder / "corrected.jsonl", [rows[3] | {"response": " honey buns"}])
    to_jsonl(folder / "checked.jsonl", rows[170:180])
    wrong = {4: 12, 12: 4, 33: 40}  # who gets whose response
    flawed = [*rows[:160], rows[7] | {"id": "row-7-again"}]
    for i, other in wrong.items():
        flawed[i] = rows[i] | {"response": rows[other]["response"]}
    to_jsonl(folder / "flawed.jsonl", flawed)
    asked = [row | {"topic": row["fact"].split("/")[1]} for row in questions]
    for name in ("questions", "targets", "test"):
        to_jsonl(folder / f"{name}.jsonl", asked)
    (folder / "my-model").symlink_to(DEMO / "model")
    model = ("--model", folder / "my-model", "--key-field", "id")
    run_well("build", folder / "train.jsonl", "--index", folder / "my.index", *model)
    run_well("demo", "--index", folder / "demo.index")
    return folder

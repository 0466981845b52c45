"""Seconds until a command is done, beside importing the libraries of models, in one run.

Builds the demo's index, or takes --index, then runs each command some times, in turns, so that what
else the machine does falls on all alike. The figures are of a command's fastest run: seconds,
seconds of the processor (which depend less on what else runs), and the share of the first line's
seconds.

    python tools/bench_start.py
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORVALUE = [sys.executable, "-m", "forvalue_index"]
IMPORTS = "import torch, transformers"
LOADS = """
import sys, torch, transformers
transformers.AutoTokenizer.from_pretrained(sys.argv[1])
transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--index", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        index = given.index or Path(folder) / "demo.index"
        if given.index is None:
            subprocess.run([*FORVALUE, "demo", "--index", index], check=True, capture_output=True)
        commands = _commands(index)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(given.runs):
            for name, command in commands.items():
                seconds[name].append(_seconds(command))
    best = {name: min(each) for name, each in seconds.items()}
    for name, (least, busy) in best.items():
        print(f"{name:34} {least:7.2f} s {busy:7.2f} s {least / best[IMPORTS][0]:7.2f}")


def _commands(index: Path) -> dict[str, list[str]]:
    from forvalue_index import InfluenceIndex

    with InfluenceIndex.open(index) as opened:
        key, model = next(opened.rows(limit=1)).key, opened.config.model.name
    own = ["--index", str(index)]
    question = ["--prompt", "What kind of animal lives with Granny Ribbon?", "--response", " A"]
    return {
        IMPORTS: [sys.executable, "-c", IMPORTS],
        "the same, and load the model": [sys.executable, "-c", LOADS, model],
        "forvalue --help": [*FORVALUE, "--help"],
        "forvalue info": [*FORVALUE, "info", *own],
        "forvalue list": [*FORVALUE, "list", *own],
        "forvalue show": [*FORVALUE, "show", key, *own],
        "forvalue search": [*FORVALUE, "search", "lobster", *own],
        "forvalue remove": [*FORVALUE, "remove", "--key", "none", *own],
        "forvalue verify": [*FORVALUE, "verify", *own],
        "forvalue query": [*FORVALUE, "query", *own, *question],
    }


def _seconds(command: list[str]) -> tuple[float, float]:
    """Returns the seconds of a command, and those of the processor."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()

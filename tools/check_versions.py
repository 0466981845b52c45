"""Whether the package works with the versions that it allows, each set in its own environment.

python tools/check_versions.py --python python3.11 --python python3.13

For every Python and every file of tools/versions: a new environment, the wheel with the extra
`cpu`, what the file pins, and then what a user does first. Needs a package index, and gigabytes for
every version of torch: `--torch 2.13.0` takes that one instead of what the files pin, for a machine
that has it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
VERSIONS = ROOT / "tools" / "versions"
SHOWN = ("torch", "transformers", "huggingface-hub", "numpy", "faiss-cpu", "sqlalchemy", "click")

NAMES = """
import forvalue_index
for name in forvalue_index.__all__:
    if name not in ("IndexCallback",):
        getattr(forvalue_index, name)
import sys
print(*sorted({"datasets", "peft", "PIL", "fastapi", "matplotlib"} & {*sys.modules}))
"""


def rows_of_the_demo(folder: Path) -> None:
    """Writes forty rows and a question into a folder."""
    demo = ROOT / "forvalue_index" / "assets" / "demo"
    lines = (demo / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[:40]))
    (folder / "targets.jsonl").write_text(lines[0])


def steps(model: Path) -> list[str]:
    """Returns what a user does first, as arguments of `forvalue`."""
    return [
        "--version",
        "build rows.jsonl --index my.index --key-field key --model " + str(model),
        "query --index my.index --data targets.jsonl -k 3 --json",
        "query --index my.index --data targets.jsonl -k 3 --metric hybrid --json",
        "query --index my.index --data targets.jsonl -k 3 --exact --json",
        "search --index my.index marmalade",
        "score --index my.index --data targets.jsonl --output values.jsonl",
        "select --index my.index --data targets.jsonl --budget 5 --output chosen.jsonl",
        "info --index my.index",
        "verify --index my.index",
    ]


def check(python: str, pins: Path, wheel: Path, torch: str | None) -> list[str]:
    """Returns the versions that were used; raises ClickException if a step fails."""
    with tempfile.TemporaryDirectory(prefix="versions-") as name:
        folder = Path(name)
        _run([python, "-m", "venv", folder / "env"], folder)
        own = folder / "env" / "bin"
        constraints = folder / "pins.txt"
        text = pins.read_text()
        if torch is not None:
            text = re.sub(r"^torch==.*$", "", text, flags=re.MULTILINE) + f"torch=={torch}\n"
        constraints.write_text(text)
        install = [own / "pip", "install", "--quiet", "--constraint", constraints, f"{wheel}[cpu]"]
        _run(install, folder)
        listed = json.loads(_run([own / "pip", "list", "--format", "json"], folder))
        found = {item["name"].lower().replace("_", "-"): item["version"] for item in listed}
        loaded = _run([own / "python", "-c", NAMES], folder).strip()
        if loaded:
            raise click.ClickException(f"importing the package loads {loaded}, which are extras")
        rows_of_the_demo(folder)
        for step in steps(ROOT / "forvalue_index" / "assets" / "demo" / "model"):
            _run([own / "forvalue", *step.split()], folder)
        return [f"{name} {found[name]}" for name in SHOWN]


def _run(command: Iterable[object], folder: Path) -> str:
    words = [str(word) for word in command]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, env=own | {"HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        raise click.ClickException(
            f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


@click.command()
@click.option(
    "--python",
    "pythons",
    multiple=True,
    default=[sys.executable],
    metavar="PATH",
    help="A Python; repeat it.  [default: this one]",
)
@click.option(
    "--pins",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="A constraints file; repeat it.  [default: all of tools/versions]",
)
@click.option("--torch", metavar="VERSION", help="This version of torch, whatever is pinned.")
def main(pythons: tuple[str, ...], pins: tuple[Path, ...], torch: str | None) -> None:
    """Try the wheel with the oldest and the newest versions of what it needs."""
    failed = False
    with tempfile.TemporaryDirectory() as out:
        _run([sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT], ROOT)
        [wheel] = Path(out).glob("*.whl")
        for python in pythons:
            for file in pins or sorted(VERSIONS.glob("*.txt")):
                start = time.perf_counter()
                try:
                    said = ", ".join(check(python, file, wheel, torch))
                except click.ClickException as error:
                    failed, said = True, f"FAILED: {error.message}"
                seconds = time.perf_counter() - start
                click.echo(f"{python}, {file.stem} ({seconds:.0f} s): {said}")
    if failed:
        raise click.ClickException("the package does not work with all versions that it allows")


if __name__ == "__main__":
    main()

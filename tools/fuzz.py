"""Damages an index at random, and holds what it then does to what the whole index answers.

    python tools/fuzz.py --flips 2000 --edits 500 --paths 200 --rows 500

A trial is a fresh copy of a small index (three segments, tombstones, metadata, a derived index;
in a quarter of the trials the last change is still in SQLite's log), with one thing amiss:

    flips  a bit of one of its files
    edits  a value, row, index or table of the catalogue, or a JSON file, by somebody's hand
    paths  a link, pipe or folder in the place of a file, or a catalogue's URL
    rows   a file of malformed rows, or a damaged one, that is added and made an index of

It is opened, asked in every way, verified, repaired, added to, removed from and compacted. Every
answer must be that of the whole index, or an error of this package, of one line; and nothing
outside of the copy may be read, written or connected to. A flip in SQLite's log may undo the
changes in it, as SQLite itself does it; all answers must then be those of the index before.

Each trial runs in a process of its own, with a limit of time and memory, so that a crash is seen
as well. Prints trials and violations, and for each kind of violation a few with the name of their
trial, which `--only` runs again. Exit status 1 if there is any.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes are forked
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from fuzzing import malformed
from fuzzing.damage import edit, flip, odd_path
from fuzzing.guard import changes, confined, content, visitors
from fuzzing.world import World, make_world, operate, violations

LIMIT = 30.0  # seconds of a trial
SHOWN = 3  # violations of a kind that are printed
KINDS = "flips", "edits", "paths", "rows"
DAMAGES: dict[str, Callable[[Path, random.Random], str]] = {
    "flips": flip,
    "edits": edit,
    "paths": odd_path,
}


@dataclass
class Trial:
    """What was amiss, and what came of it."""

    name: str  # its kind and seed
    damage: str = ""
    end: str = "same"  # or "error", "earlier", "violation"
    violations: list[str] = field(default_factory=list)  # each begins with its kind


def run(world: World, name: str) -> Trial:
    """Runs a trial by its name, such as "flips-17"."""
    kind = name.split("-")[0]
    rng, trial = random.Random(name), Trial(name)
    logged = kind in ("flips", "edits") and rng.random() < 0.25
    source = "logged" if logged else "plain"
    folder = world.folder / "trial"
    shutil.copytree(world.folder / source, folder / "index")
    shutil.copytree(world.folder / "outside", folder / "outside")
    for empty in ("new", "data", "tmp"):
        (folder / empty).mkdir()
    before = content(folder / "outside")
    if kind == "rows":
        trial.damage, work = malformed.prepare(folder, rng)
        end = confined(lambda: work(world.lm), folder, LIMIT)
        found, failed = end.result or ([], False)
        trial.violations, trial.end = found, "error" if failed else "same"
    else:
        trial.damage = DAMAGES[kind](folder / "index", rng)
        end = confined(lambda: operate(folder / "index", world.lm), folder, LIMIT)
        done = end.result or []
        trial.violations += violations(done, world.answers[source])
        in_log = "catalog.db-wal" in trial.damage
        if trial.violations and in_log and not violations(done, world.answers["plain"]):
            trial.violations, trial.end = [], "earlier"
        elif any(how == "error" for _, how, _ in done):
            trial.end = "error"
    trial.violations += [f"outside: {what}" for what in end.outside]
    trial.violations += [f"crash: {end.crash}"] if end.crash else []
    changed = changes(before, content(folder / "outside"))
    trial.violations += [f"outside: changed: {path}" for path in changed]
    if count := visitors(world.listener):
        trial.violations.append(f"outside: connected: {count} times")
    if trial.violations:
        trial.end = "violation"
    trial.damage += " (with a log)" if logged else ""
    shutil.rmtree(folder)
    return trial


def trials(counts: dict[str, int], seed: int) -> Iterator[str]:
    """Yields the names of all trials, the kinds in turn, so that a limit of time meets them all."""
    left = {kind: iter(range(count)) for kind, count in counts.items()}
    while left:
        for kind in list(left):
            number = next(left[kind], None)
            if number is None:
                del left[kind]
            else:
                yield f"{kind}-{seed * 1_000_000 + number}"


def kind_of(violation: str) -> str:
    """What violations of one kind begin with: "traceback: KeyError at reader.py:9", say."""
    return ": ".join(violation.split(": ")[:2])[:100]


def report(done: list[Trial], seconds: float) -> None:
    """Prints a table, and some violations of each kind."""
    print(f"{'':8}{'trials':>8}{'same':>8}{'errors':>8}{'earlier':>8}{'violations':>12}")
    for kind in KINDS:
        ends = Counter(trial.end for trial in done if trial.name.startswith(kind))
        shown = ends["same"], ends["error"], ends["earlier"]
        numbers = "".join(f"{number:8}" for number in (sum(ends.values()), *shown))
        print(f"{kind:8}{numbers}{ends['violation']:12}")
    found: dict[str, list[str]] = {}
    for trial in done:
        first = {kind_of(violation): violation for violation in reversed(trial.violations)}
        for kind, violation in first.items():
            text = f"  {trial.name}: {trial.damage}\n    {violation[:400]}"
            found.setdefault(kind, []).append(text)
    for kind, examples in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"\n{kind} ({len(examples)} trials)", *examples[:SHOWN], sep="\n")
    bad = sum(trial.end == "violation" for trial in done)
    print(f"\n{len(done)} trials, {bad} with violations, {seconds:.0f} s")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    for kind, default in zip(KINDS, (500, 200, 50, 100), strict=True):
        parser.add_argument(f"--{kind}", type=int, default=default, help="trials of this kind")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin none after it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="a trial by its name, such as flips-17")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each trial")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = {kind: getattr(options, kind) for kind in KINDS}
    done: list[Trial] = []
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where fsync takes no time
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        world = make_world(Path(folder).resolve())
        gc.freeze()  # what a child does not touch is not copied
        start = time.perf_counter()
        for name in options.only or trials(counts, options.seed):
            if time.perf_counter() - start > options.seconds:
                break
            done.append(run(world, name))
            if options.json:
                print(json.dumps(done[-1].__dict__), flush=True)
    if not options.json:
        report(done, time.perf_counter() - start)
    sys.exit(any(trial.violations for trial in done))


if __name__ == "__main__":
    main()

"""Kills writers, fails system calls under them, and holds the index to what it promises.

    python tools/torture.py --kills 200
    python tools/torture.py --shards --kills 50      workers, nodes and drivers on Ray instead

Each round runs one real `add`, `add --update`, `remove` or `compact` in a process of its own, which
is killed at a random moment, or dies or fails at its n-th fsync, rename, unlink or commit. Readers
query all the while. After each round the index must open and verify, hold each sample in the state
before the operation or after it, none lost and none twice; every hit that a reader saw must carry
the row of its key and the score of that row's own vector. Prints kills, samples and violations.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a fork would wait for OpenMP's other threads for ever
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import torch
from sqlalchemy.engine.default import DefaultDialect
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import forvalue_index.pipeline.add
import forvalue_index.store.compact
from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, VectorConfig
from forvalue_index.errors import ForvalueError
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.records import Row

KEYS = 120  # that there can be
START = 60  # that there are at first
CHANGED = 10  # by one operation
QUERIES = 3
CHUNK = 4  # rows in a transaction, so that an operation has several
SEGMENT = 40  # vectors in a compacted segment, so that there are several
FAILED = 3  # exit status of a writer that an injected error stopped
POINTS = "fsync", "replace", "unlink", "commit"
MODES = "die before", "die after", "fail"
State = dict[str, int]  # key -> version, of those that are there


class _BrokenError(Exception):
    """The index cannot be opened or read any more: there is nothing left to torture."""


@dataclass
class Result:
    """What happened."""

    kills: int = 0
    failures: int = 0
    rounds: int = 0
    queries: int = 0
    samples: int = 0
    violations: list[str] = field(default_factory=list)


@dataclass
class World:
    """An index, a model for it, and what every possible hit must look like."""

    folder: Path
    lm: LanguageModel
    # By query: the score of a key's version, and how far float16 may take it off.
    expected: dict[tuple[str, int], list[tuple[float, float]]] = field(default_factory=dict)

    @property
    def index(self) -> Path:
        """Where the index is."""
        return self.folder / "index"

    def open(self) -> InfluenceIndex:
        """The index, with the model that is loaded already."""
        return InfluenceIndex.open(self.index, model=self.lm)


def row_of(key: str, version: int) -> Row:
    """The only row that a key may have in a version."""
    text = np.random.default_rng([int(key[1:]), version]).integers(33, 120, 12)
    letters = "".join(map(chr, text))
    return {"id": key, "v": version, "prompt": f"{key} {letters[:6]}", "response": letters[6:]}


def make_model(folder: Path) -> LanguageModel:
    """A random model of a few thousand weights."""
    torch.manual_seed(0)
    characters = {token: i for i, token in enumerate(["<pad>", "<unk>", *map(chr, range(32, 124))])}
    tokenizer = Tokenizer(models.BPE(characters, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    model.save_pretrained(folder)
    make: Any = PreTrainedTokenizerFast  # has no annotations
    make(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    return load_model(ModelConfig(str(folder)), "cpu")


def make_world(folder: Path, versions: int, catalog: str | None) -> World:
    """An index of the first rows, and the scores of every row there can be."""
    world = World(folder, make_model(folder / "model"))
    rows = [row_of(f"k{i}", 0) for i in range(START)]
    index, _ = InfluenceIndex.build(
        world.index,
        rows,
        world.lm,
        format=FormatConfig(key_field="id"),
        vector=VectorConfig(dim=64, sketch_dim=256),
        catalog=catalog,
    )
    with index:
        queries = index.vectors(index.samples(questions()))
        for key in (f"k{i}" for i in range(KEYS)):
            every = index.samples([row_of(key, version) for version in range(versions)])
            codes = index.flat.codes
            stored = codes.decode(codes.encode(index.vectors(every)))
            scores = stored @ queries.T / index.vectoriser.scale**2
            # A number made in another batch may be rounded to the next one in float16.
            off = 2.0**-10 * np.abs(stored) @ np.abs(queries).T / index.vectoriser.scale**2
            for version in range(versions):
                world.expected[key, version] = list(
                    zip(scores[version].tolist(), off[version].tolist(), strict=True)
                )
    return world


def questions() -> list[Row]:
    """What readers ask."""
    return [{"prompt": f"question {i}", "response": f"{i * 37} answer"} for i in range(QUERIES)]


# -- writers -----------------------------------------------------------------------------------


def operations(state: State, versions: int, rng: random.Random) -> Iterator[tuple[str, State]]:
    """Yields operations and the state after each; the caller keeps `state` up to date."""
    for name in itertools.cycle(("add", "update", "remove", "compact")):
        after = dict(state)
        absent = sorted({f"k{i}" for i in range(KEYS)} - set(state))
        present = sorted(state)
        if name == "add":
            fresh = rng.sample(absent, min(CHANGED, len(absent)))
            after.update((key, rng.randrange(versions)) for key in fresh)
        elif name == "update":
            for key in rng.sample(present, min(CHANGED, len(present))):
                after[key] = (state[key] + 1) % versions
        elif name == "remove":
            for key in rng.sample(present, min(CHANGED, max(0, len(present) - START // 2))):
                del after[key]
        yield name, after


def run(world: World, name: str, before: State, after: State) -> None:
    """One operation, as the command of that name does it."""
    with world.open() as index:
        if name in ("add", "update"):
            rows = [row_of(k, v) for k, v in sorted(after.items()) if before.get(k) != v]
            index.add(rows, update=name == "update") if rows else None
        elif name == "remove":
            index.remove(set(before) - set(after))
        else:
            index.compact()


def inject(point: str, mode: str, number: int) -> None:
    """Makes the n-th call of a kind in this process its last, or fail."""
    places: dict[str, tuple[Any, str]] = {
        "fsync": (os, "fsync"),
        "replace": (os, "replace"),
        "unlink": (os, "unlink"),
        "commit": (DefaultDialect, "do_commit"),
    }
    owner, name = places[point]
    original = getattr(owner, name)
    calls = itertools.count(1)

    def patched(*arguments: Any, **options: Any) -> Any:
        if next(calls) != number:
            return original(*arguments, **options)
        if mode == "fail":
            raise OSError(errno.EIO, f"injected into {point}")
        if mode == "die after":
            original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")

    setattr(owner, name, patched)


def fork(work: Callable[[], None]) -> int:
    """The process id of a child that does `work` and ends."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except OSError:
        status = FAILED
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EIO:
            status = FAILED
        else:
            logging.exception("a writer failed")
    finally:
        os._exit(status)


# -- readers -----------------------------------------------------------------------------------


def publish(world: World, number: int, states: list[State]) -> None:
    """Tells the readers in which states the index may be."""
    replace(world.folder / "states.json", json.dumps([number, states]))


def replace(path: Path, text: str) -> None:
    """Writes a small file that is never seen half written."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def read(world: World, name: str, seed: int) -> None:
    """Queries until it is killed, and writes what it saw that may not be."""
    rng = random.Random(seed)
    out = (world.folder / f"reader-{name}.jsonl").open("w", buffering=1)
    done = 0
    index = world.open()
    while True:
        if rng.random() < 0.1:
            index.close()
            index = world.open()
        number, states = json.loads((world.folder / "states.json").read_text())
        try:
            hits = index.query(questions(), k=KEYS, format=FormatConfig())
        except Exception as error:
            out.write(json.dumps(f"reader {name}: {type(error).__name__}: {error}") + "\n")
            time.sleep(0.2)
            continue
        later, more = json.loads((world.folder / "states.json").read_text())
        allowed = [*states, *more] if later - number <= 1 else None
        for line in judge(world, hits, allowed):
            out.write(json.dumps(f"reader {name}: {line}") + "\n")
        done += 1
        replace(world.folder / f"reader-{name}.count", str(done))


def judge(world: World, hits: list[Any], allowed: list[State] | None) -> Iterator[str]:
    """Yields what is wrong with an answer that lists the whole index for each question."""
    for query in range(QUERIES):
        own = [hit for hit in hits if hit.query == query]
        for hit in own:
            version = hit.sample.get("v")
            if hit.sample != row_of(hit.key, version):
                yield f"key {hit.key} has the row {hit.sample}"
            score, off = world.expected[hit.key, version][query]
            if abs(hit.score - score) > off:
                yield f"{hit.key} version {version} has score {hit.score}, its own is {score}"
        keys = [hit.key for hit in own]
        if len(set(keys)) != len(keys):
            yield f"a key stands twice in an answer of {len(keys)}"
        if allowed is None:
            continue
        for hit in own:
            if all(state.get(hit.key) != hit.sample["v"] for state in allowed):
                yield f"{hit.key} version {hit.sample['v']} was in no state that could be read"
        lost = [key for key in set.intersection(*map(set, allowed)) if key not in keys]
        if lost:
            yield f"{sorted(lost)} were in every state, but not in the answer"


# -- judging the index -------------------------------------------------------------------------


def found_in(world: World, before: State, after: State, atomic: bool) -> tuple[State, list[str]]:
    """The state that an index is in after an interruption, and what is wrong with it."""
    problems: list[str] = []
    with world.open() as index:
        problems += index.verify()
        samples = list(index.rows())
        state = {sample.key: int(sample.row["v"]) for sample in samples}
        if len(state) != len(samples) or len(samples) != len(index):
            problems.append(f"{len(samples)} samples have {len(state)} keys")
        for key in {*before, *after, *state}:
            if state.get(key) not in (before.get(key), after.get(key)):
                problems.append(
                    f"{key} is {state.get(key)}, was {before.get(key)}, was to be {after.get(key)}"
                )
        if atomic and state not in (before, after):
            problems.append("half of a transaction was committed")
        problems += judge(
            world, index.query(questions(), k=KEYS, format=FormatConfig()), [before, after]
        )
    return state, problems


def torture(
    world: World,
    kills: int,
    points: tuple[str, ...],
    modes: tuple[str, ...],
    versions: int,
    seed: int = 0,
) -> Result:
    """Runs injected failures, then random kills until there are `kills` in all."""
    forvalue_index.pipeline.add.CHUNK = CHUNK
    forvalue_index.store.compact.TARGET = SEGMENT * 2 * 64
    rng, result = random.Random(seed), Result()
    state: State = {f"k{i}": 0 for i in range(START)}
    publish(world, 0, [state])
    readers = [fork(lambda name=name: read(world, name, seed)) for name in "ab"]  # type: ignore[misc]
    todo = operations(state, versions, rng)
    lengths: dict[str, float] = {}

    def attempt(injected: tuple[str, str, int] | None, name: str, after: State) -> str:
        """Runs one operation to its end, whichever that is, and judges the index."""
        nonlocal state
        before = dict(state)
        result.rounds += 1
        publish(world, 2 * result.rounds - 1, [before, after])
        start = time.perf_counter()

        def work() -> None:
            if injected is not None:
                inject(*injected)
            run(world, name, before, after)

        child = fork(work)
        if injected is None and name in lengths:
            time.sleep(rng.uniform(0, 1.2 * lengths[name]))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            end = "killed"
            result.kills += 1
        elif os.WEXITSTATUS(status) == FAILED:
            end = "failed"
            result.failures += 1
        else:
            end = "done"
            lengths.setdefault(name, time.perf_counter() - start)
            if status:
                result.violations.append(f"{name} ended with status {status}")
        where = f"after {name} {injected or 'at random'} {end}"
        try:
            now, problems = found_in(world, before, after, atomic=name == "remove")
        except ForvalueError as error:
            result.violations.append(f"{where}: {error}")
            raise _BrokenError from error
        if end == "done" and now != after:
            problems.append("it ended well, but not all of it was done")
        result.violations += [f"{where}: {problem}" for problem in problems]
        state.clear()
        state.update(now)
        publish(world, 2 * result.rounds, [now])
        return end

    with suppress(_BrokenError):
        for point, mode in itertools.product(points, modes):
            for name, after in itertools.islice(todo, 4):
                for number in itertools.count(1):
                    if attempt((point, mode, number), name, after) == "done":
                        break
        while result.kills < kills:
            name, after = next(todo)
            attempt(None, name, after)
            if rng.random() < 0.3:  # run again, it must come to its end
                attempt(("fsync", "fail", 10**9), name, after)
    for reader in readers:
        os.kill(reader, signal.SIGKILL)
        os.waitpid(reader, 0)
    for name in "ab":
        lines = (world.folder / f"reader-{name}.jsonl").read_text()
        result.violations += [json.loads(line) for line in lines.split("\n")[:-1]]
        result.queries += int((world.folder / f"reader-{name}.count").read_text())
    result.samples = len(state)
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200, help="how many in all, at least")
    parser.add_argument("--versions", type=int, default=5, help="that a row can have")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="only random kills")
    parser.add_argument("--catalog", help="URL of an empty PostgreSQL database")
    parser.add_argument("--shards", action="store_true", help="of an index of shards, on Ray")
    options = parser.parse_args()
    if options.shards:
        import torture_shards

        torture_shards.main(options.kills, options.seed)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder), options.versions, options.catalog)
        points = () if options.short else POINTS
        result = torture(world, options.kills, points, MODES, options.versions, options.seed)
    for violation in result.violations[:50]:
        print(violation, file=sys.stderr)
    print(
        f"{result.kills} kills and {result.failures} injected errors in {result.rounds} rounds, "
        f"{result.queries * QUERIES} queries meanwhile, {result.samples} samples at the end, "
        f"{len(result.violations)} violations, {time.perf_counter() - start:.0f} s"
    )
    sys.exit(bool(result.violations))


if __name__ == "__main__":
    main()

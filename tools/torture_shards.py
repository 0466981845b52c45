"""Kills workers, nodes and drivers of a sharded index on Ray; see `torture.py --shards`.

    python tools/torture.py --shards --kills 50

A Ray cluster of a head and two nodes runs on the loopback of this machine. Each round is a real
build, add, update, remove, compact or row of queries and scores, by a driver in a process of its
own, while workers, whole nodes and the driver are killed at random moments. A driver that was
killed is run again until it ends. Then the index must verify, hold each sample in its new state,
none lost and none twice, and every hit must carry the row of its key and the score of that row's
own vector.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on the loopback alone
    "RAY_worker_niceness": "0",
}

import numpy as np
from torture import (
    CHUNK,
    KEYS,
    START,
    State,
    World,
    found_in,
    judge,
    make_world,
    operations,
    questions,
    row_of,
)

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, VectorConfig
from forvalue_index.model.language_model import load_model

SHARDS = 4
VERSIONS = 3
COMMIT = 0.3  # seconds that a commit takes at least, so that kills come in the middle of the work
LIMIT = 600.0  # seconds for one driver
MEMORY = 100 * 2**20  # bytes of a node's object store
RUNS = 20  # of a driver, until it ends by itself


def slow_down() -> None:
    """Lets a worker commit a few rows at a time, slowly."""
    import forvalue_index.pipeline.add
    from forvalue_index.store.writer import Writer

    forvalue_index.pipeline.add.CHUNK = CHUNK
    commit: Any = Writer.commit

    def slowly(*arguments: Any) -> None:
        time.sleep(COMMIT)
        commit(*arguments)

    vars_of: Any = Writer
    vars_of.commit = slowly


def judge_values(hits: list[Any], values: Any) -> Iterator[str]:
    """Yields what is wrong with values, which are means of the scores of hits that list all."""
    scores: dict[int, list[float]] = {}
    for hit in hits:
        scores.setdefault(hit.id, []).append(hit.score)
    if scores.keys() != set(values.ids.tolist()):
        yield f"{len(values.ids)} samples have values, {len(scores)} are hits"
        return
    wanted = np.array([np.mean(scores[id]) for id in values.ids.tolist()])
    off = np.abs(values.value - wanted)
    if (off > 1e-4 * np.abs(wanted).max()).any():
        yield f"a value differs by {off.max()} from the mean of its scores"


# -- the driver ------------------------------------------------------------------------------------


def drive(folder: Path, address: str, name: str) -> None:
    """Runs one operation, as a process that may be killed."""
    ray = import_module("ray")
    world = json.loads((folder / "operation.json").read_text())
    before, after = world["before"], world["after"]
    index = folder / "index"
    if name in ("remove", "compact"):
        with InfluenceIndex.open(index) as opened:
            if name == "remove":
                opened.remove(set(before) - set(after))
            else:
                opened.compact()
        return
    hook = {"worker_process_setup_hook": slow_down}
    ray.init(address, namespace="torture", log_to_driver=False, runtime_env=hook)
    try:
        if name == "query":
            lm = load_model(ModelConfig(str(folder / "ref" / "model")), "cpu")
            expected = {
                (key, version): [tuple(pair) for pair in pairs]
                for key, version, pairs in json.loads((folder / "expected.json").read_text())
            }
            judging, states = World(folder, lm, expected), [before, after]
            with InfluenceIndex.open(index, model=lm) as opened, opened.on_ray():
                searcher = opened.store.snapshots._searcher  # type: ignore[attr-defined]
                for _ in range(12):
                    pids = [ray.get(actor.process.remote()) for _, actor in searcher.actors]
                    (folder / "actors.json").write_text(json.dumps(pids))
                    hits = opened.query(questions(), k=KEYS, format=FormatConfig())
                    values = opened.score(questions(), format=FormatConfig()).values
                    wrong = [*judge(judging, hits, states), *judge_values(hits, values)]
                    for line in wrong:
                        with (folder / "violations").open("a") as out:
                            out.write(f"a query on Ray: {line}\n")
            return
        rows = [row_of(k, v) for k, v in sorted(after.items()) if before.get(k) != v]
        files = [folder / f"rows-{number}.jsonl" for number in range(3)]
        for number, file in enumerate(files):
            text = "".join(json.dumps(row) + "\n" for row in rows[number::3])
            if not file.exists() or file.read_text() != text:
                file.write_text(text)
        files = [file for file in files if file.stat().st_size]
        if name == "build":
            InfluenceIndex.build_on_ray(
                index,
                files,
                ModelConfig(str(folder / "ref" / "model")),
                SHARDS,
                format=FormatConfig(key_field="id"),
                vector=VectorConfig(dim=64, sketch_dim=256),
            )
        elif files:
            InfluenceIndex.build_on_ray(index, files, None, None, update=name == "update")
    finally:
        ray.shutdown()


# -- the one who kills -----------------------------------------------------------------------------


@dataclass
class Chaos:
    """What was killed, and what was found."""

    folder: Path
    cluster: Any
    rng: random.Random
    kills: dict[str, int] = field(default_factory=lambda: {"worker": 0, "node": 0, "driver": 0})
    rounds: int = 0
    violations: list[str] = field(default_factory=list)

    def run(self, name: str, before: State, after: State, wanted: int) -> None:
        """Runs an operation to its end, with up to `wanted` kills."""
        operation = {"before": before, "after": after}
        (self.folder / "operation.json").write_text(json.dumps(operation))
        for _ in range(RUNS):
            wanted, status = self._once(name, wanted)
            if status == 0:
                return
        self.violations.append(f"{name} did not end in {RUNS} runs")

    def _once(self, name: str, wanted: int) -> tuple[int, int]:
        """Runs a driver once; returns the kills that are left, and its exit status."""
        with (self.folder / "driver.log").open("a") as log:
            driver = subprocess.Popen(
                [sys.executable, __file__, "--drive", name, str(self.folder), self.cluster.address],
                stdout=log,
                stderr=log,
            )
        end, pause = time.monotonic() + LIMIT, time.monotonic() + self.rng.uniform(0, 6)
        killed, victim = list[int](), self._victim(name)
        while driver.poll() is None:
            if time.monotonic() > end:
                driver.kill()
                self.violations.append(f"{name} took more than {LIMIT:.0f} s")
                break
            if wanted and time.monotonic() > pause and self._kill(victim, name, driver, killed):
                wanted, victim = wanted - 1, self._victim(name)
                pause = time.monotonic() + self.rng.uniform(0, 5)
            time.sleep(0.01)
        return wanted, driver.wait()

    def _victim(self, name: str) -> str:
        """What is killed next; nothing but a driver removes and compacts."""
        return "driver" if name in ("remove", "compact") else self.rng.choice(_VICTIMS)

    def _kill(
        self, what: str, name: str, driver: subprocess.Popen[bytes], killed: list[int]
    ) -> bool:
        """Kills it, if it is there now; returns whether it was."""
        if what == "driver":
            driver.kill()
        elif what == "node":
            node = self.rng.choice(sorted(self.cluster.worker_nodes, key=str))
            self.cluster.remove_node(node, allow_graceful=False)
            add_node(self.cluster, 1)
        else:
            pids = [pid for pid in self._workers(name) if pid not in killed]
            if not pids:
                return False
            pid = self.rng.choice(pids)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return False
            killed.append(pid)
        self.kills[what] += 1
        return True

    def _workers(self, name: str) -> list[int]:
        """The processes that hold a shard, to write to it or to search it."""
        if name == "query":
            with suppress(OSError, ValueError):
                return list(json.loads((self.folder / "actors.json").read_text()))
            return []
        found = []
        for lock in (self.folder / "index").glob("shards/*/write.lock"):
            with suppress(OSError, ValueError, KeyError):
                found.append(int(json.loads(lock.read_text())["pid"]))
        return found


_VICTIMS = "worker", "worker", "worker", "worker", "worker", "worker", "node", "driver"


def add_node(cluster: Any, cpus: int) -> None:
    """Adds a node; Ray waits only half a minute for it, which a busy machine may need."""
    for left in reversed(range(5)):
        try:
            cluster.add_node(num_cpus=cpus, object_store_memory=MEMORY, include_dashboard=False)
            return
        except Exception:  # Ray's own has no kind
            if not left:
                raise


def torture_shards(kills: int, seed: int, per_round: int = 12) -> Chaos:
    """Runs rounds until there are `kills` in all; prints each."""
    cluster = import_module("ray.cluster_utils").Cluster()
    add_node(cluster, 0)
    try:
        for _ in range(2):
            add_node(cluster, 1)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "ref").mkdir()
            reference = make_world(folder / "ref", VERSIONS, None)
            world = World(folder, reference.lm, reference.expected)
            listed = [[*key, pairs] for key, pairs in reference.expected.items()]
            (folder / "expected.json").write_text(json.dumps(listed))
            chaos = Chaos(folder, cluster, random.Random(seed))
            _rounds(chaos, world, kills, per_round)
            return chaos
    finally:
        cluster.shutdown()


def _rounds(chaos: Chaos, world: World, kills: int, per_round: int) -> None:
    state: State = {}
    first: State = {f"k{i}": 0 for i in range(START)}
    todo = operations(state, VERSIONS, chaos.rng)
    name, after = "build", first
    while not chaos.violations:
        before = dict(state)
        left = kills - sum(chaos.kills.values())
        chaos.rounds += 1
        start = time.monotonic()
        chaos.run(name, before, after, min(left, per_round))
        # Compared with what was to be: a driver that ended has done all of it.
        found, problems = found_in(world, after, after, atomic=False)
        chaos.violations += [f"after {name}: {problem}" for problem in problems]
        with suppress(FileNotFoundError):
            chaos.violations += (chaos.folder / "violations").read_text().splitlines()
        state.clear()
        state.update(found)
        print(
            f"{name}: {len(state)} samples, {chaos.kills}, {len(chaos.violations)} violations, "
            f"{time.monotonic() - start:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        if chaos.violations:
            sys.stderr.write((chaos.folder / "driver.log").read_text()[-4000:])
        if sum(chaos.kills.values()) >= kills:
            return
        name, after = ("query", dict(state)) if name in ("update", "compact") else next(todo)


def main(kills: int, seed: int) -> None:
    """Prints what was killed and what was found."""
    start = time.perf_counter()
    chaos = torture_shards(kills, seed)
    for violation in chaos.violations[:50]:
        print(violation, file=sys.stderr)
    shown = ", ".join(f"{n} {what}s" for what, n in chaos.kills.items())
    print(
        f"{sum(chaos.kills.values())} kills ({shown}) in {chaos.rounds} rounds on Ray, "
        f"{len(chaos.violations)} violations, {time.perf_counter() - start:.0f} s"
    )
    sys.exit(bool(chaos.violations))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--drive", nargs=3, required=True, help="used by torture.py --shards")
    name, folder, address = parser.parse_args().drive
    drive(Path(folder), address, name)

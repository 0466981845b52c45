"""A server under load: requests a second, waiting times, memory, and a soak beside a writer.

    python tools/bench_serve.py [--rows 100000] [--clients 1,8,64] [--seconds 10] [--json]
    python tools/bench_serve.py --soak 5

The index is that of the demo, with its model, or --index; --rows more rows of a few words are added
to a copy of it, whose vectors are drawn and not encoded. The server is a process of its own, with
as many threads as it takes by itself; each client is a thread here, with a connection of its own,
that asks again as soon as it is answered.

- search: `/api/search`, by words, without the model;
- query: `/api/query`, a whole one: tokens, forward pass, search, rows;
- ratio: one client's median whole query, over the median of its forward pass and search alone,
  in this process, on the same index, with the same questions, in turns;
- memory: of the server, before and after --requests requests of 8 clients, a tenth of them whole
  queries;
- soak: all clients ask for so many minutes, while `forvalue add` adds rows again and again. Each
  answer, without the rows that were added, is compared with what `forvalue query --json` printed
  before. Anything but an equal answer, 429 and 503 is an error, and the exit status is 1.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode, urlsplit

import click
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

import forvalue_index
from forvalue_index import InfluenceIndex
from forvalue_index.pipeline.session import Session
from forvalue_index.records import Encoded, Row, Sample
from forvalue_index.store.store import Store

DEMO = Path(forvalue_index.__file__).parent / "assets" / "demo"
ADDED = "soak-"  # what the keys of rows begin with that the writer adds
BUSY = (429, 503)
TOLERANCE = 1e-4
WORDS = [f"word{number}" for number in range(3000)]


class Drawn(Session):
    """A session whose rows get vectors that are drawn, so that many are added soon."""

    def encode(
        self, samples: list[Sample], report: Any = None, refused: Any = None
    ) -> list[Encoded]:
        """Returns vectors of random direction, and of the length that the index's have."""
        if not samples:
            return []
        dim, length = self.store.dim, float(np.median(self.store.snapshots.current.figures().norm))
        rng = np.random.default_rng(int(samples[0].content_hash[:12], 16))
        vectors = rng.standard_normal((len(samples), dim), np.float32)
        vectors *= length / np.linalg.norm(vectors, axis=1, keepdims=True)
        return [Encoded(vector, 1.0, length, 1.0) for vector in vectors]


class Client:
    """One connection to the server."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=300)

    def search(self, question: Row) -> tuple[int, Any]:
        """Returns status and answer of a search by words."""
        words = urlencode({"words": question["prompt"], "k": 10})
        return self._answer("GET", f"/api/search?{words}")

    def query(self, question: Row, k: int = 10) -> tuple[int, Any]:
        """Returns status and answer of a whole query."""
        return self._answer("POST", "/api/query", json.dumps({**question, "k": k}))

    def _answer(self, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
        headers = {} if body is None else {"content-type": "application/json"}
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())


Ask = Callable[[Client, Row], tuple[int, Any]]
WAYS: dict[str, Ask] = {"search": Client.search, "query": Client.query}


@contextmanager
def server(index: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Yields the address and the process of a server whose model is loaded."""
    command = [
        sys.executable,
        "-m",
        "forvalue_index",
        "serve",
        "--index",
        str(index),
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            client = Client(address)
            while client._answer("GET", "/api/health")[1]["model"] == "loading":
                time.sleep(0.1)
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def load(
    address: str, ask: Ask, questions: Sequence[Row], clients: int, seconds: float
) -> dict[str, Any]:
    """Returns what so many clients got in so many seconds."""
    times: list[float] = []
    statuses: Counter[int] = Counter()
    until = time.monotonic() + seconds

    def run(number: int) -> None:
        client = Client(address)
        while time.monotonic() < until:
            question = questions[number % len(questions)]
            began = time.perf_counter()
            status, _ = ask(client, question)
            times.append(time.perf_counter() - began)
            statuses[status] += 1
            number += clients

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    p50, p95 = np.percentile(times, [50, 95]) * 1e3
    return {
        "clients": clients,
        "per_second": round(len(times) / (time.monotonic() - began), 1),
        "p50_ms": round(float(p50), 1),
        "p95_ms": round(float(p95), 1),
        "statuses": dict(statuses),
    }


def ratio(
    address: str, index: InfluenceIndex, questions: Sequence[Row], n: int
) -> dict[str, float]:
    """Returns the medians of whole queries and of their passes and searches, and their ratio."""
    client = Client(address)
    whole, forward, search = [], [], []
    for number in range(n + 3):
        question = questions[number % len(questions)]
        began = time.perf_counter()
        client.query(question)
        asked = time.perf_counter()
        samples = index.samples(question)
        prepared = time.perf_counter()
        vectors = index.vectors(samples)
        encoded = time.perf_counter()
        index.find(samples, vectors, 10)
        if number >= 3:  # the first ones warm both up
            whole.append(asked - began)
            forward.append(encoded - prepared)
            search.append(time.perf_counter() - encoded)
    alone = median(a + b for a, b in zip(forward, search, strict=True))
    return {
        "whole_ms": round(median(whole) * 1e3, 2),
        "forward_ms": round(median(forward) * 1e3, 2),
        "search_ms": round(median(search) * 1e3, 2),
        "ratio": round(median(whole) / alone, 3),
    }


def memory(address: str, process: psutil.Process, questions: Sequence[Row], n: int) -> Row:
    """Returns the server's memory before and after n requests, in MB."""
    before, clients = process.memory_info().rss, 8

    def run(first: int) -> None:
        client = Client(address)
        for number in range(first, n, clients):
            way = Client.search if number % 10 else Client.query
            way(client, questions[number % len(questions)])

    threads = [threading.Thread(target=run, args=(first,)) for first in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = process.memory_info().rss
    return {
        "requests": n,
        "before_mb": round(before / 1e6, 1),
        "after_mb": round(after / 1e6, 1),
        "growth_mb": round((after - before) / 1e6, 1),
    }


def soak(
    address: str, directory: Path, questions: Sequence[Row], clients: int, minutes: float
) -> dict[str, Any]:
    """Returns what clients got beside a writer, and how many answers were not the command's."""
    expected = [printed(directory, question) for question in questions]
    statuses: Counter[str] = Counter()
    wrong: list[str] = []
    over = threading.Event()

    def run(number: int) -> None:
        client = Client(address)
        while not over.is_set():
            place = number % len(questions)
            number += clients
            try:
                status, answer = client.query(questions[place], k=30)
            except (OSError, http.client.HTTPException) as error:
                statuses[type(error).__name__] += 1
                wrong.append(repr(error))
                client = Client(address)
                continue
            statuses[str(status)] += 1
            if status in BUSY:
                time.sleep(0.1)
            elif status != 200:
                wrong.append(f"{status}: {answer}")
            elif not equal(answer["hits"], expected[place]):
                wrong.append(f"question {place}: {[h['key'] for h in answer['hits']]}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    additions = written(directory, time.monotonic() + 60 * minutes, over)
    for thread in threads:
        thread.join()
    return {
        "minutes": minutes,
        "clients": clients,
        "statuses": dict(statuses),
        "rows_added": additions,
        "wrong": len(wrong),
        "first_wrong": wrong[:3],
    }


def written(directory: Path, until: float, over: threading.Event) -> int:
    """Adds rows by the command until the time is over; returns how many were added."""
    n = 0
    try:
        while time.monotonic() < until:
            with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
                rows = [
                    {"id": f"{ADDED}{n + i}", "prompt": f"zq {n + i}", "response": f" {n + i}"}
                    for i in range(20)
                ]
                file.write("".join(f"{json.dumps(row)}\n" for row in rows))
                file.flush()
                command(directory, "add", file.name)
            n += 20
            time.sleep(1)
    finally:
        over.set()
    return n


def printed(directory: Path, question: Row) -> list[Row]:
    """Returns the hits that the command prints."""
    words = ["--prompt", question["prompt"], "--response", question["response"]]
    out = command(directory, "query", *words, "--json", "--no-server")
    return [json.loads(line) for line in out.splitlines()]


def command(directory: Path, name: str, *arguments: str) -> str:
    """Returns what a command prints about an index."""
    words = [sys.executable, "-m", "forvalue_index", name, *arguments, "--index", str(directory)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{name} failed: {done.stderr.strip()}")
    return done.stdout


def equal(hits: Sequence[Row], expected: Sequence[Row]) -> bool:
    """Returns whether an answer is the expected one, but for rows that were added meanwhile."""
    own = [hit for hit in hits if not hit["key"].startswith(ADDED)][: len(expected)]
    return len(own) == len(expected) and all(
        hit["key"] == other["key"]
        and abs(hit["score"] - other["score"]) <= TOLERANCE * abs(other["score"])
        for hit, other in zip(own, expected, strict=True)
    )


def grown(directory: Path, rows: int) -> None:
    """Adds rows of a few words, with drawn vectors, to an index."""
    store = Store.open(directory)
    rng = np.random.default_rng(0)
    with InfluenceIndex(Drawn(store, store.config, None)) as index:
        format = index.config.format
        for start in range(0, rows, 20_000):
            picked = rng.integers(0, len(WORDS), (min(20_000, rows - start), 8)).tolist()
            index.add(
                [
                    {
                        **({} if format.key_field is None else {format.key_field: f"drawn-{n}"}),
                        format.prompt_field: " ".join(WORDS[word] for word in words[:5]),
                        format.response_field: " " + " ".join(WORDS[word] for word in words[5:]),
                    }
                    for n, words in enumerate(picked, start)
                ]
            )


@click.command()
@click.option("--index", "given", type=click.Path(path_type=Path), help="Instead of the demo's.")
@click.option("--questions", "file", type=click.Path(path_type=Path), help="Of that index.")
@click.option("--rows", default=100_000, show_default=True, help="Drawn rows in the second index.")
@click.option("--clients", default="1,8,64", show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Of each measurement.")
@click.option("--requests", default=10_000, show_default=True, help="For the memory.")
@click.option("--soak", "minutes", default=0.0, help="Minutes beside a writer, and nothing else.")
@click.option("--json", "as_json", is_flag=True)
def main(
    given: Path | None,
    file: Path | None,
    rows: int,
    clients: str,
    seconds: float,
    requests: int,
    minutes: float,
    as_json: bool,
) -> None:
    """Measures a server of the demo's index, and of a larger one."""
    numbers = [int(number) for number in clients.split(",")]
    questions = [
        {name: row[name] for name in ("prompt", "response")}
        for row in map(json.loads, (file or DEMO / "questions.jsonl").read_text().splitlines())
    ]
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "index"
        if given is not None:
            shutil.copytree(given, first)
        else:
            InfluenceIndex.build(first, DEMO / "train.jsonl", str(DEMO / "model"))[0].close()
        for extra in [0, rows] if rows and not minutes else [0]:
            if extra:
                grown(first, extra)
            with server(first) as (address, process), InfluenceIndex.open(first) as index:
                size = len(index)
                if minutes:
                    found.append(
                        {
                            "rows": size,
                            "soak": soak(address, first, questions, numbers[-1], minutes),
                        }
                    )
                    continue
                loads = {
                    name: [load(address, ask, questions, n, seconds) for n in numbers]
                    for name, ask in WAYS.items()
                }
                found.append(
                    {
                        "rows": size,
                        "ratio": ratio(address, index, questions, 50),
                        **loads,
                        "memory": memory(address, process, questions, requests),
                    }
                )
    cores = os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", "as many as torch takes")
    machine = f"{platform.processor() or platform.machine()}, {cores} cores, threads: {threads}"
    if as_json:
        print(json.dumps({"machine": machine, "found": found}))
    else:
        show(machine, found)
    if any(one["soak"]["wrong"] for one in found if "soak" in one):
        sys.exit(1)


def show(machine: str, found: Sequence[Row]) -> None:
    """Prints the figures for people."""
    console = Console()
    console.print(machine, style="dim")
    for one in found:
        console.print(f"[bold]{one['rows']:,} rows[/bold]")
        for name in ("ratio", "memory", "soak"):
            if name in one:
                console.print(f"{name}: {one[name]}", highlight=False, markup=False)
        if "query" not in one:
            continue
        table = Table("way", "clients", "requests/s", "p50 ms", "p95 ms", "statuses", box=None)
        for name in WAYS:
            for row in one[name]:
                table.add_row(name, *(str(value) for value in row.values()))
        console.print(table)


if __name__ == "__main__":
    main()

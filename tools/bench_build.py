"""What building costs beside the forward pass it cannot do without.

    python tools/bench_build.py --model MODEL
    python tools/bench_build.py --model MODEL --random 128M --length 128 --rows 16 --json
    python tools/bench_build.py --model MODEL --random 0.5B --dtype bfloat16 --device cuda
    python tools/bench_build.py --model MODEL --profile

For each length of row, in a process of its own and in turns, medians over repeats:

    forward    the model's own forward pass of the batches that the product plans, with the logits
               of every position and the loss
    add        `InfluenceIndex.add` of the same rows: reading, tokenising, vectors, files, catalogue
    backward   forward, and backward through the whole model: what gradient methods start from;
               last, for the memory that it leaves to the process makes forward passes faster

Rows are random words of the model's vocabulary, cut to the length; every token is scored.
`--random` takes random weights of a Llama of that size, with a vocabulary of 151,936 as Qwen's, and
the tokenizer of MODEL: for speed, weights do not matter. Memory is the most that a step had taken
beside what was there when it began. `--profile` shows instead where the time of `add` goes (on a
CPU; a GPU works on while the profile is taken).
"""

from __future__ import annotations

import cProfile
import json
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from bench_recipes import machine
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.config import ModelConfig, VectorConfig
from forvalue_index.model.batching import plan_batches
from forvalue_index.model.language_model import LanguageModel, load_model, wrap_model
from forvalue_index.model.runner import Runner
from forvalue_index.records import Row, Sample

QWEN_VOCABULARY = 151_936
SHAPES = {  # hidden, layers, inner, heads, key-value heads
    "128M": (512, 12, 2048, 8, 8),
    "0.5B": (896, 24, 4864, 14, 2),
    "1.5B": (1536, 28, 8960, 12, 2),
}


PARTS = {  # of `add`: the function that all of a part's time is spent in
    "hidden states": ("encoder.py", "_hidden"),
    "logits and errors": ("head.py", "errors"),
    "recipe": ("recipe.py", "__call__"),
    "sketch": ("sketch.py", "update"),
    "projection": ("vectoriser.py", "finish"),
}


@dataclass(frozen=True)
class Figures:
    """What one row of the table has: medians over repeats."""

    model: str
    parameters: int
    vocabulary: int
    length: int  # tokens of a row
    rows: int
    forward_samples_s: float
    forward_tokens_s: float
    forward_mib: float
    add_samples_s: float
    add_tokens_s: float
    add_mib: float
    backward_samples_s: float | None
    backward_mib: float | None
    ratio_to_forward: float  # throughput of add over that of forward
    ratio_to_backward: float | None
    build_ratio_to_forward: float  # of a first build, which learns the vectoriser as well


@dataclass(frozen=True)
class Source:
    """Where the model comes from."""

    model: str
    size: str | None  # of random weights; None: the model's own
    dtype: str
    device: str | None

    @property
    def name(self) -> str:
        """The model's, for people."""
        return Path(self.model).name if self.size is None else f"random {self.size}"

    def load(self) -> LanguageModel:
        """Returns the model; with random weights, a Llama with the tokenizer of `model`."""
        if self.size is None:
            return load_model(ModelConfig(self.model, dtype=self.dtype), self.device)
        hidden, layers, inner, heads, kv_heads = SHAPES[self.size]
        config = LlamaConfig(
            vocab_size=QWEN_VOCABULARY,
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=inner,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        made: Any = LlamaForCausalLM(config)
        place = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        made = made.to(place, torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype))
        return wrap_model(made, AutoTokenizer.from_pretrained(self.model))


class Memory:
    """The most that was taken since `reset`, of the GPU's memory or the process's."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._before = 0

    def reset(self) -> None:
        """Begins to count."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            Path("/proc/self/clear_refs").write_text("5")
        self._before = self._now()

    def taken(self) -> float:
        """Returns MiB taken at most since then, beside what was there."""
        if self._cuda:
            return (torch.cuda.max_memory_allocated(self._device) - self._before) / 2**20
        return (_status("VmHWM") - self._before) / 2**20

    def _now(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._cuda else _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name))
    return int(line.split()[1]) * 1024


def random_rows(tokenizer: Any, n: int, length: int, seed: int) -> list[Row]:
    """Returns rows of random words, each of at least `length` tokens; not two are the same."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, len(tokenizer), (n, 2 * length))
    return [{"text": tokenizer.decode(ids, skip_special_tokens=True)} for ids in words]


def measure(source: Source, length: int, n: int, repeats: int, vector: VectorConfig) -> Figures:
    """Returns the figures of rows of one length."""
    lm = source.load()
    format = FormatConfig(text_field="text", max_length=length)
    memory = Memory(lm.device)
    seconds: dict[str, list[float]] = {"forward": [], "add": [], "backward": [], "build": []}
    taken: dict[str, list[float]] = {"forward": [], "add": [], "backward": [], "build": []}

    def timed(what: str, work: Callable[[], object]) -> None:
        memory.reset()
        start = time.perf_counter()
        work()
        if lm.device.type == "cuda":
            torch.cuda.synchronize(lm.device)
        seconds[what].append(time.perf_counter() - start)
        taken[what].append(memory.taken())

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)

        def build() -> None:
            rows = random_rows(lm.tokenizer, n, length, 0)
            build_in(path / f"build-{len(seconds['build'])}", rows).close()

        def build_in(place: Path, rows: list[Row]) -> InfluenceIndex:
            return InfluenceIndex.build(place, rows, lm, format=format, vector=vector)[0]

        with build_in(path / "add", random_rows(lm.tokenizer, n, length, 1)) as index:
            samples = index.samples(random_rows(lm.tokenizer, n, length, 2))
            forward(lm, samples, backward=False)  # warm
            for repeat in range(repeats):
                rows = random_rows(lm.tokenizer, n, length, 3 + repeat)
                timed("forward", lambda: forward(lm, samples, backward=False))
                timed("add", lambda rows=rows: index.add(rows))  # type: ignore[misc]
                timed("build", build)
            backward = lm.model.dtype == torch.float32 or lm.device.type == "cuda"
            if backward:
                try:
                    if lm.device.type == "cuda":
                        forward(lm, samples, backward=True)  # warm
                    timed("backward", lambda: forward(lm, samples, backward=True))
                except torch.OutOfMemoryError:  # gradients take what the product does without
                    backward = False
                    lm.model.zero_grad()
                    lm.model.requires_grad_(False)
    middle = {what: statistics.median(times) for what, times in seconds.items() if times}
    most = {what: statistics.median(values) for what, values in taken.items() if values}
    tokens = sum(len(sample.input_ids) for sample in samples)
    return Figures(
        model=source.name,
        parameters=sum(p.numel() for p in lm.model.parameters()),
        vocabulary=lm.head.vocabulary,
        length=length,
        rows=n,
        forward_samples_s=n / middle["forward"],
        forward_tokens_s=tokens / middle["forward"],
        forward_mib=most["forward"],
        add_samples_s=n / middle["add"],
        add_tokens_s=tokens / middle["add"],
        add_mib=most["add"],
        backward_samples_s=n / middle["backward"] if backward else None,
        backward_mib=most["backward"] if backward else None,
        ratio_to_forward=middle["forward"] / middle["add"],
        ratio_to_backward=middle["backward"] / middle["add"] if backward else None,
        build_ratio_to_forward=middle["forward"] / middle["build"],
    )


def forward(lm: LanguageModel, samples: list[Sample], *, backward: bool) -> None:
    """Runs the model's own forward pass with its loss over the batches that are planned."""
    lm.model.requires_grad_(backward)
    with torch.set_grad_enabled(backward):
        budget = Runner(lm).token_budget
        for positions in plan_batches(samples, budget, same_length=lm.length_matters):
            inputs = lm.collate(samples, positions).to(lm.device).inputs
            loss = lm.model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
            if backward:
                loss.backward()
                lm.model.zero_grad()
            loss.detach().item()
    lm.model.requires_grad_(False)


def profile(lm: LanguageModel, length: int, n: int, vector: VectorConfig) -> dict[str, float]:
    """Returns the share of each of PARTS in the time of `add`, and of the rest; and "seconds"."""
    format = FormatConfig(text_field="text", max_length=length)
    rows = [random_rows(lm.tokenizer, n, length, seed) for seed in range(3)]
    watch = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        with InfluenceIndex.build(path, rows[0], lm, format=format, vector=vector)[0] as index:
            index.add(rows[1])  # warm
            start = time.perf_counter()
            watch.runcall(index.add, rows[2])
            total = time.perf_counter() - start
    spent: dict[tuple[str, str], float] = {}
    stats: Any = pstats.Stats(watch)
    for (file, _, name), (_, _, _, cumulative, _) in stats.stats.items():
        spent[Path(file).name, name] = spent.get((Path(file).name, name), 0.0) + cumulative
    shares = {part: spent.get(place, 0.0) / total for part, place in PARTS.items()}
    return shares | {"the rest": 1 - sum(shares.values()), "seconds": total}


def show_profile(shares: dict[int, dict[str, float]]) -> None:
    """Prints where the time goes, a row for each length."""
    table = Table(title="where the time of add goes", title_justify="left")
    for column in ("length", *PARTS, "the rest", "seconds"):
        table.add_column(column, justify="right")
    for length, row in shares.items():
        cells = [f"{value:.1%}" for name, value in row.items() if name != "seconds"]
        table.add_row(str(length), *cells, f"{row['seconds']:.2f}")
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    console.print(machine())


def show(results: list[Figures]) -> None:
    """Prints the figures as a table."""
    table = Table(title="tokens a second, and MiB taken at most", title_justify="left")
    for column in ("model", "length", "forward", "add", "forward+backward"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for column in ("add / forward", "build / forward", "add / backward"):
        table.add_column(column, justify="right")
    for row in results:
        backward = "–"
        if row.backward_samples_s is not None:
            tokens = row.backward_samples_s * row.forward_tokens_s / row.forward_samples_s
            backward = f"{tokens:,.0f} ({row.backward_mib:,.0f})"
        table.add_row(
            f"{row.model}, {row.parameters / 1e6:.0f}M",
            str(row.length),
            f"{row.forward_tokens_s:,.0f} ({row.forward_mib:,.0f})",
            f"{row.add_tokens_s:,.0f} ({row.add_mib:,.0f})",
            backward,
            f"{row.ratio_to_forward:.2f}",
            f"{row.build_ratio_to_forward:.2f}",
            f"{row.ratio_to_backward:.2f}" if row.ratio_to_backward else "–",
        )
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    console.print(machine())


@click.command()
@click.option("--model", required=True, help="A causal language model.")
@click.option("--random", "size", type=click.Choice(list(SHAPES)), help="Random weights instead.")
@click.option("--length", type=click.IntRange(2), multiple=True, default=(64, 128, 256, 512))
@click.option("--tokens", type=int, help="In all rows.  [default: 32768; 524288 on a GPU]")
@click.option("--rows", type=int, help="Instead of --tokens.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--dtype", default="auto", show_default=True)
@click.option("--device", help="[default: CUDA if there is one]")
@click.option("--recipe", default=VectorConfig().recipe, show_default=True)
@click.option("--profile", "profiled", is_flag=True, help="Show where the time of add goes.")
@click.option("--json", "as_json", is_flag=True, help="A list of rows, one for each setting.")
def main(
    model: str,
    size: str | None,
    length: tuple[int, ...],
    tokens: int | None,
    rows: int | None,
    repeats: int,
    dtype: str,
    device: str | None,
    recipe: str,
    profiled: bool,
    as_json: bool,
) -> None:
    """Time adding to an index beside the bare forward pass, and forward with backward.

    Example: python tools/bench_build.py --model gpt2 --length 128
    """
    source = Source(model, size, dtype, device)
    vector = VectorConfig(recipe=recipe)
    if tokens is None:  # a GPU takes 32,768 in one batch, beside which nothing else can be done
        on_gpu = device.startswith("cuda") if device else torch.cuda.is_available()
        tokens = 2**19 if on_gpu else 2**15
    counts = {wanted: rows or max(8, tokens // wanted) for wanted in length}
    if profiled:
        lm = source.load()
        show_profile({wanted: profile(lm, wanted, n, vector) for wanted, n in counts.items()})
        return
    results = []
    for wanted, n in counts.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            results.append(pool.submit(measure, source, wanted, n, repeats, vector).result())
        print(f"{source.name}, {wanted} tokens: done", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps([asdict(row) for row in results], indent=1))
    else:
        show(results)


if __name__ == "__main__":
    main()

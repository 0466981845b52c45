"""Whether `audit` knows how many rows are wrong, and reports prompts that are a word apart.

    python tools/bench_audit.py FILE [FILE ...] --model MODEL

Of random rows of each FILE, 0, 5 and 20 % get the response of another one, drawn at random, and
`audit` is asked how many are wrong, without and with trusted rows, which are others of FILE. Beside
them, TWINS rows are put in whose prompt is that of a right row with a word added, and whose
response is another: how many of them are reported as "near-contradiction". They are wrong, too.
The share of wrong rows is that of responses that differ from the row's own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_recipes import machine, note
from rich.console import Console
from rich.table import Table

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.analysis.evaluate.mislabel import corrupt
from forvalue_index.config import ModelConfig
from forvalue_index.data.field_guess import guess
from forvalue_index.data.sources import open_rows
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.records import Row

SHARES = (0.0, 0.05, 0.2)
TWINS = 5
WORD = "really"  # is added to the prompt of a twin


@dataclass(frozen=True)
class Told:
    """What `audit` said of some rows, and what is true."""

    set: str
    seed: int
    trusted: int  # rows
    rows: int
    wrong: float  # share of the rows
    share: float | None  # as estimated; None: it cannot be told
    low: float | None
    high: float | None
    separation: float | None
    twins: int  # that were reported, of TWINS

    @property
    def verdict(self) -> str:
        """Whether that is what it should say: few or none of none, a third off at most of many."""
        if self.share is None or self.low is None or self.high is None:
            return "not told"
        if self.wrong >= SHARES[-1]:
            return "right" if abs(self.share - self.wrong) <= self.wrong / 3 else "wrong"
        if self.wrong < SHARES[1]:
            return "right" if self.low <= 0 else "wrong"
        return "right" if self.low <= self.wrong <= self.high else "wrong"


def measure(
    path: Path, lm: LanguageModel, count: int, trusted: int, seed: int, **settings: Any
) -> Iterator[Told]:
    """Yields what `audit` says of rows of a file, for each share of wrong ones.

    `settings` are of the format.
    """
    rows = [row for _, row in open_rows(path)]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows))
    chosen = [rows[i] for i in order[:count]]
    known = [rows[i] for i in order[count : count + trusted]]
    format = FormatConfig(**guess(rows[0])[0], **settings)
    for share in SHARES:
        changed, wrong = corrupt(chosen, format.response_field, share, None, rng)
        twins = twins_of(changed, np.flatnonzero(~wrong), format)
        marked = [row | {"number": i} for i, row in enumerate([*changed, *twins])]
        note(f"{path.stem}, seed {seed}: {wrong.sum()} of {len(chosen)} exchanged")
        with tempfile.TemporaryDirectory() as folder:
            index, _ = InfluenceIndex.build(Path(folder) / "index", marked, lm, format=format)
            with index:
                numbers = {item.id: item.row["number"] for item in index.stored(index.snapshot.ids)}
                for given in (None, known) if known else (None,):
                    found = index.audit(trusted=given)
                    near = {
                        numbers[id]
                        for id, twin in found.twins.items()
                        if twin.kind == "near-contradiction"
                    }
                    told = found.estimate
                    yield Told(
                        path.stem,
                        seed,
                        len(given or ()),
                        len(marked),
                        float(wrong.sum() + len(twins)) / len(marked),
                        told.share,
                        told.low,
                        told.high,
                        told.separation,
                        sum(number in near for number in range(len(changed), len(marked))),
                    )


def twins_of(rows: Sequence[Row], right: np.ndarray, format: FormatConfig) -> list[Row]:
    """Returns rows whose prompt is a right row's with WORD added, and whose response is another."""
    result: list[Row] = []
    for place in right[:TWINS]:
        words = str(rows[place][format.prompt_field]).split(" ")
        middle = len(words) // 2
        prompt = " ".join([*words[:middle], WORD, *words[middle:]])
        response = rows[right[-1 - len(result)]][format.response_field]
        result.append(rows[place] | {format.prompt_field: prompt, format.response_field: response})
    return result


@click.command(help=__doc__)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", required=True)
@click.option("--rows", default=300, show_default=True, help="Of each file.")
@click.option("--trusted", default=60, show_default=True, help="Trusted rows; 0: only without.")
@click.option("--seeds", default=1, show_default=True)
@click.option("--max-length", default=300, show_default=True, help="Tokens of a row.")
@click.option("--chat", is_flag=True, help="Rows go through the model's chat template.")
@click.option("--results", type=click.Path(path_type=Path), help="File for the figures.")
def main(
    files: tuple[Path, ...],
    model: str,
    rows: int,
    trusted: int,
    seeds: int,
    max_length: int,
    chat: bool,
    results: Path | None,
) -> None:
    """Measures, and prints a table."""
    lm, settings = load_model(ModelConfig(model)), {"max_length": max_length, "chat": chat}
    table = Table(
        "set", "seed", "trusted", "wrong", "estimate", "from-to", "separation", "", "twins"
    )
    for path in files:
        for seed in range(seeds):
            for told in measure(path, lm, rows, trusted, seed, **settings):
                if results is not None:
                    with results.open("a") as file:
                        file.write(json.dumps(asdict(told)) + "\n")
                table.add_row(
                    *(told.set, str(told.seed), str(told.trusted), f"{told.wrong:.3f}"),
                    "–" if told.share is None else f"{told.share:.3f}",
                    "–" if told.low is None else f"{told.low:.3f}-{told.high:.3f}",
                    "–" if told.separation is None else f"{told.separation:.2f}",
                    *(told.verdict, f"{told.twins}/{TWINS}"),
                )
    console = Console(width=100)
    console.print(table)
    console.print(f"{Path(model).name}, {rows} rows of each file; {machine()}")


if __name__ == "__main__":
    main()

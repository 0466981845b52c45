"""What the choice of `select` takes as its budget grows: time and memory, and a formula of both.

    python tools/bench_select.py --samples 100000 --budgets 5000,10000,20000,50000

Rows and vectors are those of tools/bench_scale.py: 32 rows at a time are alike. A row's value is
its score for the sum of a few such groups and noise. The model is left out, and so are the values,
which `score` computes in the same way. "memory" is the most beside mapped files.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_scale import build, centres, growth, index_of, measured, opened

from forvalue_index.analysis.greedy import Greedy
from forvalue_index.index import InfluenceIndex

TARGETS = 20  # groups that the values are like


def values(index: InfluenceIndex) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of all rows, and their values."""
    noise = np.random.default_rng(1).standard_normal(index.dim)
    query = centres(np.arange(TARGETS), index.dim).sum(0) + 3 * noise
    ids, scores = index.flat.scores(query[None].astype(np.float32))
    return ids, scores[0].astype(np.float64)


def main() -> None:
    """Measures budgets one after another, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--budgets", default="1000,2000,5000", help="by commas")
    parser.add_argument("--dim", type=int, default=4096)
    arguments = parser.parse_args()
    seconds, memory = dict[int, float](), dict[int, float]()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "index"
        build(directory, arguments.samples, arguments.dim, None)
        session = opened(directory)
        index = index_of(session)
        ids, value = values(index)
        print(f"of {arguments.samples:,} rows | seconds | memory, MB\n---|---|---")
        for budget in map(int, arguments.budgets.split(",")):
            greedy = Greedy(index, ids, value, np.zeros(len(ids), np.int64), 1.0, 0.98)
            found = measured(lambda greedy=greedy, budget=budget: _chosen(greedy, budget))  # type: ignore[misc]
            seconds[budget], memory[budget] = found["seconds"]["select"], found["memory"]
            print(f"{budget:,} | {seconds[budget]:.1f} | {memory[budget]:.0f}", flush=True)
        session.close()
    laws = growth(seconds), growth(memory)
    print(f"growth, m = budget / 1,000,000 | {laws[0]} | {laws[1]}")


def _chosen(greedy: Greedy, budget: int) -> dict[str, float]:
    start = time.perf_counter()
    assert len(greedy.choose(budget)) == budget
    return {"select": time.perf_counter() - start}


if __name__ == "__main__":
    main()

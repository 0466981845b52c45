"""Writes tests/assets/index/NUMBER: a model, an index made with it, and what the index answers.

    python tools/make_index_asset.py

Run it once when the stored form of an index changes (segments, vectoriser, fingerprint, catalogue,
derived indexes), and commit the folder: later versions must open it, answer the same and go on
with it. An asset is never made again once it was released; before that, remove its folder first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
from contextlib import chdir, closing
from pathlib import Path
from typing import Any

from torture import make_model

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, VectorConfig
from forvalue_index.analysis.values import sample_values
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.records import Hit, Row

FOLDER = Path(__file__).parent.parent / "tests" / "assets" / "index"
PARTS = 24, 20, 20  # rows of each segment
REMOVED = 3, 17, 30, 31, 58
SOURCES = "math", "code", "songs"
FACTORY = "IVF4,SQ8"
K = 5
FLAT: dict[str, Any] = {"flat": True}
ASKED = {
    "derived": {},
    "dot": FLAT,
    "opponents": FLAT | {"opponents": True},
    "cosine": FLAT | {"metric": "cosine"},
    "per-token": FLAT | {"metric": "per-token"},
    "decorrelated": FLAT | {"metric": "decorrelated"},
    "where": FLAT | {"where": "source=math"},
    "exact": {"exact": True},
}
"""Name of an answer -> the settings of `InfluenceIndex.query` that give it."""


def training_rows() -> list[Row]:
    """The rows of the index: with keys, words of different lengths, and metadata."""
    rng = random.Random(0)

    def words(n: int) -> str:
        letters = "abcdefghijklmnopqrstuvwxyz"
        return " ".join("".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(n))

    return [
        {
            "id": f"k{i}",
            "prompt": words(rng.randint(1, 3)),
            "response": f" {words(rng.randint(1, 2))}",
            "source": SOURCES[i % 3],
            "n": i,
            "more": {"tags": ["Grüße", "数据"][: i % 3], "share": i / 64, "none": None},
        }
        for i in range(sum(PARTS))
    ]


def questions() -> list[Row]:
    """What the index is asked."""
    return [
        {"prompt": "which of these", "response": " was it"},
        {"prompt": "one more", "response": " query"},
    ]


def build(folder: Path, lm: LanguageModel) -> None:
    """Makes an index of three segments, with tombstones, metadata, a reject and what is derived."""
    rows = training_rows()
    unusable = {"id": "unusable", "prompt": "no response"}
    settings: dict[str, Any] = {
        "format": FormatConfig(key_field="id"),
        "vector": VectorConfig(dim=48, sketch_dim=256),
    }
    index, _ = InfluenceIndex.build(folder, rows[: PARTS[0]], lm, **settings)
    with index:
        index.add(rows[PARTS[0] : PARTS[0] + PARTS[1]])
        index.add([*rows[PARTS[0] + PARTS[1] :], unusable], on_error="skip")
        index.remove([f"k{i}" for i in REMOVED])
        index.optimize(FACTORY)
        index.query(questions())  # which notes that the segments are intact
    with closing(sqlite3.connect(folder / "catalog.db")) as raw:  # no write-ahead log
        raw.execute("PRAGMA journal_mode = DELETE")


def shown(hits: list[Hit]) -> list[list[list[Any]]]:
    """The hits of each question as JSON values: key and score."""
    return [
        [[hit.key, hit.score] for hit in hits if hit.query == number]
        for number in range(len(questions()))
    ]


def answers(index: InfluenceIndex) -> dict[str, Any]:
    """All that an index of this make is asked, as JSON values."""
    found = sample_values(index, questions())
    return {
        "hits": {name: shown(index.query(questions(), K, **how)) for name, how in ASKED.items()},
        "values": dict(zip(map(str, found.ids.tolist()), found.value.tolist(), strict=True)),
        "rows": {sample.key: sample.row for sample in index.rows()},
    }


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = FOLDER / f"{len(list(FOLDER.iterdir())) + 1:04d}"
    folder.mkdir()
    with chdir(folder):  # so that the model's name is a relative one
        make_model(Path("model"))
        lm = load_model(ModelConfig("model"), "cpu")
        build(Path("index"), lm)
        with InfluenceIndex.open("index", model=lm) as index:
            text = json.dumps(answers(index), indent=1, ensure_ascii=False)
            Path("answers.json").write_text(text + "\n")
        for name in ("catalog.db-wal", "catalog.db-shm"):
            (Path("index") / name).unlink(missing_ok=True)
    os.sync()
    print(folder)


if __name__ == "__main__":
    main()

"""Other tools on the same rows: bergson, kronfluence and dattri, as bench_peers.py runs them.

They read whole texts and score all tokens of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_peers import Bergson, Driven, Peer, write
from numpy.typing import NDArray
from peers.environment import environment
from peers.steps import size
from transformers import AutoTokenizer

from forvalue_index.config import ModelConfig
from forvalue_index.errors import InputError
from forvalue_index.records import Row

PEERS = ("bergson", "kronfluence", "dattri")
TOKENS = 512  # of a batch of bergson


@dataclass(frozen=True)
class Took:
    """The scores of a peer, and what they took."""

    scores: NDArray[np.float32]  # [q, n]
    build: float  # seconds
    ask: float  # seconds
    size: int  # bytes kept of a row


def peer_scores(
    name: str,
    model: ModelConfig,
    rows: Sequence[Row],
    queries: Sequence[Row],
    folder: Path,
    venv: Path,
) -> Took:
    """Returns the scores of a peer; it is run in `folder`.

    Raises:
        InputError: the model is an adapter.
    """
    if model.adapters:
        raise InputError(f"{name} is run with whole models here: use --full")
    folder = folder.resolve()
    folder.mkdir(exist_ok=True)
    path, commands = str(Path(model.name).resolve()), environment(venv.resolve())
    peer: Peer = (
        Bergson(path, folder, commands, TOKENS)
        if name == "bergson"
        else Driven(name, path, folder, commands)
    )
    tokenizer = AutoTokenizer.from_pretrained(path)
    train, asked = (
        write([{"text": text_of(row, tokenizer)} for row in some], folder / f"{part}.jsonl")
        for part, some in (("train", rows), ("asked", queries))
    )
    out = folder / "index"
    build = peer.build(train, out)
    kept = size(out)
    step, scores = peer.scores(out, asked)
    return Took(scores, build.wall, step.wall, kept // len(rows))


def text_of(row: Row, tokenizer: Any) -> str:
    """Returns the whole text of a row."""
    if "text" in row:
        return str(row["text"])
    return str(tokenizer.apply_chat_template(row["messages"], tokenize=False))

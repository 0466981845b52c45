"""What the drivers of kronfluence and dattri share: their arguments, the model, batches of texts.

It runs in the environment that bench_peers.py makes, and does not know either of the two tools.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

Sample = list[int]  # the token ids of a text
Batch = dict[str, Tensor]  # input_ids, attention_mask and labels [b, t], padded on the right
BATCH = 8  # texts; near the best of both tools on a CPU, where a batch of 1 takes a quarter longer
IGNORED = -100  # the label of padding


def arguments(description: str | None) -> argparse.Namespace:
    """Returns what a driver is asked for: to build or, where queries are named, to score.

    Fields: model, train, index, max_length; queries and scores (both None, or neither).
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", help="Folder of a causal language model.")
    parser.add_argument("train", type=Path, help="JSON lines with a `text`.")
    parser.add_argument("index", type=Path, help="Folder for what the tool keeps.")
    parser.add_argument("--max-length", type=int, required=True, help="Tokens of a text.")
    parser.add_argument("--queries", type=Path, help="JSON lines; scored instead of building.")
    parser.add_argument("--scores", type=Path, help="Gets the scores as .npy: float32 [q, n].")
    given = parser.parse_args()
    if (given.queries is None) != (given.scores is None):
        parser.error("--queries and --scores go together")
    return given


def load(model: str) -> PreTrainedModel:
    """Returns the model in float32, in evaluation mode as transformers loads it."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return loaded


def linears(model: PreTrainedModel) -> list[str]:
    """Returns the names of the linear modules without the head: the ones that bergson takes."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    modules = model.named_modules()
    return [name for name, m in modules if isinstance(m, torch.nn.Linear) and m is not head]


def read(path: Path, model: str, max_length: int) -> list[Sample]:
    """Returns the token ids of each text of a file, at most so many."""
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids: list[Sample] = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    return ids


def collate(samples: list[Sample]) -> Batch:
    """Returns a batch of some texts."""
    longest = max(map(len, samples))
    ids = torch.tensor([sample + [0] * (longest - len(sample)) for sample in samples])
    lengths = torch.tensor([len(sample) for sample in samples])
    mask = torch.arange(longest) < lengths[:, None]  # [b, t]
    labels = ids.where(mask, IGNORED)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}

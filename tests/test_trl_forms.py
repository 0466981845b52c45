"""What is scored of TRL's forms, held to the tokens and masks of its own trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers.chat_templates import QWEN25, QWEN25_MARKED, chat, sample, tokenizer
from helpers.models import SIZES
from transformers import AutoModelForCausalLM, LlamaConfig

from forvalue_index.config import FormatConfig
from forvalue_index.data.field_guess import guess
from forvalue_index.data.formatter import Formatter

trl = pytest.importorskip("trl")
FOLDER = Path(__file__).parent / "assets" / "chat"


@pytest.mark.filterwarnings("ignore")  # of the trainer, which is only asked for its tokens
@pytest.mark.parametrize("form", ["prompt_completion", "conversational_completion"])
def test_the_tokens_and_the_mask_are_those_of_the_trainer(form: str, tmp_path: Path) -> None:
    tokens = tokenizer((FOLDER / "chatml.jinja").read_text())
    tokens.pad_token = "<s>"
    rows = [json.loads(line) for line in (FOLDER / f"{form}.jsonl").read_text().splitlines()]
    names = dict.fromkeys(name for row in rows for name in row)  # a data set has the first's alone
    filled = [names | row for row in rows]
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES | {"vocab_size": len(tokens)}))
    settings = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False}
    trainer: Any = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(**settings),
        train_dataset=datasets.Dataset.from_list(filled),
        processing_class=tokens,
    )
    made = Formatter(tokens, FormatConfig(**guess(rows[0])[0]), 1024).samples(
        [(f"f:{number}", row) for number, row in enumerate(rows)]
    )
    assert len(made) == len(trainer.train_dataset) == len(rows)
    for one, row in zip(made, trainer.train_dataset, strict=True):
        assert one.input_ids.tolist() == row["input_ids"]
        mask = row["completion_mask"] if "completion_mask" in row else row["labels"]
        assert one.scored.tolist() == [value not in (0, -100) for value in mask]


@pytest.mark.filterwarnings("ignore")  # of the trainer, which is only asked for its tokens
def test_turns_that_say_nothing_are_scored_as_the_trainer_scores_them(tmp_path: Path) -> None:
    tokens = tokenizer(QWEN25_MARKED)
    tokens.pad_token = "<s>"
    rows = [
        {"messages": chat("s: Be.", "u: Hi", "a: ", "u: And?", "a: No.")},
        {"messages": chat("s: Be.", "u: Hi", "a: Yo", "u: And?", "a: ")},
    ]
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES | {"vocab_size": len(tokens)}))
    settings = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False}
    trainer: Any = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(assistant_only_loss=True, **settings),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokens,
    )
    for row, theirs in zip(rows, trainer.train_dataset, strict=True):
        for template in (QWEN25, QWEN25_MARKED):
            made = sample(template, row["messages"])
            assert made.input_ids.tolist() == theirs["input_ids"]
            assert made.scored.tolist() == [label != -100 for label in theirs["labels"]]

"""Fine-tuning of a real model, whole or by LoRA, kept in a folder as any trainer leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from real.rows import FORMAT, parts

from forvalue_index.analysis.evaluate.methods import empty_index
from forvalue_index.config import ModelConfig, TrainConfig
from forvalue_index.model.language_model import load_model
from forvalue_index.records import Progress, Row

RANK = 16  # of a LoRA


@dataclass(frozen=True)
class Tuning:
    """How a model is fine-tuned."""

    model: str
    lora: bool
    train: TrainConfig


def fine_tune(tuning: Tuning, rows: Sequence[Row], folder: Path, progress: Progress) -> None:
    """Writes the model, or the adapter, that the rows have trained; all of it or nothing."""
    part = folder.with_name(f"{folder.name}.part")
    (_adapter if tuning.lora else _whole)(tuning, rows, part, progress)
    part.rename(folder)


def tuned(tuning: Tuning, folder: Path) -> ModelConfig:
    """Returns how the fine-tuned model is read."""
    if tuning.lora:
        return ModelConfig(tuning.model, adapters=(str(folder),))
    return ModelConfig(str(folder))


def _whole(tuning: Tuning, rows: Sequence[Row], folder: Path, progress: Progress) -> None:
    lm = load_model(ModelConfig(tuning.model))
    dtype = lm.model.dtype
    with empty_index(lm, FORMAT) as index:
        samples = index.samples(list(rows))
        # The weights are float32; products are bfloat16, as in any trainer's mixed precision.
        # Without the cache: within one context it would keep the weights of the first step.
        with torch.autocast(lm.device.type, torch.bfloat16, cache_enabled=False):
            model = index.passes.fine_tuned(samples, tuning.train, progress)
    model.model.to(dtype).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def _adapter(tuning: Tuning, rows: Sequence[Row], folder: Path, progress: Progress) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    has_gpu = torch.cuda.is_available()
    settings = SFTConfig(
        str(folder),
        num_train_epochs=tuning.train.epochs,
        per_device_train_batch_size=tuning.train.batch_size,
        learning_rate=tuning.train.learning_rate,
        seed=tuning.train.seed,
        bf16=True,
        use_cpu=not has_gpu,
        save_strategy="no",
        report_to="none",
        logging_strategy="epoch",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        tuning.model,
        settings,
        train_dataset=Dataset.from_list([parts(row) for row in rows]),
        peft_config=LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()

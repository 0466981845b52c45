"""What a trainer has trained: its model, and its rows as the model saw them.

    trainer's data set -> trainer's collator -> ids and labels -> a row for each sample

The collator gets one example at a time, so that the tokens and what is scored of them are the
trainer's own. What else the data set has of a row stays with it. Knows `transformers.Trainer` and
what is made from it (TRL's `SFTTrainer`), by their public attributes alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from forvalue_index.config import FormatConfig, ModelConfig
from forvalue_index.data.arrow import json_row
from forvalue_index.data.field_guess import TOKENS, guess
from forvalue_index.data.rows import Outcome, Rows
from forvalue_index.data.token_rows import PACKING, PER_TOKEN, parted
from forvalue_index.errors import InputError, ModelError
from forvalue_index.model.adapters import no_adapters
from forvalue_index.model.head import whole
from forvalue_index.model.language_model import LanguageModel, wrap_model
from forvalue_index.records import Row

MADE = frozenset({TOKENS, *PER_TOKEN, *PACKING, "token_type_ids", "special_tokens_mask", "length"})
"""Fields that are made of a row for training, and say nothing of it."""
LOOKED_AT = 32  # rows from which it is seen whether ends are scored
NO_LIMIT = 1 << 20  # tokens of a row, for a model whose positions have no end
TEXT = "text"


@dataclass(frozen=True)
class Trained:
    """What is in a trainer."""

    model: LanguageModel | ModelConfig
    rows: Rows
    format: FormatConfig


def trained(
    trainer: Any, format: FormatConfig | None = None, checkpoints: Sequence[str | Path] = ()
) -> Trained:
    """Returns the model and the rows of a trainer; see `InfluenceIndex.from_trainer`.

    The model is that in memory, named by the folder in which the trainer saves it.
    """
    tokenizer = tokenizer_of(trainer)
    lm = _model(trainer, tokenizer)
    rows = TrainerRows(trainer, tokenizer)
    format = format or _format(trainer, tokenizer, rows)
    length = format.max_length or lm.max_positions or NO_LIMIT
    model = _saved(lm, checkpoints) if checkpoints else lm
    return Trained(model, rows, replace(format, tokens_field=TOKENS, max_length=length))


def tokenizer_of(trainer: Any) -> Any:
    """Returns a trainer's tokenizer, also where it is a part of a processor.

    Raises:
        InputError: it has none.
    """
    processor = getattr(trainer, "processing_class", None)
    if processor is None:
        raise InputError(
            "the trainer has no tokenizer: make it with Trainer(..., processing_class=tokenizer)"
        )
    return getattr(processor, "tokenizer", processor)


def _model(trainer: Any, tokenizer: Any) -> LanguageModel:
    if getattr(trainer, "is_fsdp_enabled", False) or getattr(
        trainer, "is_deepspeed_enabled", False
    ):
        raise ModelError(
            "the trainer's model is spread by FSDP or DeepSpeed: save it, and build the index from "
            "its folder"
        )
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapters = no_adapters()
    if getattr(model, "peft_config", None):
        names = list(model.active_adapters)
        if len(names) != 1 or model.peft_config[names[0]].is_prompt_learning:
            raise ModelError(
                f"the trainer's model has the adapters {', '.join(names)}: influence is read with "
                "one that changes layers, such as LoRA"
            )
        adapters = [(names[0], 1.0)]
    lm = wrap_model(model, tokenizer, adapters)
    return replace(lm, name=str(Path(trainer.args.output_dir).resolve()))


def _saved(lm: LanguageModel, checkpoints: Sequence[str | Path]) -> ModelConfig:
    """Returns the adapters that a trainer saved, on their base.

    Raises:
        ModelError: the model has no adapter, or nobody knows where its base is.
    """
    name = lm.checkpoints[0].adapter
    base = name and lm.model.peft_config[name].base_model_name_or_path
    if not base:
        raise ModelError(
            "several checkpoints are one index if they are adapters (PEFT) of a base that has a "
            "path: of whole models, build an index each"
        )
    dtype = str(whole(lm.model).dtype).removeprefix("torch.")
    return ModelConfig(base, dtype=dtype, adapters=tuple(str(Path(path)) for path in checkpoints))


def _format(trainer: Any, tokenizer: Any, rows: Rows) -> FormatConfig:
    """Returns how rows are shown, and how queries become tokens: as the trainer made its own."""
    some = [row for _, row in islice(rows, LOOKED_AT)]
    if not some:
        raise _no_row()
    settings: dict[str, Any] = dict(guess(some[0])[0])
    prompt = some[0].get(settings.get("prompt_field", ""))
    chat = "messages_field" in settings or isinstance(prompt, list)
    if chat:
        own = getattr(trainer, "chat_template", None)
        settings["chat_template"] = own or tokenizer.chat_template
        settings["chat"] = "messages_field" not in settings
    elif tokenizer.eos_token_id is not None:
        settings["eos"] = any(row["labels"][-1] == tokenizer.eos_token_id for row in some)
    return FormatConfig(**settings)


class TrainerRows(Rows):
    """A trainer's train set: each sample with its tokens, and what the data set has of its row.

    Rows of which the data set has nothing but tokens get their text.
    """

    def __init__(self, trainer: Any, tokenizer: Any) -> None:
        if getattr(trainer, "train_dataset", None) is None:
            raise InputError("the trainer has no train_dataset: make it with one")
        if hasattr(trainer.train_dataset, "__len__") and not len(trainer.train_dataset):
            raise _no_row()  # of which it makes no loader
        self._tokenizer = tokenizer
        self._rows = parted(_CollatedRows(trainer), FormatConfig(tokens_field=TOKENS))

    def outcomes(self) -> Iterator[Outcome]:
        """Yields the samples, placed as "row 1", or "row 1:1" in a packed row."""
        for place, row in self._rows.outcomes():
            if isinstance(row, dict) and row.keys() <= MADE:
                text = self._tokenizer.decode(row[TOKENS], clean_up_tokenization_spaces=False)
                row = {TEXT: text} | row
            yield place, row


class _CollatedRows(Rows):
    """What a trainer's collator makes of each example alone."""

    def __init__(self, trainer: Any) -> None:
        loader = trainer.get_train_dataloader()
        self._examples, self._collate = loader.dataset, loader.collate_fn
        self._whole = trainer.train_dataset

    def outcomes(self) -> Iterator[Outcome]:
        """Yields a row for each example.

        Raises:
            InputError: the collator gives no labels.
        """
        pairs = zip(_each(self._whole), _each(self._examples), strict=True)
        for number, (full, example) in enumerate(pairs, start=1):
            place = f"row {number}"
            row = _kept(full, place)
            row.update(_made(self._collate([example])))
            yield place, row


def _no_row() -> InputError:
    return InputError("the trainer's data set holds no row: give it some")


def _each(examples: Any) -> Iterator[Any]:
    """Yields the examples of a data set, of one that is counted by their number."""
    if hasattr(examples, "__len__"):
        return (examples[number] for number in range(len(examples)))
    return iter(examples)


def _kept(example: Any, place: str) -> Row:
    """Returns what an example has beside what was made for training, as far as JSON can hold it."""
    row: Row = {}
    if not isinstance(example, Mapping):
        return row
    for name, value in example.items():
        if name in MADE or isinstance(value, Tensor):
            continue
        settled = json_row({name: value}, place)
        try:
            json.dumps(settled, allow_nan=False)
        except (TypeError, ValueError):
            continue
        if isinstance(settled, dict):
            row.update(settled)
    return row


def _made(batch: Mapping[str, Any]) -> Row:
    """Returns the tokens of a batch of one example, without padding."""
    if batch.get("labels") is None:
        raise InputError(
            "the trainer's batches have no labels: give it a collator that makes them, such as "
            "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
        )
    names = (TOKENS, "labels", "position_ids")
    found = {name: batch[name][0].tolist() for name in names if batch.get(name) is not None}
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        real = mask[0].tolist()
        found = {
            name: [value for value, counts in zip(values, real, strict=True) if counts]
            for name, values in found.items()
        }
    return found

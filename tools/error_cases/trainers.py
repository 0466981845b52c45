"""Trainers of which no index can be made."""

from __future__ import annotations

from typing import Any

from error_cases.case import Case, python
from error_cases.models import loaded, prompts

BUILD = "InfluenceIndex.from_trainer(trainer, 'new')"
END = "on_train_end(trainer.args, trainer.state, trainer.control)"


def _case(
    told: str, run: str = BUILD, *, rows: Any = ("Hi",), model: Any = loaded, **made: Any
) -> Case:
    """Returns the case of a trainer that is as told."""

    def known() -> dict[str, Any]:
        import transformers as t

        tokenizer = t.AutoTokenizer.from_pretrained("model")
        data = None if rows is None else [{"text": text, **tokenizer(text)} for text in rows]
        arguments = t.TrainingArguments("out", report_to="none", use_cpu=True, save_strategy="no")
        collator = t.DataCollatorForLanguageModeling(tokenizer, mlm=False)
        plain = {"processing_class": tokenizer, "data_collator": collator}
        return {"trainer": t.Trainer(model(), arguments, train_dataset=data, **plain | made)}

    return python(run, known=known, told=told)


def _unlabelled(examples: Any) -> Any:
    from transformers import default_data_collator

    return default_data_collator([{"input_ids": e["input_ids"]} for e in examples])


def _with_prompts() -> Any:
    from peft import get_peft_model

    return get_peft_model(loaded(), prompts())


CASES = [
    _case("made without processing_class", processing_class=None),
    _case("made without train_dataset", rows=None),
    _case("train_dataset is an empty list", rows=()),
    _case("data_collator gives input_ids only", data_collator=_unlabelled),
    _case(
        "model is a whole model", BUILD.replace("new'", "new', checkpoints=['out/checkpoint-1']")
    ),
    _case("model has learned prompts of PEFT", model=_with_prompts),
    _case("nothing was saved", f"IndexCallback(trainer, 'new', checkpoints=True).{END}"),
]

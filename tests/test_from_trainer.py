"""Indexes from trainers: their tokens, their model, and nothing of it changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from helpers.models import tiny_model, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from forvalue_index import IndexCallback, InfluenceIndex, ModelConfig, VectorConfig, wrap_model
from forvalue_index.errors import InputError, ModelError

try:
    import trl
except ImportError:
    trl = None

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the trainers' own, which change with their versions
]
needs_trl = pytest.mark.skipif(trl is None, reason="TRL is not installed: pip install trl")

SMALL = VectorConfig(dim=32, sketch_dim=256, bits=16)
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role[0] }}:{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<s>a:{% endif %}"
)
PAIRS = [{"prompt": f"ask {i}", "completion": f" say {'abcdefgh'[i:]}"} for i in range(8)]
TALKS = [
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
            {"role": "user", "content": "more"},
            {"role": "assistant", "content": "no"},
        ]
    }
    for row in PAIRS
]

Seen = list[tuple[list[int], list[int]]]
"""Ids and labels that a model got in training, a sample each."""


def tokenizer_with_template() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def recorded(trainer: Any) -> Seen:
    """What the trainer's loss will be computed of, as training goes on."""
    seen: Seen = []
    compute = trainer.compute_loss

    def compute_loss(model: Any, inputs: dict[str, Any], **settings: Any) -> Any:
        seen.extend(samples_of(inputs))
        return compute(model, inputs, **settings)

    trainer.compute_loss = compute_loss
    return seen


def samples_of(inputs: dict[str, Any]) -> Iterator[tuple[list[int], list[int]]]:
    """Yields the ids and labels of each sample in a batch, without padding."""
    for row, (ids, labels) in enumerate(zip(inputs["input_ids"], inputs["labels"], strict=True)):
        places = inputs.get("position_ids")
        starts = [0] if places is None else torch.where(places[row] == 0)[0].tolist()
        mask = inputs.get("attention_mask")
        end = len(ids) if mask is None else int(mask[row].sum())
        starts = [start for start in starts if start < end]
        for start, stop in zip(starts, [*starts[1:], end], strict=True):
            yield ids[start:stop].tolist(), labels[start:stop].tolist()


def scored_tokens(index: InfluenceIndex) -> list[tuple[list[int], list[int]]]:
    """Ids and labels as the index has them; the label of a first token counts for nothing."""
    samples = index.training_samples(range(len(index)))
    return sorted(
        (s.input_ids.tolist(), np.where(s.scored, s.input_ids, -100).tolist()) for s in samples
    )


def expected_tokens(seen: Seen) -> list[tuple[list[int], list[int]]]:
    return sorted((ids, [-100, *labels[1:]]) for ids, labels in seen)


def arguments(path: Path, kind: Callable[..., Any] = TrainingArguments, **settings: Any) -> Any:
    return kind(
        **{
            "output_dir": str(path),
            "num_train_epochs": 1,
            "per_device_train_batch_size": 3,
            "report_to": [],
            "use_cpu": True,
            "learning_rate": 0.01,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        | settings
    )


def plain_trainer(path: Path, model: Any = None, **settings: Any) -> Trainer:
    tokenizer = tiny_tokenizer()
    data = datasets.Dataset.from_list(
        [{"text": row["prompt"] + row["completion"], "n": i} for i, row in enumerate(PAIRS)]
    ).map(lambda row: tokenizer(row["text"]))
    return Trainer(
        model=model or tiny_model("llama"),
        args=arguments(path, **settings),
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )


def test_a_plain_trainer(tmp_path: Path) -> None:
    """Tokens are those of the loss, rows are the data set's, the model is the trained one."""
    trainer = plain_trainer(tmp_path / "out")
    seen = recorded(trainer)
    before = [value.clone() for value in trainer.model.parameters()]
    trainer.train()
    assert any((a != b).any() for a, b in zip(before, trainer.model.parameters(), strict=True))
    index, report = InfluenceIndex.from_trainer(trainer, tmp_path / "i", vector=SMALL)
    with index:
        assert report.added == len(PAIRS)
        assert scored_tokens(index) == expected_tokens(seen)
        rows = {row.row["n"]: row.row["text"] for row in index.rows()}
        assert rows == {i: row["prompt"] + row["completion"] for i, row in enumerate(PAIRS)}
        hit = index.query({"text": "ask 3 say defgh"}, 1, metric="cosine")[0]
        assert hit.sample["text"] == "ask 3 say defgh"
    trainer.save_model()
    with InfluenceIndex.open(tmp_path / "i") as index:  # where the trainer saved it
        again = index.query({"text": "ask 3 say defgh"}, 1, metric="cosine")[0]
        assert again.score == pytest.approx(hit.score, rel=1e-5)


def test_an_index_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """Training goes on from where it was, to the same weights as without an index between."""
    found = []
    for name in ("alone", "between"):
        model = tiny_model("gpt2")
        model.transformer.wte.requires_grad_(False)
        trainer = plain_trainer(tmp_path / name, model)
        trainer.train()
        model.transformer.h[0].eval()
        modes = [module.training for module in model.modules()]
        wanted = [value.requires_grad for value in model.parameters()]
        forward = vars(model).get("forward")
        assert any(modes) and not all(modes) and any(wanted) and not all(wanted)
        if name == "between":
            index, _ = InfluenceIndex.from_trainer(trainer, tmp_path / "i", vector=SMALL)
            with index:
                index.query({"text": "ask"}, 1, exact=True)
                index.respond("ask")
        assert [module.training for module in model.modules()] == modes
        assert [value.requires_grad for value in model.parameters()] == wanted
        assert vars(model).get("forward") == forward
        torch.manual_seed(0)
        trainer.train()
        found.append([value.detach().clone() for value in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_model_is_read_without_dropout_and_mixed_precision(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    trainer = plain_trainer(tmp_path / "out", bf16=True)
    trainer.train()
    assert trainer.model.train().forward.__wrapped__  # autocast is around it
    index, _ = InfluenceIndex.from_trainer(trainer, tmp_path / "i", vector=SMALL)
    with index:
        sample = index.samples({"text": "one two"})
        found = index.vectors(sample)
        copy = tiny_model("llama")
        copy.load_state_dict(trainer.model.state_dict())
        index.session.adopt(wrap_model(copy, tokenizer))
        index.session._encoder = None
        np.testing.assert_array_equal(found, index.vectors(sample))


def test_an_adapter_in_memory_is_the_one_that_is_saved(tmp_path: Path) -> None:
    """The index of a trainer's LoRA opens with its folder, and trains on."""
    base = tiny_model("llama")
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    base.name_or_path = base.config._name_or_path = str(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    trainer = plain_trainer(
        tmp_path / "out", model, save_strategy="steps", save_steps=1, learning_rate=0.1
    )
    callback = IndexCallback(trainer, tmp_path / "several", checkpoints=True, vector=SMALL)
    trainer.add_callback(callback)
    trainer.train()
    wanted = [value.requires_grad for value in model.parameters()]
    index, _ = InfluenceIndex.from_trainer(trainer, tmp_path / "i", vector=SMALL)
    with index:
        expected = index.query({"text": "ask 1"}, 3)
    assert [value.requires_grad for value in model.parameters()] == wanted
    last = max((tmp_path / "out").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime_ns)
    saved = ModelConfig(str(tmp_path / "base"), adapters=(str(last),))
    with InfluenceIndex.open(tmp_path / "i", model=saved) as index:
        found = index.query({"text": "ask 1"}, 3)
    assert [(hit.key, pytest.approx(hit.score, rel=1e-4)) for hit in found] == [
        (hit.key, hit.score) for hit in expected
    ]
    assert callback.report is not None and callback.report.added == len(PAIRS)
    with InfluenceIndex.open(tmp_path / "several") as index:
        assert len(index.config.model.adapters) == 3 == len(index.lm.checkpoints)
        assert index.query({"text": "ask 1"}, 3, exact=True)


def test_a_callback_builds_at_the_end(tmp_path: Path) -> None:
    trainer = plain_trainer(tmp_path / "out")
    callback = IndexCallback(trainer, tmp_path / "i", vector=SMALL)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.report is not None and callback.report.added == len(PAIRS)
    with InfluenceIndex.open(
        tmp_path / "i", model=wrap_model(trainer.model, tiny_tokenizer())
    ) as i:
        assert i.query({"text": "ask"}, 1)


def test_what_a_trainer_must_have(tmp_path: Path) -> None:
    trainer = plain_trainer(tmp_path / "out")
    with pytest.raises(ModelError, match="several checkpoints are one index if they are adapters"):
        InfluenceIndex.from_trainer(trainer, tmp_path / "i", checkpoints=[tmp_path])
    trainer.processing_class = None
    with pytest.raises(InputError, match="processing_class=tokenizer"):
        InfluenceIndex.from_trainer(trainer, tmp_path / "i")
    trainer = plain_trainer(tmp_path / "out")
    trainer.train_dataset = None
    with pytest.raises(InputError, match="no train_dataset"):
        InfluenceIndex.from_trainer(trainer, tmp_path / "i")
    trainer.train_dataset = []
    with pytest.raises(InputError, match="holds no row: give it some"):
        InfluenceIndex.from_trainer(trainer, tmp_path / "i")
    callback = IndexCallback(trainer, tmp_path / "i", checkpoints=True)
    with pytest.raises(InputError, match="no checkpoint was saved"):
        callback.on_train_end(trainer.args, trainer.state, trainer.control)


@needs_trl
@pytest.mark.parametrize(
    "kind", ["pairs", "pairs, all", "talks", "packed", "wrapped", "talk pairs"]
)
def test_sft_trainer(tmp_path: Path, kind: str) -> None:
    """What the index scores is what the trainer's loss was computed of, token by token."""
    settings: dict[str, dict[str, Any]] = {
        "pairs": {},
        "pairs, all": {"completion_only_loss": False},
        "talks": {"assistant_only_loss": True},
        "packed": {"packing": True, "max_length": 40},
        "wrapped": {"packing": True, "packing_strategy": "wrapped", "max_length": 40},
        "talk pairs": {},
    }
    rows: list[dict[str, Any]] = TALKS if kind == "talks" else PAIRS
    if kind == "talk pairs":
        rows = [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
            for row in PAIRS
        ]
    tokenizer = tokenizer_with_template()
    trainer = trl.SFTTrainer(
        model=tiny_model("llama"),
        args=arguments(
            tmp_path / "out", trl.SFTConfig, **{"max_length": 64, "bf16": False} | settings[kind]
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    seen = recorded(trainer)
    trainer.train()
    index, _ = InfluenceIndex.from_trainer(trainer, tmp_path / "i", vector=SMALL)
    with index:
        expected = [pair for pair in expected_tokens(seen) if any(id != -100 for id in pair[1])]
        assert scored_tokens(index) == expected
        assert len(expected) >= 8 or kind == "wrapped"
        partly = [labels for _, labels in expected if -100 in labels[1:]]
        assert bool(partly) == (kind not in ("pairs, all",))
        first = next(index.rows()).row
        if kind == "talks":
            assert [message["content"] for message in first["messages"]][3:] == ["more", "no"]
        elif kind in ("packed", "wrapped"):
            assert "text" in first
        if kind == "pairs":
            query = {"prompt": "ask 2", "completion": " say cdefgh"}
            [sample] = index.samples(query)
            ids = sample.input_ids.tolist(), sample.scored.tolist()
            assert ids in [(i, [label != -100 for label in labels]) for i, labels in expected]

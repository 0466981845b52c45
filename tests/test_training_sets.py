"""Data sets that trainers load: rows as they were given, with a weight or whether to keep them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from helpers.chat_templates import tokenizer
from helpers.cli import assert_one_line, run, run_well
from helpers.models import SIZES
from torch.utils.data import WeightedRandomSampler
from transformers import AutoModelForCausalLM, LlamaConfig

from forvalue_index import InfluenceIndex, ModelConfig
from forvalue_index.analysis.dataset import weights
from forvalue_index.errors import InputError
from forvalue_index.records import Row

FOLDER = Path(__file__).parent / "assets" / "chat"
TRL = "prompt_completion", "conversational_completion", "train"
COPIES = "train", "template_kwargs"  # whose second row has the tokens of the first
AXOLOTL = "alpaca", "sharegpt", "train", "tool_calls", "function_call"


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    made = tokenizer((FOLDER / "chatml.jinja").read_text())
    made.save_pretrained(folder)
    config = LlamaConfig(**SIZES | {"vocab_size": len(made)})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def full(value: Any) -> Any:
    """A value without the nulls with which a table fills what a row does not have."""
    if isinstance(value, dict):
        return {name: full(own) for name, own in value.items() if own is not None}
    return [full(own) for own in value] if isinstance(value, list) else value


def text(row: Row) -> str:
    return json.dumps(full(row), sort_keys=True)


def selected(form: str, suffix: str, model: Path, folder: Path) -> tuple[Path, Path]:
    """The rows of a form and the file of all of them that select writes."""
    source, chosen = folder / f"{form}.jsonl", folder / f"chosen{suffix}"
    rows = (FOLDER / source.name).read_text().splitlines(keepends=True)
    source.write_text("".join(rows[: 1 if form in COPIES else None]))
    index, chat = folder / "index", ["--chat"] if form == "alpaca" else []
    run_well("build", source, "--index", index, "--model", model, *chat)
    options = ["--data", source, "--ratio", 1, "--dedup", 1, "--output", chosen]
    run_well("select", "--index", index, *options)
    return source, chosen


@pytest.mark.parametrize("form", sorted({*TRL, *AXOLOTL, "messages", "template_kwargs"}))
def test_selected_rows_are_as_they_were_given(form: str, chat_model: Path, tmp_path: Path) -> None:
    source, chosen = selected(form, ".jsonl", chat_model, tmp_path)
    given, written = lines(source), lines(chosen)
    assert len(written) == len(given)
    assert all(row in given for row in written)
    assert [list(row) for row in written] == [
        list(given[given.index(row)]) for row in written
    ]  # also in the order of their fields


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("form", AXOLOTL)
def test_what_datasets_loads_of_selected_rows_is_what_it_loads_of_the_given_ones(
    form: str, suffix: str, chat_model: Path, tmp_path: Path
) -> None:
    source, chosen = selected(form, suffix, chat_model, tmp_path)
    kind, cache = {".jsonl": "json", ".parquet": "parquet"}[suffix], str(tmp_path / "cache")
    load: Callable[..., Any] = datasets.load_dataset
    found = load(kind, data_files=str(chosen), split="train", cache_dir=cache)
    given = load("json", data_files=str(source), split="train", cache_dir=cache)
    assert sorted(map(text, found)) == sorted(map(text, given))


@pytest.mark.filterwarnings("ignore")  # of the trainer, which is only asked for its tokens
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("form", TRL)
def test_a_trainer_makes_the_same_tokens_of_selected_rows(
    form: str, suffix: str, chat_model: Path, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl")
    source, chosen = selected(form, suffix, chat_model, tmp_path)
    tokens = tokenizer((FOLDER / "chatml.jinja").read_text())
    tokens.pad_token = "<s>"
    found = []
    for path in (source, chosen):
        kind = "parquet" if path.suffix == ".parquet" else "json"
        data = datasets.load_dataset(
            kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
        )
        settings = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True}
        trainer: Any = trl.SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(chat_model),
            args=trl.SFTConfig(**settings, bf16=False),
            train_dataset=data,
            processing_class=tokens,
        )
        found.append(sorted(row["input_ids"] for row in trainer.train_dataset))
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> tuple[Path, list[Row]]:
    folder = tmp_path_factory.mktemp("weights")
    words = ["red", "green", "blue", "white", "black", "pink"]
    rows = [
        {"id": f"r{i}", "prompt": f"ask {words[i % 6]} {i}", "response": f" {words[i % 5]} {i}"}
        for i in range(24)
    ]
    rows.append(rows[3] | {"id": "copy"})
    index, _ = InfluenceIndex.build(folder / "index", rows, ModelConfig(str(model_dir)))
    index.close()
    (folder / "targets.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:3]))
    return folder, rows


def test_weights_are_values_with_a_mean_of_one(scored: tuple[Path, list[Row]]) -> None:
    folder, rows = scored
    data, out = folder / "targets.jsonl", folder / "weighted.parquet"
    run_well("score", "--index", folder / "index", "--data", data, "--dataset", out,
             "--output", folder / "values.jsonl")  # fmt: skip
    found = datasets.load_dataset("parquet", data_files=str(out), split="train")
    assert [{k: v for k, v in row.items() if k != "weight"} for row in found] == rows
    values = {row["sample"]["id"]: row["value"] for row in lines(folder / "values.jsonl")}
    weight = np.array(found["weight"])
    assert weight.mean() == pytest.approx(1)
    expected = np.maximum([values[row["id"]] for row in rows], 0)
    np.testing.assert_allclose(weight, expected / expected.mean())
    assert len(list(WeightedRandomSampler(weight.tolist(), 5))) == 5


def test_rows_to_keep_are_those_that_were_chosen(scored: tuple[Path, list[Row]]) -> None:
    folder, rows = scored
    out, chosen = folder / "kept.jsonl", folder / "chosen.jsonl"
    run_well("select", "--index", folder / "index", "--data", folder / "targets.jsonl",
             "--budget", 5, "--output", chosen, "--dataset", out)  # fmt: skip
    found = lines(out)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert {row["id"] for row in found if row["keep"]} == {row["id"] for row in lines(chosen)}
    loaded = datasets.load_dataset("json", data_files=str(out), split="train")
    assert len(loaded.filter(lambda row: row["keep"])) == 5


def test_rows_to_keep_are_those_that_an_audit_does_not_list(scored: tuple[Path, list[Row]]) -> None:
    folder, rows = scored
    out = folder / "audited.parquet"
    listed = run_well("audit", "--index", folder / "index", "--top", 3, "--dataset", out, "--json")
    found = datasets.load_dataset("parquet", data_files=str(out), split="train")
    left = {json.loads(line)["sample"]["id"] for line in listed.splitlines()}
    assert "copy" in left
    assert {row["id"] for row in found if not row["keep"]} == left
    assert len(found) == len(rows)


def test_a_field_of_the_same_name_is_not_replaced(model_dir: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"a{i}", "response": f" b{i}", "keep": "yes"} for i in range(5)]
    index, _ = InfluenceIndex.build(tmp_path / "index", rows, ModelConfig(str(model_dir)))
    index.close()
    result = run("audit", "--index", tmp_path / "index", "--dataset", tmp_path / "out.jsonl")
    assert_one_line(result, "'keep' already")
    assert not (tmp_path / "out.jsonl").exists()


def test_weights_need_a_value_above_zero() -> None:
    with pytest.raises(InputError, match="none of the 2 training samples"):
        weights(np.array([-1.0, 0.0]))
    assert weights(np.array([-5.0, 1.0, 3.0, 0.0])).tolist() == [0.0, 1.0, 3.0, 0.0]

"""PEFT adapters: the effective head, several checkpoints as one sum, and clear refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.models import SIZES, save_model, tiny_model, tiny_tokenizer
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.cli import main
from forvalue_index.config import ModelConfig, VectorConfig
from forvalue_index.errors import DependencyError, FingerprintError, InputError, ModelError
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.fit import fit_vectoriser
from forvalue_index.model.language_model import load_model, wrap_model
from forvalue_index.records import Row
from forvalue_index.vectors.recipe import Raw
from forvalue_index.vectors.vectoriser import Vectoriser

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import check_heads

pytestmark = [  # PEFT's own
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True:UserWarning"),
]

LAYERS = ["q_proj", "v_proj"]
SMALL = VectorConfig(dim=48, sketch_dim=2304)


def adapted(seed: int, kind: str = "llama", **settings: Any) -> Any:
    """A model with an adapter that changes what it says."""
    model = get_peft_model(
        tiny_model(kind), LoraConfig(r=4, **{"target_modules": LAYERS} | settings)
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three checkpoints of adapters on it."""
    path = tmp_path_factory.mktemp("adapters")
    save_model(path / "base", "llama", 0)
    for seed, name in enumerate(["first", "second", "third"], start=1):
        adapted(seed).save_pretrained(path / name)
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": [*LAYERS, "lm_head"]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": [*LAYERS, "lm_head"], "use_dora": True},
    ],
    ids=["layers", "lora on the head", "whole head", "dora on the head"],
)
def test_the_closed_form_is_that_of_the_effective_head(settings: dict[str, Any]) -> None:
    model = adapted(1, **settings)
    lm = wrap_model(model, tiny_tokenizer())
    rows = check_heads.samples()
    truth = check_heads.gradients(lm, rows)
    truth = truth @ truth.T
    assert check_heads.relative_error(lm, rows) < check_heads.TOLERANCE
    merged = wrap_model(model.merge_and_unload(), tiny_tokenizer())
    found = Encoder(merged).influence(rows, rows, [Raw()])
    assert check_heads.largest_error(found, truth.numpy()) < 1e-3
    plain = Encoder(wrap_model(tiny_model("llama"), None)).influence(rows, rows, [Raw()])
    assert check_heads.largest_error(plain, truth.numpy()) > 0.01  # the adapter does something


def test_a_tied_head_that_was_trained_as_a_copy() -> None:
    lm = wrap_model(adapted(1, "qwen2", modules_to_save=["lm_head"]), tiny_tokenizer())
    assert check_heads.relative_error(lm, check_heads.samples()) < check_heads.TOLERANCE


def test_checkpoints_add_up(folder: Path) -> None:
    """The exact form is the weighted sum of those of each checkpoint alone."""
    rows = check_heads.samples()
    base, paths = str(folder / "base"), tuple(str(folder / name) for name in ("first", "second"))
    weights = (0.5, 2.0)
    lm = load_model(ModelConfig(base, adapters=paths, adapter_weights=weights), "cpu")
    vectoriser = fit_vectoriser(lm, rows, SMALL, lambda done: None).vectoriser
    found = Encoder(lm).influence(rows, rows, vectoriser.parts)
    alone, losses = np.zeros_like(found), np.zeros(len(rows))
    for path, weight in zip(paths, weights, strict=True):
        one = load_model(ModelConfig(base, adapters=(path,)), "cpu")
        result = fit_vectoriser(one, rows, SMALL, lambda done: None)
        fitted, encoded = result.vectoriser, result.encoded
        alone += weight * Encoder(one).influence(rows, rows, fitted.parts)
        losses += [item.loss / 2 for item in encoded]
    assert check_heads.largest_error(found, alone) < 1e-4
    own = Encoder(lm).self_influence(rows, vectoriser.parts)
    np.testing.assert_allclose(own, np.diag(alone), rtol=1e-4)
    result = fit_vectoriser(lm, rows, SMALL, lambda done: None)
    encoded = result.encoded
    np.testing.assert_allclose([item.loss for item in encoded], losses, rtol=1e-4)


def test_a_first_build_reads_heads_with_their_adapters(tmp_path: Path) -> None:
    save_model(tmp_path / "base", "llama", 0)
    for seed, name in enumerate(["first", "second"], start=1):
        model = adapted(seed, target_modules=[*LAYERS, "lm_head"])
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
    paths = tuple(str(tmp_path / name) for name in ("first", "second"))
    lm = load_model(ModelConfig(str(tmp_path / "base"), adapters=paths), "cpu")
    rows = check_heads.samples()
    result = fit_vectoriser(lm, rows, SMALL, lambda done: None)
    vectoriser, encoded = result.vectoriser, result.encoded
    again = {i: item for batch in Encoder(lm).encode(rows, vectoriser) for i, item in batch}
    for i, item in enumerate(encoded):
        assert item.loss == pytest.approx(again[i].loss, rel=1e-5)
        assert np.abs(item.vector - again[i].vector).max() < 1e-3 * np.abs(item.vector).max()


def test_vectors_estimate_the_sum(folder: Path) -> None:
    """Between checkpoints there is nothing on average: the sketches are drawn apart."""
    rows = check_heads.samples()
    names = tuple(str(folder / name) for name in ("first", "second", "third"))
    lm = load_model(ModelConfig(str(folder / "base"), adapters=names), "cpu")
    estimates = []
    for seed in range(12):
        config = VectorConfig(recipe="raw", dim=2304, sketch_dim=2304, seed=seed)
        result = fit_vectoriser(lm, rows, config, lambda done: None)
        vectoriser, encoded = result.vectoriser, result.encoded
        vectors = np.stack([item.vector for item in encoded])
        estimates.append(vectors @ vectors.T / vectoriser.scale**2)
    truth = Encoder(lm).influence(rows, rows, vectoriser.parts)
    spread = np.std(estimates, axis=0) / np.sqrt(len(estimates)) + 1e-3 * np.abs(truth).max()
    assert (np.abs(np.mean(estimates, axis=0) - truth) < 4.5 * spread).all()


def test_a_vectoriser_of_several_checkpoints_is_saved(folder: Path) -> None:
    names = tuple(str(folder / name) for name in ("first", "second"))
    config = ModelConfig(str(folder / "base"), adapters=names, adapter_weights=(1.0, 0.25))
    lm = load_model(config, "cpu")
    result = fit_vectoriser(lm, check_heads.samples(), SMALL, lambda done: None)
    fitted, encoded = result.vectoriser, result.encoded
    data = fitted.to_bytes()
    loaded = Vectoriser.from_bytes(data, SMALL, torch.device("cpu"))
    assert loaded.to_bytes() == data
    assert [part.weight for part in loaded.parts] == [1.0, 0.25]
    for batch in Encoder(lm).encode(check_heads.samples(), loaded):
        for position, item in batch:
            np.testing.assert_allclose(item.vector, encoded[position].vector, atol=0.02)


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_an_index_of_two_checkpoints_by_command(
    tmp_path: Path, folder: Path, rows: list[Row]
) -> None:
    data, index = tmp_path / "rows.jsonl", tmp_path / "index"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: list[str | Path] = ["build", data, "--index", index, "--model", folder / "base"]
    given += ["--adapter", folder / "first", "--adapter", folder / "second"]
    given += ["--adapter-weight", "1", "--adapter-weight", "0.5", "--key-field", "id"]
    assert command(*given).exit_code == 0
    ask = ["query", "--index", index, "--prompt", rows[4]["prompt"], "--response"]
    asked = command(*ask, rows[4]["response"], "-k", "1", "--exact", "--json")
    assert json.loads(asked.stdout)["key"] == "row-4"
    assert command("verify", "--index", index).exit_code == 0
    again = command(*given)
    assert "30 already there" in again.stderr
    one_weight = command(*given, "--adapter-weight", "1")
    assert one_weight.exit_code == 1
    assert "3 weights were given for 2 adapters" in one_weight.stderr


def test_adapters_and_their_weights_are_part_of_the_fingerprint(
    tmp_path: Path, folder: Path, rows: list[Row]
) -> None:
    base, first, second = (str(folder / name) for name in ("base", "first", "second"))
    config = ModelConfig(base, adapters=(first, second))
    format = FormatConfig(key_field="id")
    index, _ = InfluenceIndex.build(tmp_path / "index", rows, config, format=format)
    index.close()
    others = {
        ModelConfig(base): "weights",
        ModelConfig(base, adapters=(first,)): "weights",
        ModelConfig(base, adapters=(second, first)): "weights",
        ModelConfig(base, adapters=(first, second), adapter_weights=(1, 2)): "adapter weights",
    }
    for other, what in others.items():
        with (
            InfluenceIndex.open(tmp_path / "index", model=other) as opened,
            pytest.raises(FingerprintError, match=f"{what}.* differ"),
        ):
            opened.query(rows[0])
    with InfluenceIndex.open(tmp_path / "index", model=config) as opened:
        assert opened.query(rows[0], 1)[0].key == "row-0"


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, folder: Path) -> None:
    settings = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    other = get_peft_model(tiny_model("gpt2"), settings)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"cannot put adapter .*other on .*base: "):
        load_model(ModelConfig(str(folder / "base"), adapters=(str(tmp_path / "other"),)), "cpu")


def test_an_adapter_of_a_base_of_another_size_is_refused(tmp_path: Path, folder: Path) -> None:
    model = tiny_model("llama")
    model.model.layers[0].self_attn.q_proj = torch.nn.Linear(24, 36, bias=False)
    get_peft_model(model, LoraConfig(r=2, target_modules=LAYERS)).save_pretrained(tmp_path / "w")
    with pytest.raises(ModelError, match=r"cannot put adapter .*w on "):
        load_model(ModelConfig(str(folder / "base"), adapters=(str(tmp_path / "w"),)), "cpu")


def test_an_adapter_of_a_deeper_base_is_refused(tmp_path: Path, folder: Path) -> None:
    deeper = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES | {"num_hidden_layers": 3}))
    get_peft_model(deeper, LoraConfig(target_modules=LAYERS)).save_pretrained(tmp_path / "deep")
    with pytest.raises(ModelError, match="made for another base model"):
        load_model(ModelConfig(str(folder / "base"), adapters=(str(tmp_path / "deep"),)), "cpu")


def test_what_is_no_adapter_is_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"it has no adapter_config\.json"):
        load_model(ModelConfig(str(folder / "base"), adapters=(str(tmp_path / "empty"),)), "cpu")
    with pytest.raises(ModelError, match="is an adapter: give its base as --model"):
        load_model(ModelConfig(str(folder / "first")), "cpu")


def test_learned_prompts_are_refused(tmp_path: Path, folder: Path) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path / "prefix")
    with pytest.raises(ModelError, match="puts learned tokens before the text"):
        load_model(ModelConfig(str(folder / "base"), adapters=(str(tmp_path / "prefix"),)), "cpu")


def test_without_peft_it_is_said_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DependencyError, match=r"pip install \"forvalue-index\[peft\]\""):
        load_model(ModelConfig(str(folder / "base"), adapters=(str(folder / "first"),)), "cpu")


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, float("nan")), (1.0, -2.0)])
def test_weights_that_make_no_sense_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"weight"):
        ModelConfig("base", adapters=("a", "b"), adapter_weights=weights)

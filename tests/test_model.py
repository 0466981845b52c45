"""What is asked of a model before it is trusted, on architectures that differ where it matters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import SIZES as LLAMA
from helpers.models import VOCABULARY, save_model, tiny_model, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    RobertaConfig,
)

from forvalue_index.config import ModelConfig, VectorConfig
from forvalue_index.errors import DependencyError, InputError, ModelError
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.fit import fit_vectoriser
from forvalue_index.model.language_model import LanguageModel, load_model, wrap_model
from forvalue_index.records import Sample
from forvalue_index.vectors.recipe import Raw

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}


def load(config: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return wrap_model(model, tiny_tokenizer())


def samples_of(lengths: list[int]) -> list[Sample]:
    draws = np.random.default_rng(0)
    return [
        Sample(
            str(i),
            str(i),
            {},
            draws.integers(5, VOCABULARY, length).astype(np.int32),
            np.arange(length) > 0,
            False,
            f"row {i}",
        )
        for i, length in enumerate(lengths)
    ]


def phi3_with_long_positions() -> Phi3Config:
    return Phi3Config(
        **SIZES,
        num_key_value_heads=1,
        intermediate_size=48,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 6,
            "long_factor": [4.0] * 6,
            "original_max_position_embeddings": 16,
        },
    )


@pytest.mark.parametrize(
    "config",
    [
        phi3_with_long_positions(),
        MixtralConfig(**SIZES, num_key_value_heads=1, intermediate_size=48, num_local_experts=4),
        OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=12, max_position_embeddings=64),
    ],
    ids=["longrope", "experts", "projected"],
)
def test_a_row_is_encoded_the_same_alone_and_beside_a_long_one(config: Any) -> None:
    lm = load(config)
    samples = samples_of([5, 40, 7, 7])
    vectoriser = fit_vectoriser(
        lm, samples, VectorConfig(dim=32, sketch_dim=512), lambda done: None
    ).vectoriser
    vectors = []
    for budget in (1, 4096):
        result = np.zeros((4, vectoriser.dim))
        for batch in Encoder(lm, budget).encode(samples, vectoriser):
            for position, item in batch:
                result[position] = item.vector
        vectors.append(result / np.linalg.norm(result, axis=1, keepdims=True))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-4)


def test_a_model_that_looks_ahead_is_refused() -> None:
    config = BertConfig(**SIZES, intermediate_size=48)
    with pytest.raises(ModelError, match="is not causal"):
        load(config)
    config.is_decoder = True
    assert load(config).head.cap is None


def test_an_id_beyond_the_embedding_is_a_clear_error() -> None:
    lm = wrap_model(tiny_model("gpt2"), tiny_tokenizer())
    (sample,) = samples_of([6])
    sample.input_ids[2] = VOCABULARY + 3
    with pytest.raises(ModelError, match="make sure that the tokenizer is the model's"):
        Encoder(lm).read([sample])


def test_logits_that_no_known_step_explains_are_refused() -> None:
    model = tiny_model("llama")
    forward = model.forward

    def twisted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits**3
        return output

    model.forward = twisted
    with pytest.raises(ModelError, match="the closed form cannot be right for it"):
        wrap_model(model, tiny_tokenizer())


def test_a_model_that_changes_with_padding_is_never_padded() -> None:
    model = tiny_model("llama")
    forward = model.model.forward

    def longer(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * output.last_hidden_state.shape[1]
        return output

    assert not wrap_model(model, None).length_matters
    model.model.forward = longer
    lm = wrap_model(model, None)
    assert lm.length_matters
    rows = samples_of([5, 9, 7])
    together = Encoder(lm).influence(rows, rows, [Raw()])
    np.testing.assert_allclose(together, Encoder(lm, 1).influence(rows, rows, [Raw()]), rtol=1e-3)


def test_positions_that_begin_behind_padding_are_fewer() -> None:
    config = RobertaConfig(
        **SIZES | {"pad_token_id": 1},
        intermediate_size=48,
        max_position_embeddings=34,
        is_decoder=True,
    )
    lm = load(config)
    assert lm.max_positions == 32
    encoder = Encoder(lm)
    assert encoder.read(samples_of([32]))[0][0].n_tokens == 31
    with pytest.raises(ModelError, match="cannot read 33 tokens"):
        encoder.read(samples_of([33]))
    with pytest.raises(ModelError, match="use --max-length 32 or less"):
        lm.max_length(33)


def saved(path: Path, model: Any) -> str:
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def test_an_encoder_decoder_is_refused_by_name(tmp_path: Path) -> None:
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=24,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
    )
    path = saved(tmp_path / "bart", BartForConditionalGeneration(config))
    with pytest.raises(ModelError, match=r"an encoder-decoder \(BartForConditionalGeneration\)"):
        load_model(ModelConfig(path), "cpu")


def test_a_masked_language_model_is_refused(tmp_path: Path) -> None:
    config = BertConfig(**SIZES, intermediate_size=48)
    path = saved(tmp_path / "bert", BertForMaskedLM(config))
    with pytest.raises(ModelError, match="is not causal"):
        load_model(ModelConfig(path), "cpu")


def test_a_model_without_a_head_of_classes_is_no_classifier(model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, such as score.weight"):
        load_model(ModelConfig(str(model_dir), task="classification"), "cpu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "accelerate bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "accelerate optimum gptqmodel"),
        ({"quant_method": "compressed-tensors"}, "accelerate compressed-tensors"),
        ({"quant_method": "hqq"}, "HQQ"),
    ],
)
def test_a_quantised_checkpoint_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    path = save_model(tmp_path / "quantised", "llama", 0)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    for package in ("bitsandbytes", "gptqmodel", "compressed_tensors", "hqq"):
        monkeypatch.setattr(f"{QUANTIZERS}.is_{package}_available", lambda *_: False, raising=False)
    with pytest.raises(DependencyError, match=f"is quantised with .*{message}"):
        load_model(ModelConfig(str(path)), "cpu")


QUANTIZERS = "transformers.utils.import_utils"


def test_code_that_comes_with_a_model_is_not_run_unless_it_is_asked_for(tmp_path: Path) -> None:
    path = save_model(tmp_path / "custom", "llama", 0)
    (path / "configuration_mine.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig\n"
        "Path(__file__).with_name('ran').touch()\n"
        "class Mine(LlamaConfig):\n    model_type = 'mine'\n"
    )
    config = json.loads((path / "config.json").read_text()) | {"model_type": "mine"}
    config["auto_map"] = {"AutoConfig": "configuration_mine.Mine"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="if you trust it, give --trust-remote-code"):
        load_model(ModelConfig(str(path)), "cpu")
    assert not (path / "ran").exists()


def test_a_checkpoint_is_read_in_the_type_that_is_asked_for(model_dir: Path) -> None:
    lm = load_model(ModelConfig(str(model_dir), dtype="bfloat16"), "cpu")
    assert lm.model.dtype == torch.bfloat16
    with pytest.raises(InputError, match="dtype 'int8' is not one of"):
        ModelConfig(str(model_dir), dtype="int8")
    with pytest.raises(InputError, match="task 'chat' is not one of"):
        ModelConfig(str(model_dir), task="chat")


def test_weights_that_overflow_in_half_precision_are_named() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA)).half()
    with torch.no_grad():
        model.lm_head.weight.fill_(60000.0)
        model.model.norm.weight.fill_(60000.0)
    with pytest.raises(ModelError, match="try --dtype float32"):
        wrap_model(model, tiny_tokenizer())

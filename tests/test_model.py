"""What is asked of a model before it is trusted, on architectures that differ where it matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, BertConfig, MixtralConfig, OPTConfig, Phi3Config

from forvalue_index.config import VectorConfig
from forvalue_index.errors import ModelError
from forvalue_index.forward.encoder import Encoder
from forvalue_index.forward.fit import fit_vectoriser
from forvalue_index.forward.model import LanguageModel, wrap_model
from forvalue_index.records import Sample

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
    vectoriser, _ = fit_vectoriser(
        lm, samples, VectorConfig(dim=32, sketch_dim=512), lambda done: None
    )
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
    assert load(config).head.step == "none"


def test_an_id_beyond_the_embedding_is_a_clear_error() -> None:
    lm = wrap_model(tiny_model("gpt2"), tiny_tokenizer())
    (sample,) = samples_of([6])
    sample.input_ids[2] = VOCABULARY + 3
    with pytest.raises(ModelError, match="make sure that the tokenizer is the model's"):
        list(Encoder(lm).tokens([sample]))


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

"""Every kind of head that models have: exact, or refused by name."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, MusicgenDecoderConfig, OPTConfig
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.musicgen.modeling_musicgen import MusicgenForCausalLM

from forvalue_index.errors import ModelError
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.head import Room
from forvalue_index.model.head_probe import find_head
from forvalue_index.model.language_model import wrap_model
from forvalue_index.vectors.recipe import Raw

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import check_heads

FAMILIES = re.findall(
    r"\S+",
    """
    bart bert biogpt bloom codegen cohere cohere2 deepseek_v2 deepseek_v3 falcon falcon_h1
    falcon_mamba gemma gemma2 gemma3_text glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj
    granite granitemoe granitemoehybrid helium jamba lfm2 llama mamba mamba2 minicpm3 mistral
    mixtral mpt nanochat nemotron olmo olmo2 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe
    qwen3 qwen3_moe recurrent_gemma roberta rwkv smollm3 stablelm starcoder2 xglm xlstm
    """,
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_closed_form_is_exact(kind: str) -> None:
    """In one padded batch here, one by one in the oracle: padding does not count either."""
    finding = check_heads.check(kind)
    assert finding.error is not None, finding.note
    assert finding.error < check_heads.TOLERANCE


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("gemma2", "96 x 32, soft-cap 30"),
        ("cohere", "96 x 32, scale 0.0625"),
        ("opt", "96 x 16"),
        ("llama", "96 x 32"),
    ],
)
def test_the_step_behind_the_head_is_measured(kind: str, head: str) -> None:
    assert wrap_model(check_heads.tiny(kind), None).head.describe() == head


@pytest.mark.parametrize("kind", ["xlnet", "xlm"])
def test_models_that_look_ahead_are_refused(kind: str) -> None:
    finding = check_heads.check(kind)
    assert finding.error is None
    assert "is not causal" in finding.note


def test_several_codebooks_are_refused() -> None:
    config = MusicgenDecoderConfig(
        vocab_size=32, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(ModelError, match="MusicgenForCausalLM has no unembedding"):
        wrap_model(MusicgenForCausalLM(config), None)


def test_several_streams_are_refused() -> None:
    assert "does not give one distribution per token" in check_heads.check("prophetnet").note


def test_a_step_that_has_no_name_is_measured_too() -> None:
    model = altered(lambda logits: 5 * torch.tanh(logits * 0.3 / 5))
    lm = wrap_model(model, tiny_tokenizer())
    assert lm.head.scale == pytest.approx(0.3, rel=1e-4)
    assert lm.head.cap == pytest.approx(5)
    assert check_heads.relative_error(lm, check_heads.samples()) < check_heads.TOLERANCE


def test_a_cap_that_bends_small_numbers_too() -> None:
    lm = wrap_model(altered(lambda logits: 0.3 * torch.tanh(logits / 0.3)), tiny_tokenizer())
    assert lm.head.describe() == "96 x 24, soft-cap 0.3"
    assert check_heads.relative_error(lm, check_heads.samples()) < check_heads.TOLERANCE


def with_forward(logits: Any) -> Any:
    """A tiny Llama whose logits are made of its states by a function of the model and them."""
    model = tiny_model("llama")

    def forward(input_ids: Any, attention_mask: Any = None, use_cache: Any = None) -> Any:
        states = model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        return CausalLMOutputWithPast(logits=logits(model, states))

    model.forward = forward
    return model


def test_a_head_that_is_used_for_more_than_the_prediction_is_refused() -> None:
    def last(model: Any, states: Any) -> Any:
        model.lm_head(states / 2)  # as for a token further on
        return model.lm_head(states)

    with pytest.raises(ModelError, match="uses its unembedding 2 times in a pass"):
        wrap_model(with_forward(last), None)
    unused = with_forward(lambda model, states: states @ model.lm_head.weight.T)
    with pytest.raises(ModelError, match="does not use its unembedding"):
        wrap_model(unused, None)


def test_a_model_that_reads_no_text_by_itself_is_refused() -> None:
    def fail(_: Any, __: Any) -> Any:
        raise TypeError("forward() missing 1 required argument: 'pixel_values'")

    with pytest.raises(ModelError, match=r"cannot read a short text by itself \(forward"):
        wrap_model(with_forward(fail), None)


@pytest.mark.parametrize("given", [nn.DataParallel(nn.Linear(2, 2)), nn.Linear(2, 2), "llama", 0])
def test_what_is_no_model_of_transformers_is_refused(given: Any) -> None:
    with pytest.raises(ModelError, match="is not a model of transformers"):
        wrap_model(given, None)


def test_texts_that_change_each_other_are_read_alone() -> None:
    """Preferences too, whose two texts are of one sample."""
    mixing = with_forward(lambda model, states: model.lm_head(states - 0.3 * states.mean(0)))
    lm = wrap_model(mixing, tiny_tokenizer())
    assert lm.batch_matters
    rows = check_heads.samples()
    assert check_heads.relative_error(lm, rows) < check_heads.TOLERANCE
    ids = np.concatenate([rows[0].input_ids, rows[0].input_ids[::-1]])
    half = len(rows[0].input_ids)
    preferred = replace(
        rows[0], input_ids=ids, scored=np.arange(2 * half) % half >= 5, rejected=half
    )
    chosen = replace(preferred, input_ids=ids[:half], scored=preferred.scored[:half], rejected=None)
    rejected = replace(chosen, input_ids=ids[half:])
    [found] = Encoder(lm).influence([rows[1]], [preferred], [Raw()])
    [parts] = Encoder(lm).influence([rows[1]], [chosen, rejected], [Raw()])
    np.testing.assert_allclose(found, parts[0] - parts[1], rtol=1e-4)
    assert not wrap_model(tiny_model("llama"), tiny_tokenizer()).batch_matters


def test_rows_of_the_head_that_are_no_tokens_do_not_count() -> None:
    lm = wrap_model(altered(lambda logits: logits[..., :90]), tiny_tokenizer())
    assert lm.head.vocabulary == 90
    assert check_heads.relative_error(lm, check_heads.samples(90)) < check_heads.TOLERANCE


@pytest.mark.parametrize(
    "step",
    [lambda logits: logits**3, lambda logits: logits.clamp(-9, 9)],
    ids=["cube", "clamp"],
)
def test_other_steps_are_refused(step: Any) -> None:
    with pytest.raises(ModelError, match="the closed form cannot be right for it"):
        wrap_model(altered(step), tiny_tokenizer())


def altered(step: Any) -> Any:
    """A Llama that does something to its logits."""
    model = tiny_model("llama")
    forward = model.forward

    def twisted(*args: Any, use_cache: bool = False, **kwargs: Any) -> Any:
        output = forward(*args, use_cache=use_cache, **kwargs)
        output.logits = step(output.logits)
        return output

    model.forward = twisted
    return model


def test_a_head_with_its_own_bias() -> None:
    model = tiny_model("llama")
    model.lm_head = nn.Linear(24, 96)
    lm = wrap_model(model, tiny_tokenizer())
    assert check_heads.describe(lm) == "bias"
    assert check_heads.relative_error(lm, check_heads.samples()) < check_heads.TOLERANCE


def test_every_named_family_is_one_of_transformers() -> None:
    assert set(FAMILIES) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert len(FAMILIES) >= 25


def test_half_precision_heads_are_measured_exactly() -> None:
    config = OPTConfig(
        vocab_size=96, hidden_size=24, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    head = wrap_model(model, None).head
    assert (head.scale, head.cap) == (1, None)
    capped = check_heads.tiny("gemma2").to(torch.bfloat16)
    assert wrap_model(capped, None).head.describe() == "96 x 32, soft-cap 30"


def test_the_table_groups_what_was_found() -> None:
    findings = [
        check_heads.Finding("a", "A", "linear", 2e-7, ""),
        check_heads.Finding("b", "B", "refused", None, "why"),
        check_heads.Finding("c", "C", "linear", 4e-7, ""),
    ]
    rows = check_heads.markdown(findings).splitlines()[2:]
    assert rows == ["| linear (2) | a, c | 4e-07 |", "| refused (1) | b |  |"]


def test_memory_that_is_taken_again_changes_no_error() -> None:
    model = check_heads.tiny("llama").to(torch.bfloat16)
    head, room = find_head(model), Room()
    for number in range(3):
        hidden = torch.randn(5, head.hidden).to(torch.bfloat16)
        targets = torch.arange(5) + number
        with torch.no_grad():
            for found, expected in zip(
                head.errors(hidden, targets, room), head.errors(hidden, targets), strict=True
            ):
                torch.testing.assert_close(found, expected)
            model.get_output_embeddings().weight.add_(1)  # widened weights are made anew

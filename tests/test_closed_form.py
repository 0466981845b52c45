"""The closed form against autograd on the unembedding weight, which knows nothing of factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import CONFIGS, VOCABULARY, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from forvalue_index.model import exact_pass
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.language_model import wrap_model
from forvalue_index.records import Sample
from forvalue_index.vectors.closed_form import gradients_pay, influence, token_influence
from forvalue_index.vectors.recipe import Raw
from forvalue_index.vectors.tokens import TokenFactors

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def make_sample(generator: np.random.Generator, prompt: int, response: int) -> Sample:
    length = prompt + response
    scored = np.arange(length) >= max(prompt, 1)
    ids = generator.integers(0, VOCABULARY, length).astype(np.int32)
    return Sample("k", "h", {}, ids, scored, False, "test:1")


def make_samples(seed: int = 0) -> list[Sample]:
    generator = np.random.default_rng(seed)
    return [make_sample(generator, *shape) for shape in [(5, 3), (0, 12), (9, 1), (2, 20), (7, 7)]]


def gradients(model: Any, samples: list[Sample]) -> torch.Tensor:
    """Gradient of each summed response log-likelihood by the head's own weight, float64."""
    model = model.double()
    head = model.get_output_embeddings()
    rows = []
    for sample in samples:
        # A copy in the head only, so that a tied input embedding takes no part.
        weight = torch.nn.Parameter(head.weight.detach().clone())
        kept, head.weight = head.weight, weight
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
        likelihood = torch.log_softmax(model(input_ids=ids).logits[0], -1)
        scored = np.flatnonzero(sample.scored)
        total = likelihood[scored - 1, ids[0, scored]].sum()
        rows.append(torch.autograd.grad(total, weight)[0].flatten())
        head.weight = kept
    return torch.stack(rows)


def exact(model: Any, samples: list[Sample]) -> torch.Tensor:
    encoder = Encoder(wrap_model(model, tiny_tokenizer()))
    return torch.from_numpy(encoder.influence(samples, samples, [Raw()]))


def assert_oracle(model: Any) -> None:
    samples = make_samples()
    found = exact(model, samples).double()
    truth = gradients(model, samples)
    truth = truth @ truth.T
    scale = torch.sqrt(truth.diagonal()[:, None] * truth.diagonal()[None])
    assert ((found - truth).abs() / scale).max() < 1e-4
    assert (truth.abs() / scale).min() < 0.9  # the samples do differ, so the test could fail


@pytest.mark.parametrize("kind", CONFIGS)
def test_closed_form_is_the_product_of_gradients(kind: str) -> None:
    assert_oracle(tiny_model(kind))


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SMALL, head_dim=12, final_logit_softcapping=2.0),
        CohereConfig(**SMALL, logit_scale=0.25),
        GraniteConfig(**SMALL, logits_scaling=3.0),
    ],
    ids=["gemma2", "cohere", "granite"],
)
def test_steps_behind_the_unembedding_are_part_of_the_error(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    assert wrap_model(model, tiny_tokenizer()).head.describe() != "96 x 24"
    assert_oracle(model)


def test_self_influence_is_the_diagonal() -> None:
    model, samples = tiny_model("llama"), make_samples()
    encoder = Encoder(wrap_model(model, tiny_tokenizer()))
    diagonal = torch.from_numpy(encoder.self_influence(samples, [Raw()]))
    torch.testing.assert_close(diagonal, exact(model, samples).diagonal())


def test_gradients_that_are_formed_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = tiny_model("llama"), make_samples()
    encoder = Encoder(wrap_model(model, tiny_tokenizer()), token_budget=40)  # several batches
    found = []
    for pays in (False, True):
        monkeypatch.setattr(exact_pass, "gradients_pay", lambda *_, pays=pays: pays)
        found.append(encoder.influence(samples[:4], samples, [Raw()]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(found[1]), exact(model, samples)[:4])


def test_gradients_are_formed_for_many_long_queries_of_a_small_model() -> None:
    def factors(n: int, n_samples: int, v: int, d: int) -> TokenFactors:
        with torch.device("meta"):
            return TokenFactors(torch.empty(n, d), torch.empty(n, v), torch.empty(n), n_samples)

    assert gradients_pay(factors(2000, 20, 8192, 256), 100)
    assert not gradients_pay(factors(100, 1, 8192, 256), 100)  # one query
    assert not gradients_pay(factors(60, 20, 8192, 256), 3)  # short ones
    assert not gradients_pay(factors(2000, 20, 150_000, 512), 100)  # 6 GB
    assert not gradients_pay(factors(2000, 1, 120_000, 1024), 100)  # 0.5 GB, but 8 others as well


def test_prompt_tokens_do_not_count() -> None:
    model = tiny_model("llama")
    samples = make_samples()
    masked = exact(model, samples)
    whole = [
        Sample(s.key, s.content_hash, s.row, s.input_ids, np.arange(len(s.scored)) > 0, False, "")
        for s in samples
    ]
    assert not torch.allclose(masked, exact(model, whole))


def test_token_terms_sum_to_the_influence() -> None:
    generator = torch.Generator().manual_seed(0)

    def factors(owner: list[int]) -> TokenFactors:
        n = len(owner)
        return TokenFactors(
            torch.randn(n, 5, generator=generator),
            torch.randn(n, 11, generator=generator),
            torch.tensor(owner),
            max(owner) + 1,
        )

    a, b = factors([0, 0, 1]), factors([1, 0, 1, 2])
    by_loop = torch.zeros(2, 3)
    for k in range(3):
        for m in range(4):
            term = (a.errors[k] @ b.errors[m]) * (a.hidden[k] @ b.hidden[m])
            by_loop[a.owner[k], b.owner[m]] += term
    torch.testing.assert_close(influence(a, b), by_loop)
    torch.testing.assert_close(token_influence(a, b).sum(), by_loop.sum())

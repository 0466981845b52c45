"""Fine-tuning and full gradients, held to plain loops and to autograd."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import tiny_model, tiny_tokenizer

from forvalue_index import FormatConfig
from forvalue_index.analysis.evaluate.methods import empty_index
from forvalue_index.config import TrainConfig
from forvalue_index.errors import InputError, ModelError
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.gradients import SKETCH, gradient_scores
from forvalue_index.model.language_model import Checkpoint, LanguageModel, wrap_model
from forvalue_index.model.training import fine_tune, token_losses
from forvalue_index.records import Sample
from forvalue_index.vectors.recipe import Raw

CONFIG = TrainConfig(epochs=4, learning_rate=3e-3, batch_size=8)


@pytest.fixture(params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return wrap_model(tiny_model(request.param), tiny_tokenizer())


@pytest.fixture()
def samples(lm: LanguageModel, rows: list[dict[str, Any]]) -> list[Sample]:
    with empty_index(lm, FormatConfig(eos=False)) as index:
        return index.samples(rows[:20])


def weights(lm: LanguageModel) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in lm.model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def plain_losses(lm: LanguageModel, sample: Sample) -> torch.Tensor:
    """The losses of one sample's scored tokens, from the logits of the whole model."""
    ids = torch.tensor(sample.input_ids.astype(np.int64))
    logs = torch.log_softmax(lm.model(input_ids=ids[None]).logits[0].float(), dim=-1)
    places = np.flatnonzero(sample.scored)
    return torch.stack([-logs[place - 1, ids[place]] for place in places])


def test_losses_are_those_of_the_scored_tokens(lm: LanguageModel, samples: list[Sample]) -> None:
    assert any(not sample.scored[1:].all() for sample in samples), "a prompt must be left out"
    with torch.no_grad():
        expected = [float(plain_losses(lm, sample).mean()) for sample in samples]
    with torch.no_grad():
        batches = [lm.collate(samples, [i]) for i in range(len(samples))]
        found = [float(token_losses(lm, batch).mean()) for batch in batches]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_fine_tuning_learns_and_leaves_the_model_as_it_was(
    lm: LanguageModel, samples: list[Sample]
) -> None:
    before, losses = weights(lm), Encoder(lm).losses(samples)
    tuned = fine_tune(lm, samples, CONFIG)
    assert Encoder(tuned).losses(samples).mean() < 0.8 * losses.mean()
    assert same(weights(lm), before)
    assert not any(weight.requires_grad for weight in tuned.model.parameters())
    # The copy's own head is the one that its losses go through.
    assert tuned.head.module is tuned.model.get_output_embeddings()


def test_fine_tuning_is_the_same_every_time_but_for_the_seed(
    lm: LanguageModel, samples: list[Sample]
) -> None:
    first, again = (weights(fine_tune(lm, samples, CONFIG)) for _ in range(2))
    assert same(first, again)
    assert not same(first, weights(fine_tune(lm, samples, replace(CONFIG, seed=1))))


def test_the_first_step_is_that_of_adamw_on_the_mean_loss(
    lm: LanguageModel, samples: list[Sample]
) -> None:
    config = TrainConfig(epochs=1, learning_rate=1e-3, batch_size=len(samples))
    tuned = fine_tune(lm, samples, config)
    parameters = list(lm.model.requires_grad_(True).parameters())
    loss = torch.cat([plain_losses(lm, sample) for sample in samples]).mean()
    gradients = torch.autograd.grad(loss, parameters)
    for old, gradient, new in zip(parameters, gradients, tuned.model.parameters(), strict=True):
        clear = gradient.abs() > 1e-4  # beside the 1e-8 in Adam's denominator
        expected = old.detach() - 1e-3 * gradient.sign()
        torch.testing.assert_close(new[clear], expected[clear], rtol=0, atol=2e-5)


def test_progress_counts_every_pass(lm: LanguageModel, samples: list[Sample]) -> None:
    seen: list[tuple[int, int]] = []
    fine_tune(lm, samples, CONFIG, lambda _, done, total, __: seen.append((done, total)))
    assert seen[-1] == (80, 80)
    assert seen == sorted(seen)


def test_what_cannot_be_fine_tuned_is_refused(lm: LanguageModel, samples: list[Sample]) -> None:
    with pytest.raises(InputError, match="no row"):
        fine_tune(lm, [], CONFIG)
    with pytest.raises(ModelError, match="smaller --learning-rate"):
        fine_tune(lm, samples, replace(CONFIG, learning_rate=1e30))
    adapted = replace(lm, checkpoints=(Checkpoint(lm.head, adapter="default"),))
    with pytest.raises(ModelError, match="merged model"):
        fine_tune(adapted, samples, CONFIG)
    for name in ("epochs", "learning_rate", "batch_size"):
        with pytest.raises(InputError, match=f"{name} is 0"):
            replace(CONFIG, **{name: 0})


def test_the_unembedding_gradient_of_the_loss_is_the_closed_form(
    lm: LanguageModel, samples: list[Sample]
) -> None:
    if lm.model.config.tie_word_embeddings:
        pytest.skip("tied: the gradient has the embedding's path in it, too")
    gradients = []
    lm.head.module.weight.requires_grad_(True)
    for sample in samples[:6]:
        loss = token_losses(lm, lm.collate([sample], [0])).sum()
        gradients.append(torch.autograd.grad(loss, lm.head.module.weight)[0].flatten())
    lm.head.module.weight.requires_grad_(False)
    one, other = torch.stack(gradients[:2]), torch.stack(gradients[2:])
    expected = Encoder(lm).influence(samples[:2], samples[2:6], [Raw()])
    np.testing.assert_allclose((one @ other.T).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_full_gradients_are_autograds(lm: LanguageModel, samples: list[Sample]) -> None:
    queries, rows = samples[:3], samples[3:12]
    next(lm.model.parameters()).requires_grad_(False)
    before = [weight.requires_grad for weight in lm.model.parameters()]
    scores = gradient_scores(lm, queries, rows)
    assert [weight.requires_grad for weight in lm.model.parameters()] == before
    parameters = list(lm.model.requires_grad_(True).parameters())
    gradients = torch.stack(
        [
            torch.cat(
                [
                    part.flatten()
                    for part in torch.autograd.grad(plain_losses(lm, sample).sum(), parameters)
                ]
            )
            for sample in [*queries, *rows]
        ]
    )
    lengths = gradients.norm(dim=1)
    errors = torch.from_numpy(scores) - gradients[:3] @ gradients[3:].T
    relative = errors / (lengths[:3, None] * lengths[None, 3:])
    assert relative.square().mean().sqrt() < 3 / SKETCH**0.5
    assert (gradients[:3] @ gradients[3:].T / (lengths[:3, None] * lengths[3:])).std() > 0.05

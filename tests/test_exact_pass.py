"""One forward pass for several forms of influence, groups of queries and checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers.models import tiny_model, tiny_tokenizer
from test_closed_form import make_samples

from forvalue_index.model import encoder as encoder_module
from forvalue_index.model import exact_pass
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.exact_pass import ExactPass
from forvalue_index.model.language_model import wrap_model
from forvalue_index.vectors.closed_form import influence
from forvalue_index.vectors.recipe import Balanced, Kfac, Raw, Recipe
from forvalue_index.vectors.tokens import TokenFactors


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(wrap_model(tiny_model("llama"), tiny_tokenizer()), token_budget=40)


def recipes(encoder: Encoder) -> list[Recipe]:
    [statistics], _ = encoder.read(make_samples())
    return [Raw(), Balanced.fit(statistics), Kfac.fit(statistics)]


def plain(encoder: Encoder, recipe: Recipe) -> np.ndarray:
    """Returns the influence of all samples on each other, a pair at a time in float64, [n, n]."""
    samples = make_samples()
    tokens = [one for sample in samples for _, one in encoder.factors([sample], recipe)]

    def double(one: TokenFactors) -> TokenFactors:
        return TokenFactors(one.hidden.double(), one.errors.double(), one.owner, 1)

    return np.array([[float(influence(double(a), double(b))) for b in tokens] for a in tokens])


@pytest.mark.parametrize("group", [1, 1 << 30])
@pytest.mark.parametrize("block", [3, 1024])
@pytest.mark.parametrize("formed", [False, True])
def test_every_form_is_that_of_plain_pairs(
    encoder: Encoder, group: int, block: int, formed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, forms = make_samples(), recipes(encoder)
    monkeypatch.setattr(exact_pass, "FACTOR_BYTES", {"cpu": group})
    monkeypatch.setattr(exact_pass, "BLOCK", block)
    monkeypatch.setattr(exact_pass, "gradients_pay", lambda *_: formed)
    exact = ExactPass(encoder, samples[:4], [[form] for form in forms])
    found = exact.scores(samples)
    for form, pairs, squares in zip(forms, found.pairs, exact.query_squares(), strict=True):
        wanted = plain(encoder, form)
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(pairs.influence, wanted[:4], rtol=1e-4, atol=1e-5 * scale)
        np.testing.assert_allclose(pairs.squares, wanted.diagonal(), rtol=1e-4)
        np.testing.assert_allclose(squares, wanted.diagonal()[:4], rtol=1e-4)
    states = encoder.states(samples)
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    np.testing.assert_allclose(found.cosines, states[:4] @ states.T, atol=1e-5)


def test_each_sample_is_run_forward_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, forms = make_samples(), recipes(encoder)
    monkeypatch.setattr(exact_pass, "FACTOR_BYTES", {"cpu": 1})  # a group for each query
    seen: list[int] = []
    readings = Encoder.readings

    def counted(self: Encoder, some: list, *limit: int) -> Iterator[encoder_module.Reading]:
        for reading in readings(self, some, *limit):
            seen.append(len(reading.batch.positions))
            yield reading

    monkeypatch.setattr(Encoder, "readings", counted)
    ExactPass(encoder, samples[:4], [[form] for form in forms]).scores(samples)
    assert sum(seen) == 4 + len(samples)


def test_chunks_have_whole_samples(encoder: Encoder) -> None:
    encoder.runner.chunk = 5
    for reading in encoder.readings(make_samples()):
        parts = list(reading.batch.whole(5))
        assert parts[0].start == 0 and parts[-1].stop == len(reading.batch.targets)
        assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
        for part in parts:
            owners = reading.batch.owner[part]
            assert len(owners) <= 5 or len(torch.unique(owners)) == 1

"""Recipes against their definitions, written out in float64 with explicit matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forvalue_index.vectors.closed_form import influence
from forvalue_index.vectors.recipe import (
    DAMPING,
    ERROR_FLOOR,
    RECIPES,
    Balanced,
    Kfac,
)
from forvalue_index.vectors.statistics import TokenStatistics
from forvalue_index.vectors.tokens import TokenFactors

V, D = 14, 6


def factors(n: int, n_samples: int, seed: int) -> TokenFactors:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, D, generator=generator) * torch.tensor([9.0, 3, 1, 1, 0.5, 0.1])
    errors = torch.randn(n, V, generator=generator) * torch.rand(n, 1, generator=generator)
    errors[:, 3] = 0  # a vocabulary entry that is never seen
    owner = (torch.arange(n) * n_samples) // n
    return TokenFactors(hidden, errors, owner, n_samples)


@pytest.fixture()
def statistics() -> TokenStatistics:
    result = TokenStatistics(V, D, torch.device("cpu"))
    for seed in range(3):
        result.update(factors(40, 4, seed))
    return result


def gradients(tokens: TokenFactors) -> Tensor:
    rows = torch.zeros(tokens.n_samples, V, D, dtype=torch.float64)
    for h, e, owner in zip(tokens.hidden, tokens.errors, tokens.owner, strict=True):
        rows[owner] += torch.outer(e.double(), h.double())
    return rows


def test_statistics_are_means_over_all_tokens(statistics: TokenStatistics) -> None:
    parts = [factors(40, 4, seed) for seed in range(3)]
    hidden = torch.cat([part.hidden for part in parts]).double()
    errors = torch.cat([part.errors for part in parts]).double()
    moment = hidden.T @ hidden / 120
    torch.testing.assert_close(statistics.hidden_moment, moment, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(statistics.error_square, errors.square().mean(0), rtol=1e-5, atol=0)
    share = (errors / errors.norm(dim=1, keepdim=True)).square().mean(0)
    torch.testing.assert_close(statistics.error_share, share, rtol=1e-5, atol=0)
    values, vectors = statistics.directions()
    assert (values.diff() <= 0).all()
    torch.testing.assert_close(vectors * values @ vectors.T, moment, atol=1e-5, rtol=1e-5)


def test_kfac_is_the_solve_with_both_kronecker_factors(statistics: TokenStatistics) -> None:
    a, b = factors(9, 3, seed=7), factors(12, 4, seed=8)
    moment, square = statistics.hidden_moment, statistics.error_square
    left = torch.diag(square + DAMPING * square.mean())  # [v, v]
    right = moment + DAMPING * moment.trace() / D * torch.eye(D)  # [d, d]
    curvature = torch.kron(left, right)  # of G flattened row by row
    solved = torch.linalg.solve(curvature, gradients(b).flatten(1).T)
    expected = gradients(a).flatten(1) @ solved
    recipe = Kfac.fit(statistics)
    found = influence(recipe(a), recipe(b)).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert torch.isfinite(recipe(a).errors).all()
    raw = influence(a, b).double()
    assert torch.corrcoef(torch.stack([raw.flatten(), expected.flatten()]))[0, 1] < 0.99


def test_balanced_takes_the_errors_length_out(statistics: TokenStatistics) -> None:
    tokens = factors(10, 2, seed=5)
    found = Balanced.fit(statistics)(tokens)
    moment = statistics.hidden_moment
    values, vectors = torch.linalg.eigh(moment + moment.trace() / D * torch.eye(D))
    white = tokens.hidden.double() @ vectors @ torch.diag(values**-0.5) @ vectors.T
    errors = tokens.errors.double()
    errors = errors / (errors.norm(dim=1, keepdim=True) + ERROR_FLOOR)
    products = torch.einsum("nv,nd->nvd", found.errors.double(), found.hidden.double())
    torch.testing.assert_close(
        products, torch.einsum("nv,nd->nvd", errors, white), rtol=1e-4, atol=1e-5
    )
    lengths = products.flatten(1).norm(dim=1) / white.norm(dim=1)
    assert lengths.std() < 0.1 * tokens.errors.norm(dim=1).std()


def test_a_token_without_error_counts_for_nothing(statistics: TokenStatistics) -> None:
    tokens = TokenFactors(torch.ones(1, D), torch.zeros(1, V), torch.zeros(1, dtype=torch.int64), 1)
    for recipe in RECIPES.values():
        assert influence(recipe.fit(statistics)(tokens), factors(4, 1, 0)).item() == 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_token_does_not_see_the_others(name: str, statistics: TokenStatistics) -> None:
    recipe = RECIPES[name].fit(statistics)
    tokens = factors(10, 2, seed=5)
    alone = TokenFactors(tokens.hidden[3:4], tokens.errors[3:4], tokens.owner[3:4], 1)
    torch.testing.assert_close(recipe(alone).errors, recipe(tokens).errors[3:4])
    torch.testing.assert_close(recipe(alone).hidden, recipe(tokens).hidden[3:4])

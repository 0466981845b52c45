"""The learned projection against an explicit singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forvalue_index.features.projection import (
    BLOCK,
    LEARNED,
    RESIDUAL,
    _blocks,
    _random,
    fit_projection,
)

CPU = torch.device("cpu")


def sketches(n: int, width: int, rank: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    spectrum = 0.8 ** np.arange(rank)
    return (
        (generator.standard_normal((n, rank)) * spectrum) @ generator.standard_normal((rank, width))
    ).astype(np.float32)


def test_keeps_what_the_leading_singular_vectors_keep() -> None:
    data = sketches(BLOCK * 2 + 10, 300, 120)
    projection = fit_projection(data, 40, 0, CPU)
    assert projection.dim == 40
    assert projection.learned == int(40 * LEARNED)
    learned = projection.matrix[:, : projection.learned]
    torch.testing.assert_close(learned.T @ learned, torch.eye(35), atol=1e-4, rtol=0)
    _, retained = projection(torch.from_numpy(data))
    energy = torch.from_numpy(data).square().sum(1)
    best = np.linalg.svd(data, compute_uv=False)
    kept = float((retained * energy).sum() / energy.sum())
    assert kept == pytest.approx((best[:35] ** 2).sum() / (best**2).sum(), abs=1e-4)
    assert kept > 0.9


def test_up_to_as_many_rows_as_numbers_lose_nothing() -> None:
    data = torch.from_numpy(sketches(30, 300, 30))
    projection = fit_projection(data.numpy(), 64, 0, CPU)
    vectors, retained = projection(data)
    torch.testing.assert_close(retained, torch.ones(30), atol=1e-4, rtol=0)
    others = torch.from_numpy(sketches(50, 300, 50, seed=1))
    found = projection(others)[0] @ vectors.T
    error = (found.double() - others.double() @ data.double().T).abs()
    lengths = others.norm(dim=1)[:, None] * data.norm(dim=1)
    # Off by 2^-24 for each product that is added up: 300 and 300 to project, 64 at last, and 30 to
    # make a direction of the rows.
    assert (error / lengths).max() < (2 * 300 + 64 + 30) * 2.0**-24


def test_rows_unlike_the_fitted_ones_keep_their_inner_products_roughly() -> None:
    data = sketches(20, 4096, 20)
    others = torch.from_numpy(sketches(200, 4096, 200, seed=1))
    vectors, retained = fit_projection(data, 512, 0, CPU)(others)
    assert retained.max() < 0.1
    truth = others @ others.T
    found = vectors @ vectors.T
    slope = float((found * truth).sum() / (truth * truth).sum())
    assert slope == pytest.approx(RESIDUAL, rel=0.2)  # the weight of what the projection missed
    assert torch.corrcoef(torch.stack([found.flatten(), truth.flatten()]))[0, 1] > 0.9


def test_what_to_expect_of_other_rows_is_not_what_the_fitted_ones_keep() -> None:
    data = sketches(400, 300, 120)
    projection = fit_projection(data[:200], 400, 0, CPU)
    _, fitted = projection(torch.from_numpy(data[:200]))
    energy = torch.from_numpy(data[200:]).square().sum(1)
    _, others = projection(torch.from_numpy(data[200:]))
    assert fitted.min() > 0.999
    assert projection.expected == pytest.approx(
        float((others * energy).sum() / energy.sum()), abs=0.1
    )
    noise = np.random.default_rng(0).standard_normal((100, 3000)).astype(np.float32)
    assert fit_projection(noise, 400, 0, CPU).expected < 0.1


def test_the_seed_decides() -> None:
    data = sketches(400, 300, 120)
    one, two, other = (fit_projection(data, 40, seed, CPU).matrix for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_no_energy_is_no_error() -> None:
    projection = fit_projection(np.zeros((3, 50), dtype=np.float32), 8, 0, CPU)
    vectors, retained = projection(torch.zeros(2, 50))
    assert torch.equal(vectors, torch.zeros(2, 8))
    assert torch.equal(retained, torch.zeros(2))


def test_nothing_that_is_multiplied_lies_where_numpy_put_it() -> None:
    """Elsewhere, the last bits of a product may be others: the next fit would be another one."""
    kept = [block for n in range(1, 40) for block in _blocks(sketches(n, 7, 3), CPU)]
    kept += [_random(n, 3, 0) for n in range(1, 40)]
    assert not any(numbers.data_ptr() % 64 for numbers in kept)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("alike", [False, True])
def test_few_numbers_of_few_rows_are_the_best_direction_first(
    dim: int, n: int, alike: bool
) -> None:
    data = np.repeat(sketches(1, 8, 1), n, axis=0) if alike else sketches(n, 8, 8)
    projection = fit_projection(data, dim, 0, CPU)
    assert projection.matrix.shape == (8, dim)
    assert projection.learned == max(1, min(int(LEARNED * dim), 1 if alike else n))
    vectors, retained = projection(torch.from_numpy(data))
    assert torch.isfinite(projection.matrix).all() and torch.isfinite(vectors).all()
    _, values, directions = np.linalg.svd(data)
    best = (data @ directions[0]) ** 2
    assert vectors[:, 0].square().numpy() == pytest.approx(
        best, rel=1e-3, abs=1e-4 * float(values[0])
    )
    assert 0 < projection.expected <= 1 + 1e-5
    assert (retained <= 1 + 1e-5).all()

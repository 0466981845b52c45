"""Inner products of errors of which a part is multiplied in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forvalue_index.vectors import error_products
from forvalue_index.vectors.error_products import REST, ErrorProducts


def errors_of(n: int, v: int, spread: float, seed: int) -> Tensor:
    """Returns the errors of tokens whose logits have a standard deviation of `spread`, [n, v]."""
    generator = torch.Generator().manual_seed(seed)
    errors = -torch.softmax(spread * torch.randn(n, v, generator=generator), dim=1)
    errors[torch.arange(n), torch.randint(v, (n,), generator=generator)] += 1
    return errors * torch.logspace(-3, 1, n)[:, None]  # lengths that differ


def relative(found: Tensor, a: Tensor, b: Tensor) -> float:
    """Returns the largest difference from float64, relative to the lengths of the two errors."""
    wrong = (found.double() - a.double() @ b.double().T).abs()
    return float((wrong / torch.outer(a.norm(dim=1), b.norm(dim=1))).max())


@pytest.mark.parametrize("spread", [6.0, 10.0])
def test_a_split_product_is_that_of_float64(spread: float) -> None:
    a = errors_of(20, 4096, spread, 0)
    b = torch.cat([a, errors_of(30, 4096, spread, 1)])
    products = ErrorProducts(a, split=True)
    assert products.split  # so that something was rounded
    rounded = a.bfloat16().float() @ b.bfloat16().float().T  # all of it
    assert relative(products(b), a, b) < 3 * 2**-9 * REST < 1e-4 < relative(rounded, a, b)


def test_errors_that_no_few_entries_carry_are_not_split() -> None:
    flat = torch.randn(8, 4096, generator=torch.Generator().manual_seed(0))
    products = ErrorProducts(flat, split=True)
    assert not products.split
    assert relative(products(flat), flat, flat) < 1e-6


def test_few_errors_and_small_vocabularies_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_products, "fast_bfloat16", lambda _: True)
    assert ErrorProducts(errors_of(128, 8192, 20, 0)).split
    assert not ErrorProducts(errors_of(127, 8192, 8, 0)).split
    assert not ErrorProducts(errors_of(128, 8191, 8, 0)).split


def test_an_error_of_zero_has_products_of_zero() -> None:
    errors = errors_of(20, 4096, 10, 0)
    errors[3] = 0
    assert ErrorProducts(errors, split=True)(errors)[3].eq(0).all()

"""The projection against eigenvectors of each block from numpy, and a plain Hadamard matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forvalue_index.vectors import projection as projections
from forvalue_index.vectors.projection import Moments, Projection, hadamard

CPU = torch.device("cpu")
BLOCKS, WIDTH = 6, 8


@pytest.fixture(autouse=True)
def _rest_of_few_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that sketches may be small."""
    monkeypatch.setattr(projections, "FEWEST", 1)


def sketches(n: int, seed: int = 0) -> torch.Tensor:
    """Blocks of unlike energy, each with few directions of its own."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((BLOCKS, 3, WIDTH))
    inside = rng.standard_normal((n, BLOCKS, 3)) * np.arange(1, BLOCKS + 1)[:, None]
    rows = np.einsum("nbk,bkw->nbw", inside, mix) + 0.01 * rng.standard_normal((n, BLOCKS, WIDTH))
    return torch.from_numpy(rows.reshape(n, -1).astype(np.float32))


def moments_of(rows: torch.Tensor, step: int = 7) -> Moments:
    moments = Moments(BLOCKS, WIDTH, CPU)
    for part in rows.split(step):
        moments.update(part)
    return moments


@pytest.mark.parametrize("dim", [1, 10, 16, 18, 31])
def test_keeps_the_strongest_directions_of_all_blocks(dim: int) -> None:
    rows, others = sketches(200), sketches(50, seed=1)
    projection = Projection.fit(moments_of(rows), dim, 0)
    rows[3] *= 1000  # one long row decides nothing
    unit = rows / rows.norm(dim=1, keepdim=True)
    blocks = unit.view(200, BLOCKS, WIDTH).double().numpy()
    moments = np.einsum("nbi,nbj->bij", blocks, blocks)
    energies = np.trace(moments, axis1=1, axis2=2)[:, None, None]
    weight = WIDTH / (WIDTH + 200)
    shared = (moments / energies).mean(0)
    pairs = []
    for block in range(BLOCKS):
        shrunk = (1 - weight) * moments[block] + weight * energies[block] * shared
        values, vectors = np.linalg.eigh(shrunk)
        pairs += [(value, block, v) for value, v in zip(values, vectors.T, strict=True)]
    pairs.sort(key=lambda pair: -pair[0])
    plain = others.view(50, BLOCKS, WIDTH).double().numpy()
    inside, left = [], plain.copy()
    for _, block, v in pairs[: dim - dim // 4]:
        inside.append(plain[:, block] @ v)
        left[:, block] -= np.outer(inside[-1], v)
    shares = (np.stack(inside, 1) ** 2).sum(1) / (plain**2).sum((1, 2))
    if rest := dim // 4:  # what is left, added up number by number
        signs, folded = projection.tensors["rest_signs"].numpy(), np.zeros((50, rest))
        for number, sign in enumerate(signs):
            folded[:, number % rest] += left.reshape(50, -1)[:, number] * sign
        inside += list((folded * (1 - shares[:, None]) ** 2).T)
    wanted = np.stack(inside, 1)
    vectors, retained = projection(others)
    assert vectors.shape == (50, dim)
    # Signs of directions and the rotation are free: what counts is inner products.
    np.testing.assert_allclose(
        vectors @ vectors.T, wanted @ wanted.T, atol=2e-3 * float((wanted**2).sum(1).max())
    )
    np.testing.assert_allclose(retained, shares, atol=2e-3)


def test_rows_unlike_those_that_were_learned_from_keep_their_products() -> None:
    torch.manual_seed(0)
    learned, size = torch.zeros(50, 64, 64), 64 * 64
    learned[:, :, :4] = torch.randn(50, 64, 4)
    moments = Moments(64, 64, CPU)
    moments.update(learned.flatten(1))
    unlike = torch.randn(30, 12) @ torch.randn(12, size)  # rows that share twelve directions
    unlike /= unlike.norm(dim=1, keepdim=True)
    vectors, retained = Projection.fit(moments, 1024, 0)(unlike)
    assert retained.max() < 0.25  # 768 of 4,096 directions
    found, true = (rows @ rows.T for rows in (vectors, unlike))
    assert float(torch.corrcoef(torch.stack([found.flatten(), true.flatten()]))[0, 1]) > 0.95
    assert vectors.norm(dim=1).min() > 0.6


def test_rows_like_the_learned_ones_have_nothing_of_the_rest() -> None:
    rows, unseen = sketches(60), sketches(40, seed=1)
    fitted = Projection.fit(moments_of(rows), 20, 0)
    shares = fitted(unseen)[1]
    told = fitted.expecting([unseen[:30], unseen[30:]])
    usual = float(shares.mean())
    torch.testing.assert_close(told.tensors["usual"], torch.tensor([usual]))
    old = {name: value for name, value in fitted.tensors.items() if name != "rest_signs"}
    old["signs"] = old["signs"][:, :15]
    few, many = (some(unseen)[0].norm(dim=1) for some in (Projection(old), told))
    assert 5 < (shares >= usual).sum() < 35
    torch.testing.assert_close(many[shares >= usual], few[shares >= usual])
    unlike = torch.randn(8, BLOCKS * WIDTH)
    few, many = (some(unlike)[0].norm(dim=1) for some in (Projection(old), told))
    assert (many > 1.02 * few).all()


def test_few_numbers_have_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projections, "FEWEST", 6)
    rows = sketches(60)
    assert "rest_signs" not in Projection.fit(moments_of(rows), 23, 0).tensors
    assert "rest_signs" in Projection.fit(moments_of(rows), 24, 0).tensors


def test_an_older_projection_has_no_rest() -> None:
    rows = sketches(60)
    fitted = Projection.fit(moments_of(rows), 20, 0)
    old = {name: value for name, value in fitted.tensors.items() if not name.startswith("rest")}
    old["signs"] = old["signs"][:, :15]
    blocks, inside = rows.view(60, BLOCKS, WIDTH), []
    for block, part in enumerate(torch.split(old["directions"], old["counts"].tolist())):
        inside.append(blocks[:, block] @ part.float().T)
    vectors, plain = Projection(old)(rows)[0], torch.cat(inside, 1)
    torch.testing.assert_close(vectors @ vectors.T, plain @ plain.T, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_hadamard_is_the_matrix_of_signs(size: int) -> None:
    matrix = np.array([[(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)])
    rows = torch.randn(3, size)
    expected = rows.numpy() @ matrix.T / size**0.5
    np.testing.assert_allclose(hadamard(rows).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("dim", [1, 3, 47, 48])
def test_the_rotation_keeps_lengths_and_spreads_a_number(dim: int) -> None:
    moments = Moments(dim, 1, CPU)
    projection = Projection.fit(moments, dim, 0)  # nothing is left out: a rotation alone
    rows = torch.randn(5, dim)
    vectors, retained = projection(rows)
    torch.testing.assert_close(vectors @ vectors.T, rows @ rows.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(retained, torch.ones(5))
    spread = projection(torch.eye(dim))[0].abs().max()
    assert dim < 40 or spread < 0.75


def test_the_order_of_rows_and_their_batches_do_not_matter() -> None:
    rows = sketches(100)
    one = Projection.fit(moments_of(rows), 12, 0)(rows)[0]
    other = Projection.fit(moments_of(rows.flip(0), step=100), 12, 0)(rows)[0]
    torch.testing.assert_close(one @ one.T, other @ other.T, atol=0.5, rtol=1e-3)
    torch.testing.assert_close(Projection.fit(moments_of(rows), 12, 0)(rows[3:4])[0], one[3:4])


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_rows_and_rows_of_zeros_are_no_special_case(n: int) -> None:
    for rows in (torch.zeros(n, BLOCKS * WIDTH), sketches(1).expand(n, -1)):
        projection = Projection.fit(moments_of(rows), 20, 0)
        vectors, retained = projection(sketches(4, seed=3))
        assert vectors.isfinite().all() and retained.isfinite().all()
        assert projection(torch.zeros(2, BLOCKS * WIDTH))[0].abs().max() == 0


def test_what_was_saved_gives_the_same_vectors() -> None:
    rows = sketches(60)
    projection = Projection.fit(moments_of(rows), 20, 0)
    again = Projection({name: value.clone() for name, value in projection.tensors.items()})
    torch.testing.assert_close(projection(rows), again(rows), atol=0, rtol=0)
    other = Projection.fit(moments_of(rows), 20, 1)
    assert not torch.equal(other(rows)[0], projection(rows)[0])  # the seed counts

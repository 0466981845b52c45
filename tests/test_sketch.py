"""TensorSketch against its definition on the explicit G, and its statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forvalue_index.vectors.closed_form import influence
from forvalue_index.vectors.sketch import (
    ENTRIES,
    BlockSketch,
    TensorSketch,
    _add_in_turn,
    _add_together,
)
from forvalue_index.vectors.tokens import TokenFactors

V, D = 40, 12
FIRST_BUCKETS = [346, 827, 60, 761]
FIRST_SIGNS = [1.0, -1.0, 1.0, -1.0]


def factors(owner: list[int], seed: int = 0) -> TokenFactors:
    generator = torch.Generator().manual_seed(seed)
    n = len(owner)
    hidden = torch.randn(n, D, generator=generator)
    errors = torch.randn(n, V, generator=generator)
    return TokenFactors(hidden, errors, torch.tensor(owner), max(owner) + 1)


def tensor_sketch(dim: int, seed: int) -> TensorSketch:
    return TensorSketch.fit(torch.ones(V), torch.eye(D), dim, seed)


def sketch_of(tokens: TokenFactors, dim: int, seed: int) -> torch.Tensor:
    sketch = tensor_sketch(dim, seed)
    state = sketch.zeros(tokens.n_samples)
    sketch.update(state, tokens)
    return sketch.finish(state)


@pytest.mark.parametrize("dim", [64, 63, 1000])
def test_is_the_count_sketch_of_the_outer_product(dim: int) -> None:
    tokens = factors([0, 0, 1, 0, 1])
    table = tensor_sketch(dim, 5).tensors
    expected = torch.zeros(2, dim)
    for k, sample in enumerate(tokens.owner.tolist()):
        for v in range(V):
            for j in range(D):
                bucket = int(table["error_buckets"][v] + table["hidden_buckets"][j]) % dim
                sign = table["error_signs"][v] * table["hidden_signs"][j]
                expected[sample, bucket] += sign * tokens.errors[k, v] * tokens.hidden[k, j]
    torch.testing.assert_close(sketch_of(tokens, dim, 5), expected, atol=1e-4, rtol=1e-4)


def test_estimates_are_unbiased_over_seeds() -> None:
    a, b = factors([0, 0, 0, 0], seed=1), factors([0, 0, 0], seed=2)
    b = TokenFactors(b.hidden + a.hidden[:3], b.errors + a.errors[:3], b.owner, 1)
    truth = float(influence(a, b))
    dim = 256
    estimates = np.array(
        [float(sketch_of(a, dim, seed) @ sketch_of(b, dim, seed).T) for seed in range(200)]
    )
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    assert abs(estimates.mean() - truth) < 3 * error
    norms = float(influence(a, a) * influence(b, b)) ** 0.5
    assert estimates.std() < 2 * norms / np.sqrt(dim)  # the error that is promised
    assert truth > 6 * error  # a sketch of nothing would not pass


def test_seed_decides_the_sketch_alone() -> None:
    tokens = factors([0, 1])
    assert torch.equal(sketch_of(tokens, 128, 3), sketch_of(tokens, 128, 3))
    assert not torch.allclose(sketch_of(tokens, 128, 3), sketch_of(tokens, 128, 4))


def test_tables_are_the_same_on_every_machine() -> None:
    sketch = tensor_sketch(1000, 7)
    assert sketch.tensors["error_buckets"][:4].tolist() == FIRST_BUCKETS
    assert sketch.tensors["hidden_signs"][:4].tolist() == FIRST_SIGNS


@pytest.mark.parametrize("runs", [[(0, 3)], [(2, 1), (3, 5), (4, 2)], [(1, 4), (2, 4)]])
def test_one_padded_product_adds_what_a_product_for_each_sample_does(
    runs: list[tuple[int, int]],
) -> None:
    draws = torch.Generator().manual_seed(0)
    owner = torch.tensor([sample for sample, count in runs for _ in range(count)])
    errors = torch.randn(len(owner), 3, 5, generator=draws)  # [n, slots, blocks]
    hidden = torch.randn(len(owner), 3, 7, generator=draws)  # [n, slots, hidden]
    before = torch.randn(6, 5, 7, generator=draws)
    turn, together = before.clone(), before.clone()
    _add_in_turn(turn, errors, hidden, runs)
    _add_together(together, errors, hidden, runs, owner)
    torch.testing.assert_close(together, turn)
    changed = (turn != before).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [sample for sample, _ in runs]


@pytest.mark.gpu
def test_is_the_same_on_the_gpu() -> None:
    tokens = factors([0, 0, 1, 2, 2])
    device = torch.device("cuda")
    sketch = TensorSketch.fit(torch.ones(V, device=device), torch.eye(D), 512, 0)
    state = sketch.zeros(3)
    moved = TokenFactors(
        tokens.hidden.to(device), tokens.errors.to(device), tokens.owner.to(device), 3
    )
    sketch.update(state, moved)
    torch.testing.assert_close(
        sketch.finish(state).cpu(), sketch_of(tokens, 512, 0), atol=1e-4, rtol=1e-4
    )


def block_sketch(dim: int, seed: int, hidden: int = D) -> BlockSketch:
    energy = 1 / torch.arange(1, V + 1)
    return BlockSketch.fit(energy, torch.eye(D)[:, :hidden], dim, seed)


def blocks_of(tokens: TokenFactors, sketch: BlockSketch) -> torch.Tensor:
    state = sketch.zeros(tokens.n_samples)
    sketch.update(state, tokens)
    return sketch.finish(state)


@pytest.mark.parametrize("dim", [36, 40, 12, 7, 600])
def test_block_sketch_is_a_count_sketch_of_the_outer_product(dim: int) -> None:
    tokens = factors([0, 0, 1, 0, 1])
    sketch = block_sketch(dim, 5)
    t = sketch.tensors
    slots, hidden = t["orders"].shape
    assert sketch.dim == min(dim // hidden, V) * hidden  # an entry of the vocabulary has one block
    expected = torch.zeros(2, sketch.dim)
    for k, sample in enumerate(tokens.owner.tolist()):
        for v in range(V):
            block, slot = divmod(int(t["buckets"][v]), slots)
            for place in range(hidden):
                j = int(t["orders"][slot, place])
                sign = t["bucket_signs"][v] * t["order_signs"][slot, place]
                value = sign * tokens.errors[k, v] * tokens.hidden[k, j]
                expected[sample, block * hidden + place] += value
    torch.testing.assert_close(blocks_of(tokens, sketch), expected, atol=1e-4, rtol=1e-4)


def test_block_sketch_estimates_are_unbiased_over_seeds() -> None:
    a, b = factors([0, 0, 0, 0], seed=1), factors([0, 0, 0], seed=2)
    b = TokenFactors(b.hidden + a.hidden[:3], b.errors + a.errors[:3], b.owner, 1)
    truth = float(influence(a, b))
    estimates = []
    for seed in range(200):
        sketch = block_sketch(36, seed)
        estimates.append(float(blocks_of(a, sketch) @ blocks_of(b, sketch).T))
    error = np.std(estimates, ddof=1) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - truth) < 3 * error
    assert truth > 3 * error


def test_block_sketch_is_exact_when_every_entry_has_a_block() -> None:
    tokens = factors([0, 0, 1, 2])
    sketches = blocks_of(tokens, block_sketch(V * D, 0))
    torch.testing.assert_close(sketches @ sketches.T, influence(tokens, tokens))


def test_blocks_carry_equal_energy_and_the_loudest_stand_alone() -> None:
    energy = torch.tensor([100.0, 90] + [1.0] * 198)
    sketch = BlockSketch.fit(energy, torch.eye(D), D * 8, 0)
    buckets = sketch.tensors["buckets"]
    blocks = buckets // sketch.tensors["orders"].shape[0]
    assert sketch.tensors["orders"].shape[0] == -(-200 // (8 * ENTRIES))
    loads = torch.zeros(8).index_add_(0, blocks, energy)
    assert (blocks == blocks[0]).sum() == (blocks == blocks[1]).sum() == 1
    assert loads[loads < 90].max() - loads[loads < 90].min() <= 1


def test_only_the_leading_directions_of_wide_states_are_kept() -> None:
    tokens = factors([0, 0, 1])
    sketch = BlockSketch.fit(torch.ones(V), torch.eye(D), D - 2, 0)  # room for D - 2 of them
    narrow = TokenFactors(tokens.hidden.clone(), tokens.errors, tokens.owner, 2)
    narrow.hidden[:, D - 2 :] = 0
    torch.testing.assert_close(blocks_of(tokens, sketch), blocks_of(narrow, sketch))

"""From logits to the grouped errors of tokens on a GPU, reading every logit twice.

torch's own operations (softmax, length, sums by group) read and write the logits of a chunk some
ten times, and add up with one atomic operation for each of them. Logits stand here with one row for
each entry of the vocabulary, so that tokens are neighbours: adding the rows of a group needs
neither atomics nor a copy in another order, and gives the same bits each time.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from forvalue_index.features.tokens import Groups

WIDTH = 128  # tokens of a program
STEP = 16  # entries of the vocabulary that a program reads at a time
SHARE = 1024  # entries whose largest logits one program finds


def fold(
    logits: Tensor, targets: Tensor, groups: Groups, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the grouped errors [n, groups] of tokens, losses [n] (nats) and lengths [n].

    All in float32. An error is the gradient of the token's log-likelihood with respect to z, where
    the logits are scale * z.

    Args:
        logits: z, [v, n] float32, a row for each entry of the vocabulary.
        targets: [n] int64.
        groups: of the vocabulary.
        scale: of the logits.
    """
    vocabulary, n = logits.shape
    across, shares = triton.cdiv(n, WIDTH), triton.cdiv(vocabulary, SHARE)
    # Each in memory of its own, which begins where wide reads may: another kernel is not compiled.
    tops, totals = (logits.new_empty(shares, n) for _ in range(2))
    sums, squares = (logits.new_empty(groups.count, n) for _ in range(2))
    # Triton starts kernels on the current device.
    with torch.cuda.device(logits.device) if logits.is_cuda else nullcontext():
        _totals[shares, across](
            logits, tops, totals, n, vocabulary, scale, size=SHARE, step=STEP, width=WIDTH
        )
        top = tops.amax(0)
        total = (totals * (tops - top).exp()).sum(0)  # [n], of exp(logit - top)
        found = logits, targets, top, total, sums, squares
        _grouped[groups.count, across](
            *found, groups.entries, groups.starts, n, scale, step=STEP, width=WIDTH
        )
    # An error sums to nothing; 1 - p would lose the digits of a token that is known by heart.
    own = sums.sum(0)
    lengths = (squares.sum(0) + own.square()).sqrt()
    sums.neg_().scatter_add_(0, groups.of[targets][None], own[None])
    losses = top - scale * logits.gather(0, targets[None])[0] + total.log()
    return scale * sums.T, losses, abs(scale) * lengths


@triton.jit
def _totals(
    logits: tl.tensor,
    tops: tl.tensor,
    totals: tl.tensor,
    n: tl.tensor,
    vocabulary: tl.tensor,
    scale: tl.tensor,
    size: tl.constexpr,
    step: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Of a share of the vocabulary: each token's largest logit, and the sum of exp(those - it)."""
    share = tl.program_id(0)
    tokens = tl.program_id(1) * width + tl.arange(0, width)
    inside = tokens < n
    top = tl.full([width], float("-inf"), tl.float32)
    total = tl.zeros([width], tl.float32)
    for start in range(share * size, tl.minimum(share * size + size, vocabulary), step):
        rows = start + tl.arange(0, step)[:, None]
        there = rows < vocabulary
        places = rows.to(tl.int64) * n + tokens[None, :]
        z = tl.load(logits + places, mask=there & inside[None, :], other=0.0) * scale
        z = tl.where(there, z, float("-inf"))
        higher = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher[None, :]), 0)
        top = higher
    tl.store(tops + share * n + tokens, top, mask=inside)
    tl.store(totals + share * n + tokens, total, mask=inside)


@triton.jit
def _grouped(
    logits: tl.tensor,
    targets: tl.tensor,
    tops: tl.tensor,
    totals: tl.tensor,
    sums: tl.tensor,
    squares: tl.tensor,
    entries: tl.tensor,
    starts: tl.tensor,
    n: tl.tensor,
    scale: tl.tensor,
    step: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Of a group, without the target: each token's sum of probabilities, and of their squares."""
    group = tl.program_id(0)
    tokens = tl.program_id(1) * width + tl.arange(0, width)
    inside = tokens < n
    target = tl.load(targets + tokens, mask=inside, other=-1)
    top = tl.load(tops + tokens, mask=inside, other=0.0)
    share = 1 / tl.load(totals + tokens, mask=inside, other=1.0)
    total = tl.zeros([width], tl.float32)
    square = tl.zeros([width], tl.float32)
    last = tl.load(starts + group + 1)
    for start in range(tl.load(starts + group), last, step):
        places = start + tl.arange(0, step)
        entry = tl.load(entries + places, mask=places < last, other=-1)[:, None]
        there = (entry >= 0) & inside[None, :]
        z = tl.load(logits + entry * n + tokens[None, :], mask=there, other=0.0) * scale
        p = tl.exp(z - top[None, :]) * share[None, :]
        p = tl.where(there & (entry != target[None, :]), p, 0.0)
        total += tl.sum(p, 0)
        square += tl.sum(p * p, 0)
    tl.store(sums + group * n + tokens, total, mask=inside)
    tl.store(squares + group * n + tokens, square, mask=inside)

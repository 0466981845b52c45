"""The exact influence of samples on each other, from the factors of their tokens.

    influence(a, b) = sum_k sum_l <e_ak, e_bl> <h_ak, h_bl> = <G_a, G_b>     G = sum_k e_k h_k^T

(Eq. 2, arXiv 2508.10180.) G has one entry per vocabulary item and hidden unit; the factorised form
needs two small Gram matrices instead. Nothing here knows of recipes or sketches: those change the
factors or approximate the result. Only for many long queries of a small model is forming G cheaper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from forvalue_index.vectors.tokens import TokenFactors

GRADIENT_BYTES = 1 << 30  # of gradients in memory at a time, at most
FORMED = 8  # gradients of training samples that stand in memory at a time


def token_influence(a: TokenFactors, b: TokenFactors) -> Tensor:
    """Returns the term of every pair of tokens, [n_a tokens, n_b tokens], in the factors' dtype.

    The sum over a sample's rows and another's columns is the influence of the one on the other.
    """
    return (a.errors @ b.errors.T) * (a.hidden @ b.hidden.T)


def precise_token_influence(a: TokenFactors, b: TokenFactors, block: int = 8192) -> Tensor:
    """Returns what `token_influence` does, summed in float64, [n_a tokens, n_b tokens].

    `block` entries of the vocabulary at a time, so that no error has to stand there in float64.
    """
    products = a.hidden.double() @ b.hidden.double().T
    terms = torch.zeros_like(products)
    for start in range(0, a.errors.shape[1], block):
        part = slice(start, start + block)
        terms += a.errors[:, part].double() @ b.errors[:, part].double().T
    return terms * products


def influence(a: TokenFactors, b: TokenFactors) -> Tensor:
    """Returns the influence matrix of two groups of samples, [a.n_samples, b.n_samples].

    Positive: training on the one raises the log-likelihood of the other's response. With one
    sample on each side this is a 1 x 1 matrix. The factors are read as float32 at least; pass
    float64 factors for a float64 result. Memory: the tokens of a times the tokens of b.
    """
    return influence_by(a.errors @ b.errors.T, a, b)


def influence_by(products: Tensor, a: TokenFactors, b: TokenFactors) -> Tensor:
    """Returns what `influence` does, of the products of errors [n_a tokens, n_b tokens]."""
    terms = products * (a.hidden @ b.hidden.T)
    rows = terms.new_zeros(a.n_samples, terms.shape[1]).index_add_(0, a.owner, terms)
    return terms.new_zeros(b.n_samples, a.n_samples).index_add_(0, b.owner, rows.T.contiguous()).T


def self_influence(tokens: TokenFactors, forms: Sequence[TokenFactors]) -> list[Tensor]:
    """Returns the influence of each sample on itself under some forms, [n_samples] each.

    The tokens of a sample stand next to each other. Memory: the square of the longest's tokens.

    Args:
        tokens: of the samples, as they come.
        forms: what transforms made of them; products of errors that stayed are shared.
    """
    result = [tokens.hidden.new_zeros(tokens.n_samples) for _ in forms]
    for owner, part in _samples(tokens):
        common: Tensor | None = None
        for own, form in zip(result, forms, strict=True):
            errors, hidden = form.errors[part], form.hidden[part]
            if form.errors is not tokens.errors:
                products = errors @ errors.T
            else:
                products = common = errors @ errors.T if common is None else common
            own[owner] = (products * (hidden @ hidden.T)).sum()
    return result


def gradients(tokens: TokenFactors) -> Tensor:
    """Returns G of each sample, flattened, [n_samples, v * d].

    The tokens of a sample stand next to each other. Memory: v * d numbers a sample.
    """
    shape = tokens.n_samples, tokens.errors.shape[1], tokens.hidden.shape[1]
    result = tokens.hidden.new_zeros(shape)
    for owner, part in _samples(tokens):
        torch.mm(tokens.errors[part].T, tokens.hidden[part], out=result[owner])
    return result.flatten(1)


def gradients_pay(a: TokenFactors, length: float) -> bool:
    """Returns whether `gradients` of a are cheaper than pairs of tokens, and fit in memory.

    `length` is the number of tokens of each sample that they will be compared with.
    """
    n, (n_tokens, v), d = a.n_samples, a.errors.shape, a.hidden.shape[1]
    fits = 4 * (n + FORMED) * v * d <= GRADIENT_BYTES
    return fits and d * (length + n) < length * n_tokens


def gradient_influence(a: Tensor, b: TokenFactors) -> Tensor:
    """Returns what `influence` does, of the gradients [n_a, v * d] of one side."""
    v, d = b.errors.shape[1], b.hidden.shape[1]
    result = a.new_zeros(len(a), b.n_samples)
    room = a.new_empty(FORMED, v, d)
    samples = list(_samples(b))
    for start in range(0, len(samples), FORMED):
        several = samples[start : start + FORMED]
        for own, (_, part) in zip(room, several, strict=False):
            torch.mm(b.errors[part].T, b.hidden[part], out=own)
        owners = [owner for owner, _ in several]
        result[:, owners] = a @ room[: len(several)].flatten(1).T
    return result


def _samples(tokens: TokenFactors) -> Iterator[tuple[int, slice]]:
    """Yields samples that have tokens, and where these are."""
    start = 0
    for owner, count in tokens.runs():
        yield owner, slice(start, start + count)
        start += count

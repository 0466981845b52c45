"""The best of many queries by products of 8-bit integers, which leave few for exact scores.

Processors that multiply bytes do so four times as fast as float32. What rounding vectors and
queries to bytes does to a score is bounded by the lengths of what it takes away (Cauchy-Schwarz);
a pair that may be among the best after that is scored in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.search.backend import faiss
from forvalue_index.search.parts import Ids, Part, Scores, threads

_NUMBERS = 2**20  # of vectors, or of products, at a time: 4 MiB, which stay in the cache
_DENSE = 16  # one pair of so many left: comparing all of them in float32 is faster
_LEAST = 1e-30  # a scale; what is smaller still is nothing, and its length says so

_alone = Lock()


@cache
def available() -> bool:
    """Whether this machine multiplies bytes fast, and rightly: some let sums of two overflow."""
    if not getattr(torch.cpu, "_is_vnni_supported", bool)():
        return False
    rows = torch.from_numpy(np.full((64, 64), 127, np.int8))
    rows[::2] *= -1
    try:
        same = torch.equal(torch._int_mm(rows, rows.T), rows.int() @ rows.T.int())
        with warnings.catch_warnings():  # torch says once that sparse tensors are new
            warnings.simplefilter("ignore")
            _at(rows.float(), rows.float(), *torch.zeros(2, 1, dtype=torch.int64, device="cpu"))
    except (AttributeError, RuntimeError):
        return False
    return same


def best(
    parts: Sequence[Part], queries: Scores, m: int, table: Scores | None
) -> tuple[Scores, Ids, float]:
    """Scores and ids of the m best [q, m], best first, and the greatest weighted length.

    Scores are float32, added up in any order. One that is not among them may be higher than the
    last by as much as the orders of addition differ (`many.slack`), not by more.

    Args:
        parts: m vectors or more.
        queries: [q, dim] float32.
        m: of each query.
        table: the weight of each id, at the place of its number.

    Raises:
        CorruptIndexError: a part holds vectors that cannot be compared.
    """
    asked, scale = _scaled(torch.from_numpy(queries))
    found = _Best(asked, m)
    cores = faiss().omp_get_max_threads()
    left = iter(parts)  # whoever is done with one takes the next
    with _one_thread_each():
        longest = threads(cores).map(lambda _: _compare(left, asked, table, found), range(cores))
        most = max(longest) * (1 + queries.shape[1] * 2.0**-23)
    return (found.scores * scale[:, None]).numpy(), found.ids.numpy(), most


class _Best:
    """The best so far of each query, which all threads know: `scores` and `ids` [q, m]."""

    def __init__(self, queries: Tensor, m: int) -> None:
        self.scores = queries.new_full((len(queries), m), -torch.inf)
        self.ids = queries.new_zeros((len(queries), m), dtype=torch.int64)
        self._lock = Lock()

    def add(self, scores: Tensor, ids: Tensor) -> None:
        """Puts in what is better, of any number of scores and ids [q, any]."""
        with self._lock:
            m = self.scores.shape[1]
            self.scores, order = torch.cat([self.scores, scores], dim=1).topk(m, dim=1)
            self.ids = torch.cat([self.ids, ids], dim=1).gather(1, order)


def _compare(parts: Iterator[Part], asked: Tensor, table: Scores | None, best: _Best) -> float:
    """Adds to the best of some queries, scaled to 127; returns the greatest weighted length.

    `parts` are taken by several threads.
    """
    (count, dim), m = asked.shape, best.scores.shape[1]
    narrow, lost = _rounded(asked)
    lengths = 1.001 * _length(narrow.float())[:, None]
    # As far as float32 takes the scores, the scales, the weights and the lengths themselves off.
    rest = (1.001 * lost + (dim + 8) * 2.0**-22 * _length(asked))[:, None]
    room = _Room(count, dim, max(m, _NUMBERS // max(count, dim)))
    longest, tried, missed = 0.0, 0, 0
    for part, ids, vectors, weights in _blocks(parts, room, table):
        plain = _length(vectors)
        if not torch.isfinite(plain).all():
            raise part.not_finite()
        whole = plain if weights is None else plain * weights
        longest = max(longest, float(whole.max()))
        floor = best.scores[:, -1:]
        few = missed <= 1 + tried // 2 and bool(torch.isfinite(floor).all())
        if few:
            products, lost, unit = room.products(narrow, vectors, weights)
            # In units of both scales: how far a score may be above the floor.
            # (A matrix product with so few columns takes four times as long.)
            over = unit if weights is None else unit * weights
            products.addcmul_(rest, plain / unit).addcmul_(-floor, 1 / over)
            places = np.flatnonzero(products.numpy() >= (-lengths * lost.max()).numpy())
            few = _DENSE * len(places) < products.numel()
            tried, missed = tried + 1, missed + (not few)
        if few:
            row, column = map(torch.from_numpy, np.divmod(places, len(ids)))
            pairs = _at(asked, vectors, row, column)
            scores, where = _aligned(
                pairs if weights is None else pairs * weights[column], row, column, count
            )
        else:
            every = asked @ vectors.T
            if weights is not None:
                every *= weights
            scores, where = every.topk(min(m, len(ids)), dim=1)
        best.add(scores, ids[where])
    return longest


class _Room:
    """Memory of one thread for a block of vectors: new memory costs as much as filling it."""

    def __init__(self, count: int, dim: int, step: int) -> None:
        self.step = step  # vectors of a block
        self._floats = torch.empty(3, step, dim)
        self._bytes = torch.empty(step, dim, dtype=torch.int8)
        self._whole = torch.empty(count * step, dtype=torch.int32)
        self._products = torch.empty(count * step)

    def vectors(self, halves: NDArray[np.float16]) -> Tensor:
        """Vectors [n, dim] in float32."""
        return self._floats[0, : len(halves)].copy_(torch.from_numpy(halves))

    def products(
        self, queries: Tensor, vectors: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Products of queries of bytes with vectors rounded to bytes, [q, n], in float32.

        And what rounding took from the vectors, [n], in units of their scales, [n]. A scale, also
        times the vector's weight, is not below _LEAST.
        """
        (count, _), n = queries.shape, len(vectors)
        units, whole = self._floats[1:, :n]
        unit = (torch.abs(vectors, out=units).amax(1) / 127).clamp_min_(_LEAST)
        if weights is not None:
            unit = torch.maximum(unit, _LEAST / weights)
        torch.round(torch.mul(vectors, (1 / unit)[:, None], out=units), out=whole)
        small = self._bytes[:n].copy_(whole)
        lost = _length(torch.sub(units, whole, out=units))
        found = self._whole[: count * n].view(count, n)
        torch._int_mm(queries, small.T, out=found)
        return self._products[: count * n].view(count, n).copy_(found), lost, unit


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """A thread that meets torch in here first has it work on that thread alone.

    Threads that share each operation wait for the slowest of them each time.
    """
    with _alone:
        ours, cores = torch.get_num_threads(), faiss().omp_get_max_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(ours)
            faiss().omp_set_num_threads(cores)  # where both have the same OpenMP


def _blocks(
    parts: Iterable[Part], room: _Room, table: Scores | None
) -> Iterator[tuple[Part, Tensor, Tensor, Tensor | None]]:
    """Yields vectors that may be an answer [room.step, dim], their ids and weights."""
    for part in parts:
        for ids, halves in part.stored(room.step):
            weights = None if table is None else torch.from_numpy(table[ids])
            yield part, torch.from_numpy(ids), room.vectors(halves), weights


def _length(vectors: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1)
    return lengths


def _scaled(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors [n, dim] whose largest numbers are 127, and what they were divided by, [n]."""
    scale = (vectors.abs().amax(dim=1) / 127).clamp_min(_LEAST)
    return vectors * (1 / scale)[:, None], scale


def _rounded(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of bytes [n, dim], and the lengths of what rounding took from them, [n]."""
    whole = vectors.round()
    return whole.to(torch.int8), _length(vectors - whole)


def _at(queries: Tensor, vectors: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The scores of some pairs, ascending by query and then by vector: [pairs]."""
    starts = torch.searchsorted(row, torch.arange(len(queries) + 1, device=row.device))
    shape = len(queries), len(vectors)
    pairs = torch.sparse_csr_tensor(starts, column, queries.new_zeros(len(row)), shape)
    scores: Tensor = torch.sparse.sampled_addmm(pairs, queries, vectors.T).values()
    return scores


def _aligned(scores: Tensor, row: Tensor, column: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scores and columns of pairs, as a row for each query, filled up with minus infinity."""
    counts = torch.bincount(row, minlength=count)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    out = scores.new_full((count, int(counts.max())), -torch.inf)
    where = torch.zeros_like(out, dtype=torch.int64)
    out[row, place] = scores
    where[row, place] = column
    return out, where

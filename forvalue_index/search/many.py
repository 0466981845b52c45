"""What may be the best of many queries at a time: candidates by products of matrices.

Decoding the vectors for BLAS costs as much as some ten scans; from then on a query costs a third
of one, and a tenth where bytes multiply fast (`narrow.py`). BLAS adds up in an order of its own,
so that its scores are another one's to the last bits: how far they can be off is bounded, and what
cannot be told apart is for a scan to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from forvalue_index.search.backend import faiss
from forvalue_index.search.parts import Ids, Part, Scores, on_all_cores

MANY = 32
"""Queries from which decoding all vectors pays."""

Proposal = tuple[Ids, NDArray[np.float64]]
"""Candidates of each query [q, m], and what the score of no other vector is above [q]."""

_NUMBERS = 2**20  # of vectors that a thread decodes at a time: 4 MiB, which stay in the cache
_RESULTS = 2**22  # candidates in memory at a time: 48 MiB
_TOGETHER = 2**10  # queries at a time: with more, the products of fewer vectors stay in the cache


def propose(parts: Sequence[Part], queries: Scores, m: int, table: Scores | None) -> Proposal:
    """The m best of each query by approximate scores, [q, m], and a bound for all others, [q].

    No vector of `parts` that is not proposed has a score above the bound, if scores are taken
    in float32, in any order of addition.

    Args:
        parts: m vectors or more.
        queries: [q, dim] float32.
        m: candidates.
        table: the weight of each id, at the place of its number.

    Raises:
        CorruptIndexError: a part holds vectors that cannot be compared.
    """
    from forvalue_index.search import narrow  # it needs torch, which takes a second to import

    ids = np.empty((len(queries), m), np.int64)
    bounds = np.empty(len(queries))
    best = narrow.best if narrow.available() else _best
    step = max(MANY, min(_TOGETHER, _RESULTS // m))
    for start in range(0, len(queries), step):
        some = slice(start, start + step)
        scores, ids[some], longest = best(parts, queries[some], m, table)
        bounds[some] = scores[:, -1] + slack(queries[some], longest)
    return ids, bounds


def slack(queries: Scores, longest: float, unit: float = 0.0) -> NDArray[np.float64]:
    """How far apart two float32 scores of a query and a vector can be, [q].

    Args:
        queries: [q, dim] float32.
        longest: the greatest length of a vector.
        unit: as in `relative_slack`.
    """
    dim = queries.shape[1]
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
    slack: NDArray[np.float64] = relative_slack(dim, unit) * lengths * longest + underflow(dim)
    return slack


def relative_slack(dim: int, unit: float = 0.0) -> float:
    """How far apart two float32 scores can be, over the product of both lengths.

    A sum of d rounded products, whatever its order, is off by at most d u / (1 - d u) times the
    product of both lengths (Higham, Accuracy and Stability, section 3.1), with u = 2^-24; two
    such sums by twice that. Weights round thrice more.

    Args:
        dim: of the vectors.
        unit: by how much, relative, queries were rounded for one of the scores.
    """
    error = (dim + 4) * 2.0**-24
    return unit + 2 * error / (1 - error)


def underflow(dim: int) -> float:
    """How far apart the scores can be beside that: products that are too small for float32."""
    return dim * float(np.finfo(np.float32).tiny)


def _best(
    parts: Sequence[Part], queries: Scores, m: int, table: Scores | None
) -> tuple[Scores, Ids, float]:
    """Scores and ids of the m best [q, m], best first, and the greatest length of a vector."""
    lib, lock = faiss(), Lock()
    best = lib.ResultHeap(len(queries), m, keep_max=True)
    longest = 0.0

    def compare(part: Part) -> None:
        nonlocal longest
        dim = part.piece.index.d
        for ids, vectors in part.decoded(max(1, _NUMBERS // dim)):
            if table is not None:
                vectors *= table[ids][:, None]
            squares = np.empty(len(ids), np.float32)
            lib.fvec_norms_L2sqr(lib.swig_ptr(squares), lib.swig_ptr(vectors), dim, len(ids))
            scores, places = lib.knn(
                queries, vectors, min(m, len(ids)), metric=lib.METRIC_INNER_PRODUCT
            )
            # FAISS fills up with -1 where it finds fewer, as when a score is NaN.
            if (places < 0).any() or not np.isfinite(squares).all():
                raise part.not_finite()
            length = float(squares.max()) ** 0.5 * (1 + dim * 2.0**-23)
            with lock:
                longest = max(longest, length)
                best.add_result(scores, ids[places])

    on_all_cores(compare, parts)
    best.finalize()
    return best.D, best.I, longest

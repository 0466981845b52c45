"""How true stored vectors are to the exact form, on samples that nothing was fitted to.

The exact influence of some samples on a few others of them is summed while the model reads them to
make their vectors: it costs no second forward pass but those of the few, which are the queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.model.encoder import Encoder
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import TOP, Fidelity, Sample
from forvalue_index.vectors.closed_form import influence
from forvalue_index.vectors.codes import Codes
from forvalue_index.vectors.tokens import TokenFactors
from forvalue_index.vectors.vectoriser import Vectoriser

LEAST = 4 * TOP + 1  # samples that are kept out: the best ten of fewer are hard to miss
MOST = 256
QUERIES = 12, 32  # of the samples, as many as the work allows
QUERY_BYTES = 256 << 20  # of the queries' errors in float32; at least four are taken
SHARE = 0.05  # of the forward passes' operations that the exact form may take


def compared(lm: LanguageModel, samples: Sequence[Sample]) -> tuple[int, int]:
    """Returns how many of `samples` are compared with how many queries; (0, 0): too few.

    As many that the exact form is SHARE of the forward passes of all of them.
    """
    if len(samples) < LEAST:
        return 0, 0
    tokens = sum(len(sample.input_ids) for sample in samples)
    scored = sum(sample.n_scored for sample in samples) / len(samples)
    of_a_pair = 2 * scored**2 * (lm.head.vocabulary + lm.head.hidden)
    pairs = SHARE * 2 * lm.n_parameters * tokens / of_a_pair / len(lm.checkpoints)
    rows = int(np.clip(pairs / QUERIES[0], LEAST, MOST))
    rows = max(LEAST, min(rows, len(samples) // 8))
    room = max(4, int(QUERY_BYTES / (4 * scored * lm.head.vocabulary)))
    return rows, min(int(np.clip(pairs / rows, *QUERIES)), room, rows)


class Exact:
    """The exact influence of samples on queries, [queries, samples], summed as they are read."""

    def __init__(
        self, encoder: Encoder, vectoriser: Vectoriser, samples: Sequence[Sample], queries: int
    ) -> None:
        """Runs the first `queries` of the samples forward.

        Memory: their scored tokens times the vocabulary, in float32.

        Raises:
            RowError: one of them cannot be read, or the model gives NaN or infinity for it.
        """
        self._parts = vectoriser.parts
        self._queries = [
            list(encoder.factors(samples[:queries], part, number))
            for number, part in enumerate(self._parts)
        ]
        self.scores = np.zeros((queries, len(samples)), np.float32)

    def begin(self, positions: Sequence[int]) -> None:
        """Forgets what was summed for the samples at `positions`: they are read from the start."""
        self.scores[:, positions] = 0

    def add(self, positions: Sequence[int], tokens: TokenFactors, checkpoint: int) -> None:
        """Adds some tokens of the samples at `positions`, as a checkpoint gives them."""
        tokens = self._parts[checkpoint](tokens)
        for rows, query in self._queries[checkpoint]:
            self.scores[np.ix_(rows, positions)] += influence(query, tokens).cpu().numpy()


def among_themselves(
    exact: NDArray[np.float32], vectors: NDArray[np.float32], bits: int
) -> Fidelity | None:
    """Returns how true the stored vectors of samples are; None: they are too few to tell.

    Args:
        exact: influence of all samples on the queries, which are the first of them, [q, n].
        vectors: of all samples, [n, dim], times the vectoriser's scale.
        bits: of a number that is stored.
    """
    queries, n = exact.shape
    if n < LEAST or not queries:
        return None
    codes = Codes(vectors.shape[1], bits)
    stored = vectors[:queries] @ codes.decode(codes.encode(vectors)).T
    lengths = np.linalg.norm(vectors, axis=1)
    others = ~np.eye(queries, n, dtype=bool)  # than the query itself

    def without(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values[others].reshape(queries, n - 1)

    return fidelity(
        without(exact), without(stored), without(np.outer(lengths[:queries], lengths)), n - 1
    )


def fidelity(
    exact: NDArray[np.float32], stored: NDArray[np.float32], sizes: NDArray[np.float32], rows: int
) -> Fidelity:
    """Returns how true stored scores are, at least two queries with TOP samples or more.

    Args:
        exact: influence of the samples that are compared with each query, [q, n].
        stored: what their vectors say, [q, n].
        sizes: the product of the lengths of the query's vector and the sample's, [q, n].
        rows: samples that the best may come from.
    """
    kept, below = [], []
    for true, score, size in zip(exact, stored, sizes, strict=True):
        best = np.argsort(-true, kind="stable")[:TOP]
        found = np.argsort(-score, kind="stable")[:TOP]
        kept.append(len(np.intersect1d(best, found)) / TOP)
        below.append((score[found[-1]] - score[best]) / np.maximum(size[best], 1e-30))
    return Fidelity(
        top_10=round(float(np.mean(kept)), 4),
        error=round(float(np.std(kept, ddof=1) / len(kept) ** 0.5), 4),
        queries=len(kept),
        rows=rows,
        margin=round(max(0.0, float(np.quantile(np.concatenate(below), 0.99))), 5),
    )

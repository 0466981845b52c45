"""How true stored vectors are to the exact form, on samples that nothing was fitted to.

The exact influence of some samples on a few others of them is summed while the model reads them to
make their vectors: it costs no second forward pass but those of the few, which are the queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.errors import RowError
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import TOP, Fidelity, Sample
from forvalue_index.vectors.closed_form import influence
from forvalue_index.vectors.codes import Codes
from forvalue_index.vectors.tokens import TokenFactors
from forvalue_index.vectors.vectoriser import Vectoriser

LEAST = 4 * TOP + 1  # samples that are compared: the best ten of fewer are hard to miss
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


def measure(
    lm: LanguageModel, vectoriser: Vectoriser, samples: Sequence[Sample], bits: int
) -> Fidelity | None:
    """Returns how true the stored vectors of samples are, by reading them once more.

    None: they are too few to tell, or the model gives NaN for one.
    """
    encoder, refused = Encoder(lm), dict[int, RowError]()
    queries = min(QUERIES[0], compared(lm, samples)[1])
    exact = Exact(encoder, vectoriser, samples, queries)
    vectors = np.zeros((len(samples), vectoriser.dim), np.float32)
    for batch in encoder.encode(samples, vectoriser, None, refused, exact):
        for position, item in batch:
            vectors[position] = item.vector
    return None if refused else fidelity(exact.scores, vectors, bits)


def fidelity(
    exact: NDArray[np.float32], vectors: NDArray[np.float32], bits: int
) -> Fidelity | None:
    """Returns how true the stored vectors are; None: there are too few samples to tell.

    Args:
        exact: influence of all samples on the queries, which are the first of them, [q, n].
        vectors: of all samples, [n, dim], times the vectoriser's scale.
        bits: of a number that is stored.
    """
    queries, n = exact.shape
    if n < LEAST or not queries:
        return None
    codes = Codes(vectors.shape[1], bits)
    decoded = codes.decode(codes.encode(vectors))
    stored = vectors[:queries] @ decoded.T
    lengths = np.linalg.norm(vectors, axis=1)
    kept, below = [], []
    for i in range(queries):
        others = np.delete(np.arange(n), i)
        best = others[np.argsort(-exact[i, others], kind="stable")[:TOP]]
        found = others[np.argsort(-stored[i, others], kind="stable")[:TOP]]
        kept.append(len(np.intersect1d(best, found)) / TOP)
        missing = stored[i, found[-1]] - stored[i, best]
        below.append(missing / np.maximum(lengths[i] * lengths[best], 1e-30))
    return Fidelity(
        top_10=round(float(np.mean(kept)), 4),
        error=round(float(np.std(kept, ddof=1) / queries**0.5), 4),
        queries=queries,
        rows=n - 1,
        margin=round(max(0.0, float(np.quantile(np.concatenate(below), 0.99))), 5),
    )

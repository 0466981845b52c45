"""Metrics: what a score is made of beside the inner product of a query and a stored vector.

    score = turned query . stored vector / size of the query / size of the sample

Only this module knows the metrics by name; the others ask the object. It knows of no index: it is
handed vectors and the figures that are kept beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forvalue_index.errors import InputError

NO_SIZE = 1e30
"""The size of what has none, such as a zero vector, so that its scores are 0."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metric:
    """One way to score samples for a query. Take it from `METRICS`, or by its name."""

    name: str
    by: Literal["length", "tokens"] | None = None  # what a size is; None: it is 1
    decorrelates: bool = False  # queries are turned: see `search/decorrelate.py`
    words: bool = False  # words are compared: see `search/words.py`
    vectors: bool = True  # vectors are compared
    heading: str = ""  # of a column of scores

    @property
    def has_exact(self) -> bool:
        """Whether there is an exact form: a score is of two samples, whatever the others are."""
        return self.linear and not self.decorrelates

    @property
    def linear(self) -> bool:
        """Whether a score is an inner product, so that it has a sign and can be summed."""
        return not self.words

    @property
    def derived(self) -> str:
        """Name of the derived index that serves it: of the metric with the same weights."""
        return "dot" if self.decorrelates else self.name

    @property
    def needs_lengths(self) -> bool:
        """Whether `sizes` looks at lengths."""
        return self.by == "length"

    def sizes(self, lengths: NDArray[Any], n_scored: NDArray[Any]) -> Floats:
        """Returns what the scores of samples are divided by, [n].

        Args:
            lengths: of the samples' vectors [n]; of no account unless `needs_lengths`.
            n_scored: the samples' scored tokens [n].
        """
        if self.by is None:
            return np.ones(len(n_scored))
        sizes = np.asarray(lengths if self.by == "length" else n_scored, np.float64)
        return np.where(sizes > 0, sizes, NO_SIZE)

    def weights(self, lengths: NDArray[Any], n_scored: NDArray[Any]) -> NDArray[np.float32]:
        """Returns what inner products with stored vectors are multiplied by, [n].

        Arguments as `sizes`, lengths in the scale that is stored.
        """
        return (1 / self.sizes(lengths, n_scored)).astype(np.float32)

    def query_weights(
        self, vectors: NDArray[np.float32], n_scored: NDArray[Any], scale: float
    ) -> Floats:
        """Returns what the scores of queries are multiplied by, [q].

        Args:
            vectors: of the queries [q, D], in the scale that is stored.
            n_scored: the queries' scored tokens [q].
            scale: what vectors were multiplied by before they were stored.
        """
        sizes = self.sizes(np.linalg.norm(vectors.astype(np.float64), axis=1), n_scored)
        return 1 / (sizes if self.needs_lengths else sizes * scale**2)  # of lengths it cancels out


METRICS = {
    metric.name: metric
    for metric in (
        Metric("dot", heading="influence"),
        Metric("cosine", by="length", heading="cosine"),
        Metric("per-token", by="tokens", heading="per-token"),
        Metric("decorrelated", decorrelates=True, heading="decorrelated"),
        Metric("lexical", words=True, vectors=False, heading="words"),
        Metric("hybrid", by="length", words=True, heading="hybrid"),
    )
}

DERIVED = tuple(name for name, m in METRICS.items() if m.linear and m.derived == name)
"""The metrics that can have a derived index of their own."""


def metric_of(metric: str | Metric, *, exact: bool = False, linear: bool = False) -> Metric:
    """Returns the metric of a name; `exact`: it must have an exact form; `linear`: be linear.

    Raises:
        InputError: there is none of this name, or it is not what it must be.
    """
    found = METRICS.get(metric) if isinstance(metric, str) else metric
    if not isinstance(found, Metric):
        raise InputError(f"metric {metric!r} is not one of {', '.join(METRICS)}")
    if exact and not found.has_exact:
        others = ", ".join(name for name, other in METRICS.items() if other.has_exact)
        raise InputError(
            f"metric {found.name!r} is for stored vectors only and has no exact form: leave out "
            f"exact, or use {others}"
        )
    if linear and not found.linear:
        others = ", ".join(name for name, other in METRICS.items() if other.linear)
        raise InputError(
            f"metric {found.name!r} finds rows and does not say what they did: use {others}"
        )
    return found

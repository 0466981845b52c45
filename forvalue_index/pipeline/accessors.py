"""What an open index is made of, as attributes of `InfluenceIndex`: analysis and tools use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from forvalue_index.errors import InputError
from forvalue_index.metric import Metric
from forvalue_index.pipeline.query import exact_scores, query
from forvalue_index.pipeline.session import Session
from forvalue_index.records import Hit, QueryVectors, Sample, StoredSample
from forvalue_index.search.common import Scores
from forvalue_index.search.flat import FlatSearch
from forvalue_index.store import rows
from forvalue_index.store.snapshot import Snapshot
from forvalue_index.store.store import Store

if TYPE_CHECKING:
    from forvalue_index.config import FormatConfig
    from forvalue_index.model.language_model import LanguageModel
    from forvalue_index.pipeline.passes import ModelPasses
    from forvalue_index.vectors.vectoriser import Vectoriser

T = TypeVar("T")


class Closed:
    """In the place of what a closed index was made of: nothing is opened again by using it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def close(self) -> None:
        """Does nothing: it is closed."""

    def __len__(self) -> int:
        raise InputError(f"the index {self._directory} is closed: open it again")

    def __getattr__(self, name: str) -> Any:
        raise InputError(f"the index {self._directory} is closed: open it again")


class IndexAccessors:
    """The model, the snapshot and the rows of an index. `InfluenceIndex` derives from it."""

    session: Session
    store: Store

    @property
    def lm(self) -> LanguageModel:
        """The model, loaded and checked against the fingerprint when it is first needed."""
        return self.session.lm

    @property
    def vectoriser(self) -> Vectoriser:
        """What turns the model's tokens into this index's vectors, once rows were added."""
        return self.session.vectoriser

    @property
    def dim(self) -> int:
        """Length of a stored vector; 0 as long as the index is empty."""
        return self.store.dim

    @property
    def flat(self) -> FlatSearch:
        """The exact search over the stored vectors."""
        return self.store.snapshots.current.flat

    def vectors(self, samples: list[Sample]) -> Scores:
        """Returns the vectors of samples, [n, dim] float32, in the scale that is stored."""
        return self.session.vectors(samples)

    def query_vectors(self, samples: list[Sample]) -> QueryVectors:
        """Returns the vectors of queries, and their states if the index has any, for `find`."""
        return self.session.query_vectors(samples)

    def find(
        self,
        samples: list[Sample],
        vectors: Scores | QueryVectors,
        k: int = 10,
        *,
        opponents: bool = False,
        metric: str | Metric = "dot",
        where: str | Iterable[str] = (),
        flat: bool = False,
        format: FormatConfig | None = None,
    ) -> list[Hit]:
        """Returns the hits of queries whose vectors [q, dim] were made before, as `query` does.

        The model is not run, so that threads may search side by side while it works. States, which
        "hybrid" compares, come with `query_vectors`.
        """
        known = QueryVectors.of(vectors)
        return query(
            self.session, samples, k, opponents, metric, where, False, None, flat, format, known
        )

    def influence(
        self, queries: list[Sample], samples: list[Sample], metric: str | Metric = "dot"
    ) -> NDArray[Any]:
        """Returns the exact scores of samples for queries [q, n], by running both forward.

        Under the metric "dot" these are influence, float32; under others float64.
        """
        return exact_scores(self.session, queries, samples, metric)

    def training_samples(self, ids: Iterable[int]) -> list[Sample]:
        """Returns the training samples with these ids, in their order, as they were encoded."""
        return self.session.training_samples(ids)

    @property
    def snapshot(self) -> Snapshot:
        """The index at its current generation: ids, figures, vectors and search."""
        return self.store.snapshots.current

    def answer(self, ask: Callable[[Snapshot], T]) -> T:
        """Returns what `ask` makes of a snapshot; asks again if a writer changed it meanwhile."""
        return self.store.answer(ask)

    @property
    def passes(self) -> ModelPasses:
        """Passes of the model over samples: losses, states, gradients, fine-tuning."""
        from forvalue_index.pipeline.passes import ModelPasses

        return ModelPasses(self.session)

    def stored(self, ids: Iterable[int] | NDArray[np.int64]) -> Iterator[StoredSample]:
        """Yields the samples with these ids, each once, in their order."""
        return rows.by_id(self.store, ids)

    def fields(self) -> list[str]:
        """Returns the names of the rows' fields."""
        return self.store.catalog.fields()

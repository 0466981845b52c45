"""What analysis runs the model for, beside vectors: losses, states, gradients, fine-tuning.

It knows no stored vector: it is given samples, and gives numbers about them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from forvalue_index.config import TrainConfig
from forvalue_index.data.writers import complete
from forvalue_index.model.embedding import embedding
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.exact_pass import ExactPass
from forvalue_index.model.gradients import gradient_scores
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.model.training import fine_tune, weights_of, with_weights
from forvalue_index.pipeline.session import Session
from forvalue_index.records import Encoded, Progress, Sample
from forvalue_index.vectors.recipe import Raw


class ModelPasses:
    """Passes of an index's model over samples."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def losses(
        self, samples: Sequence[Sample], model: LanguageModel | None = None
    ) -> NDArray[np.float64]:
        """Returns the mean negative log-likelihood of each sample's scored tokens, [n] nats.

        `model` is one that `fine_tuned` returned; default: the index's own.
        """
        encoder = self._session.encoder if model is None else Encoder(model)
        return encoder.losses(samples)

    def encode(
        self, samples: Sequence[Sample], report: Callable[[int, int], None] | None = None
    ) -> list[Encoded]:
        """Returns the vectors and losses of samples; `report` gets the samples and tokens done."""
        return self._session.encode(list(samples), report)

    def states(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        """Returns the mean of the states that predict each sample's scored tokens, [n, hidden]."""
        return self._session.encoder.states(samples)

    def lengths(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        """Returns the lengths of the samples' exact gradients under the index's recipe, [n]."""
        parts = self._session.vectoriser.parts
        squares = self._session.encoder.self_influence(samples, parts)
        return np.sqrt(np.maximum(squares, 0))

    def embedding(
        self,
        queries: Sequence[Sample],
        samples: Sequence[Sample],
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Returns the cosine of the mean last hidden states of the scored tokens, [q, n]."""
        return embedding(self._session.encoder, queries, samples, progress)

    def exact(self, queries: Sequence[Sample]) -> ExactPass:
        """Returns queries that were run forward, to be compared exactly with any samples.

        Its first form of influence is the index's, its second one the inner product of the
        unembedding's gradients.
        """
        raw = [Raw()] * len(self._session.lm.checkpoints)
        return ExactPass(self._session.encoder, queries, [self._session.vectoriser.parts, raw])

    def gradients(
        self,
        queries: Sequence[Sample],
        samples: Sequence[Sample],
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Returns the inner products of the gradients by all weights, sketched, [q, n]."""
        return gradient_scores(self._session.lm, queries, samples, progress)

    def fine_tuned(
        self,
        samples: Sequence[Sample],
        config: TrainConfig,
        progress: Progress | None = None,
        *,
        keep: Path | None = None,
    ) -> LanguageModel:
        """Returns a copy of the model, in float32, fine-tuned on samples.

        `keep` is a file for the weights: they are read from it if it exists, else written to it.

        Raises:
            InputError: there is no sample.
            ModelError: the model has adapters, or the loss became NaN or infinity.
        """
        if keep is not None and keep.exists():
            return with_weights(self._session.lm, load_file(keep))
        tuned = fine_tune(self._session.lm, samples, config, progress)
        if keep is not None:
            with complete(keep) as file:
                file.write(save({name: value.cpu() for name, value in weights_of(tuned).items()}))
        return tuned

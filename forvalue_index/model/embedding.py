"""Similarity of samples by their last hidden states, a baseline that is no influence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forvalue_index.records import Progress, Sample

if TYPE_CHECKING:
    from forvalue_index.model.encoder import Encoder

BLOCK = 256  # samples between two reports


def embedding(
    encoder: Encoder,
    queries: Sequence[Sample],
    samples: Sequence[Sample],
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Returns the cosine of the mean last hidden states of the scored tokens, [q, n]."""
    asked = encoder.states(queries)
    result = np.empty((len(queries), len(samples)), np.float32)
    tokens = 0
    for start in range(0, len(samples), BLOCK):
        part = samples[start : start + BLOCK]
        result[:, start : start + len(part)] = similarity(asked, encoder.states(part))
        tokens += sum(len(sample.input_ids) for sample in part)
        if progress is not None:
            progress("embedding", start + len(part), len(samples), tokens)
    return result


def similarity(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the cosines of mean states [q, d] and [n, d], [q, n]."""
    unit = [side / np.maximum(np.linalg.norm(side, axis=1), 1e-12)[:, None] for side in (a, b)]
    product: NDArray[np.float32] = unit[0] @ unit[1].T
    return product

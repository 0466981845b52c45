"""Similarity of samples by their last hidden states, a baseline that is no influence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from forvalue_index.model.encoder import Encoder
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Progress, Sample
from forvalue_index.vectors.closed_form import similarity
from forvalue_index.vectors.recipe import Raw


def embedding(
    lm: LanguageModel,
    queries: Sequence[Sample],
    samples: Sequence[Sample],
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Returns the cosine of the mean last hidden states of the scored tokens, [q, n]."""
    encoder = Encoder(lm)
    result = np.zeros((len(queries), len(samples)), np.float32)
    # The hidden states of all queries fit into memory, their errors would not.
    groups = [
        (rows, replace(tokens, errors=tokens.errors[:, :0]))
        for rows, tokens in encoder.factors(queries, Raw())
    ]
    done = n_tokens = 0
    for columns, tokens in encoder.factors(samples, Raw()):
        for rows, query in groups:
            result[np.ix_(rows, columns)] = similarity(query, tokens).cpu().numpy()
        done += len(columns)
        n_tokens += sum(len(samples[column].input_ids) for column in columns)
        if progress is not None:
            progress("embedding", done, len(samples), n_tokens)
    return result

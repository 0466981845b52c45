"""TensorSketch: a short vector whose inner products estimate those of G, without forming G.

A CountSketch of the outer product e h^T with the bucket (p(v) + q(j)) mod S and the sign s(v) r(j)
is the circular convolution of the CountSketches of e and of h, so it costs two FFTs per token
(Pham & Pagh, KDD 2013). The sum over a sample's tokens is taken among the frequencies: one inverse
FFT per sample. Estimates are unbiased over seeds, with an error of about |G_a| |G_b| / sqrt(S).

This module knows of no model; it sees factors and gives vectors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from forvalue_index.features.tokens import TokenFactors


class TensorSketch:
    """A linear map from G (v x d) to `dim` numbers, the same for every device and library version.

    Usage: `state = zeros(n)`, any number of `update(state, tokens)`, then `finish(state)`.
    """

    def __init__(self, vocabulary: int, hidden: int, dim: int, seed: int) -> None:
        self.vocabulary = vocabulary
        self.hidden = hidden
        self.dim = dim
        self.seed = seed
        # Raw Philox output is fixed by numpy's compatibility promise, unlike its distributions.
        raw = np.random.Philox(key=seed).random_raw(vocabulary + hidden)
        buckets = torch.from_numpy(((raw >> np.uint64(1)) % np.uint64(dim)).astype(np.int64))
        signs = torch.from_numpy((raw & np.uint64(1)).astype(np.float32) * 2 - 1)
        self._error_buckets, self._hidden_buckets = buckets[:vocabulary], buckets[vocabulary:]
        self._error_signs, self._hidden_signs = signs[:vocabulary], signs[vocabulary:]

    def to(self, device: torch.device) -> TensorSketch:
        """Returns itself, with its tables on `device`."""
        self._error_buckets = self._error_buckets.to(device)
        self._hidden_buckets = self._hidden_buckets.to(device)
        self._error_signs = self._error_signs.to(device)
        self._hidden_signs = self._hidden_signs.to(device)
        return self

    def zeros(self, n_samples: int) -> Tensor:
        """Returns the state of `n_samples` samples with no tokens yet, [n_samples, S / 2 + 1]."""
        return torch.zeros(
            n_samples,
            self.dim // 2 + 1,
            dtype=torch.complex64,
            device=self._error_buckets.device,
        )

    def update(self, state: Tensor, tokens: TokenFactors) -> None:
        """Adds tokens to the state of the samples that own them, in place."""
        errors = self._count_sketch(tokens.errors, self._error_buckets, self._error_signs)
        hidden = self._count_sketch(tokens.hidden, self._hidden_buckets, self._hidden_signs)
        product = torch.fft.rfft(errors) * torch.fft.rfft(hidden)  # [n tokens, S / 2 + 1]
        torch.view_as_real(state).index_add_(0, tokens.owner, torch.view_as_real(product))

    def finish(self, state: Tensor) -> Tensor:
        """Returns the sketches, [n_samples, S] float32."""
        sketches: Tensor = torch.fft.irfft(state, n=self.dim)
        return sketches

    def _count_sketch(self, values: Tensor, buckets: Tensor, signs: Tensor) -> Tensor:
        sketch = values.new_zeros(values.shape[0], self.dim)
        return sketch.index_add_(1, buckets, values * signs)

"""What a recipe learns from a part of the training set, gathered in one streamed pass."""

from __future__ import annotations

import torch
from torch import Tensor

from forvalue_index.vectors.tokens import TokenFactors


class TokenStatistics:
    """Means over scored tokens; sums of a chunk of them in float32, of all chunks in float64."""

    def __init__(self, vocabulary: int, hidden: int, device: torch.device) -> None:
        self.n_tokens = 0
        self.vocabulary = vocabulary
        self.hidden = hidden
        self._moment = torch.zeros(hidden, hidden, dtype=torch.float64, device=device)
        self._square = torch.zeros(vocabulary, dtype=torch.float64, device=device)
        self._unit_square = torch.zeros(vocabulary, dtype=torch.float64, device=device)
        self._directions: tuple[Tensor, Tensor] | None = None  # recipe and sketch both ask

    def update(self, tokens: TokenFactors) -> None:
        """Takes in some tokens, as they come from the model."""
        squares = tokens.errors.square()  # [n, v]
        lengths = squares.sum(1).clamp_min(1e-30)  # [n], squared
        both = torch.stack([torch.ones_like(lengths), 1 / lengths]) @ squares  # [2, v]
        self.n_tokens += len(lengths)
        self._moment += (tokens.hidden.T @ tokens.hidden).double()
        self._square += both[0].double()
        self._unit_square += both[1].double()
        self._directions = None

    def add(self, other: TokenStatistics) -> None:
        """Takes in the tokens of other statistics."""
        self.n_tokens += other.n_tokens
        self._moment += other._moment
        self._square += other._square
        self._unit_square += other._unit_square
        self._directions = None

    @property
    def finite(self) -> bool:
        """Whether no NaN and no infinity came in."""
        sums = self._moment.sum() + self._square.sum() + self._unit_square.sum()
        return bool(sums.isfinite())

    @property
    def hidden_moment(self) -> Tensor:
        """Second moment of the hidden states, E[h h^T], [d, d] float64."""
        return self._moment / self.n_tokens

    @property
    def error_square(self) -> Tensor:
        """Mean squared error of each vocabulary entry, E[e_v^2], [v] float64."""
        return self._square / self.n_tokens

    @property
    def error_share(self) -> Tensor:
        """Mean share of each vocabulary entry in a token's error, E[e_v^2 / |e|^2], [v] float64."""
        return self._unit_square / self.n_tokens

    def directions(self) -> tuple[Tensor, Tensor]:
        """Returns eigenvalues [d] and eigenvectors [d, d] of the hidden moment, largest first."""
        if self._directions is None:
            values, vectors = torch.linalg.eigh(self.hidden_moment)
            self._directions = values.flip(0).clamp_min(0), vectors.flip(1)
        return self._directions

"""Cosines of stored vectors with each other, from their codes.

A number of a code of 2 to 8 bits is a whole number and a half, times the scale of its vector, on
which a cosine does not depend. So products are of 8-bit integers: exact, and several times as fast
as those of float32. float16 is multiplied in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.search.common import Scores
from forvalue_index.vectors.codes import Bytes, Codes


@dataclass(frozen=True, slots=True)
class Comparable:
    """m vectors, to be compared with others of the same codes."""

    numbers: Tensor  # [m, dim] whole numbers in int8, or float32
    halves: Tensor  # [m] what the halves add to a product with any other; 0 for float32
    lengths: Tensor  # [m] of the numbers with their halves; infinite for the vector of zeros

    @classmethod
    def of(cls, codes: Codes, data: Bytes) -> Comparable:
        """Returns the vectors of codes [m, size]."""
        if codes.bits == 16 or codes.dim == 1:  # torch._int_mm is wrong for one number
            vectors = torch.from_numpy(codes.decode(data))
            lengths = torch.linalg.vector_norm(vectors, dim=1)
            return cls(vectors, torch.zeros(len(data)), lengths.masked_fill(lengths == 0, np.inf))
        whole = codes.whole(data)
        sums = whole.sum(1, dtype=np.float32)
        squares = np.einsum("nd,nd->n", whole, whole, dtype=np.float32) + sums + codes.dim / 4
        squares[codes.scales(data) == 0] = np.inf
        halves = torch.from_numpy(sums / 2 + np.float32(codes.dim / 8))
        return cls(torch.from_numpy(whole), halves, torch.from_numpy(np.sqrt(squares)))

    def __len__(self) -> int:
        """Number of vectors."""
        return len(self.numbers)

    def __getitem__(self, places: NDArray[np.intp] | slice) -> Comparable:
        """Returns those at some places, in that order."""
        at = places if isinstance(places, slice) else torch.from_numpy(places)
        return Comparable(self.numbers[at], self.halves[at], self.lengths[at])

    def cosines(self, others: Comparable) -> Scores:
        """Returns the cosine of each with each of the others, [m, others]."""
        product: Any = torch.mm if self.numbers.is_floating_point() else torch._int_mm
        found = product(self.numbers, others.numbers.T).float()
        found += self.halves[:, None]
        found += others.halves
        found /= self.lengths[:, None]
        found /= others.lengths
        return np.asarray(found.numpy(), np.float32)

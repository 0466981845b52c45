"""Sketches: a short vector whose inner products estimate those of G, without forming G.

Both maps here are CountSketches of the entries of G = sum e h^T: every entry is added, with a sign,
to one of S buckets. They differ in how an entry finds its bucket, and so in their cost and error.
Estimates are unbiased over seeds. This module knows of no model; it sees factors, gives vectors.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.vectors.tokens import TokenFactors

SLOTS = 2, 8  # vocabulary buckets that share a block, each with its own order of the hidden units
ENTRIES = 8  # of the vocabulary in a bucket, if so many slots are enough
PADDING = 2  # times as many tokens: so much padding is cheaper than a product for each sample
MAX_HIDDEN = 256  # leading hidden directions that BlockSketch keeps, at most


class Sketch(ABC):
    """What every sketch offers: `zeros`, any number of `update`s, then `finish`.

    `tensors` hold all that a sketch is; they are saved with the index.
    """

    tensors: dict[str, Tensor]

    @abstractmethod
    def __init__(self, tensors: dict[str, Tensor]) -> None: ...

    @classmethod
    @abstractmethod
    def fit(cls, energy: Tensor, directions: Tensor, dim: int, seed: int) -> Self:
        """Returns a sketch of at most `dim` numbers.

        Args:
            energy: what each vocabulary entry adds to the squared length of an error, [v].
            directions: orthonormal hidden directions, the most important first, [d, d].
            dim: numbers in a sketch.
            seed: of all that is drawn.
        """

    @staticmethod
    def size(vocabulary: int, hidden: int, dim: int) -> int:
        """Returns how many numbers a sketch of at most `dim` has, for a model of these sizes."""
        return dim

    @property
    @abstractmethod
    def dim(self) -> int:
        """Numbers in a sketch."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers of a block; a sketch is whole blocks."""

    @abstractmethod
    def zeros(self, n_samples: int) -> Tensor:
        """Returns the state of `n_samples` samples with no tokens yet."""

    @abstractmethod
    def update(self, state: Tensor, tokens: TokenFactors) -> None:
        """Adds tokens to the state of the samples that own them, in place."""

    @abstractmethod
    def finish(self, state: Tensor) -> Tensor:
        """Returns the sketches, [n_samples, S] float32."""


class BlockSketch(Sketch):
    """A CountSketch of G in blocks, made by small matrix products.

    The vocabulary is dealt to blocks x SLOTS buckets so that all carry about the same energy, with
    random signs; then for every block, the sum over its slots of (bucket of e) x (h, in an order
    and with signs of the slot's own). S = blocks x hidden directions. What collides is entries of
    different vocabulary buckets at different hidden units, which hardly ever point the same way;
    the error is well below that of a TensorSketch of the same width, at a fraction of the time.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self._slots, self._hidden = tensors["orders"].shape
        self._blocks = int(tensors["blocks"])
        # What has the sign - is added up beside the rest, or read from a negated copy: a sign is
        # then an index, and costs no pass over the numbers.
        negative = (tensors["bucket_signs"] < 0).long()
        self._places = tensors["buckets"] + negative * (self._blocks * self._slots)
        negative = (tensors["order_signs"] < 0).long()
        self._sources = (tensors["orders"] + negative * self._hidden).flatten()

    @classmethod
    def fit(cls, energy: Tensor, directions: Tensor, dim: int, seed: int) -> Self:
        """Returns a sketch of `dim` numbers, rounded down to whole blocks."""
        hidden = min(len(directions), MAX_HIDDEN, dim)
        blocks = cls.size(len(energy), len(directions), dim) // hidden
        slots = int(np.clip(-(-len(energy) // (blocks * ENTRIES)), *SLOTS))
        slots = min(slots, -(-len(energy) // blocks))
        draws = np.random.Generator(np.random.Philox(key=seed))
        tensors = {
            "blocks": torch.tensor(blocks),
            "buckets": _deal(energy.cpu().double().numpy(), blocks, slots),
            "bucket_signs": _signs(draws, (len(energy),)),
            "orders": torch.from_numpy(
                np.stack([draws.permutation(hidden) for _ in range(slots)]).astype(np.int64)
            ),
            "order_signs": _signs(draws, (slots, hidden)),
        }
        if hidden < len(directions):
            tensors["directions"] = directions[:, :hidden].float().contiguous()
        return cls({name: value.to(energy.device) for name, value in tensors.items()})

    @staticmethod
    def size(vocabulary: int, hidden: int, dim: int) -> int:
        """Returns how many numbers a sketch of at most `dim` has: those of whole blocks."""
        width = min(hidden, MAX_HIDDEN, dim)
        return min(dim // width, vocabulary) * width

    @property
    def dim(self) -> int:
        """Numbers in a sketch."""
        return self._blocks * self._hidden

    @property
    def width(self) -> int:
        """Numbers of a block."""
        return self._hidden

    def zeros(self, n_samples: int) -> Tensor:
        """Returns the state of `n_samples` samples with no tokens yet, [n, blocks, hidden]."""
        device = self.tensors["buckets"].device
        return torch.zeros(n_samples, self._blocks, self._hidden, device=device)

    def update(self, state: Tensor, tokens: TokenFactors) -> None:
        """Adds tokens to the state of the samples that own them, in place."""
        n = len(tokens.owner)
        sums = tokens.errors.new_zeros(n, 2, self._blocks, self._slots)
        sums.flatten(1).scatter_add_(1, self._places.expand(n, -1), tokens.errors)
        errors = (sums[:, 0] - sums[:, 1]).transpose(1, 2)  # [n, slots, blocks]
        hidden = tokens.hidden
        if "directions" in self.tensors:
            hidden = hidden @ self.tensors["directions"]
        hidden = torch.cat([hidden, -hidden], dim=1).index_select(1, self._sources)
        hidden = hidden.view(n, self._slots, self._hidden)
        runs = tokens.runs()
        # A GPU would wait for so many small products to be started.
        padded = len(runs) * max(count for _, count in runs)
        if state.is_cuda and padded <= PADDING * n:
            _add_together(state, errors, hidden, runs, tokens.owner)
        else:
            _add_in_turn(state, errors, hidden, runs)

    def finish(self, state: Tensor) -> Tensor:
        """Returns the sketches, [n_samples, S] float32."""
        return state.flatten(1)


class TensorSketch(Sketch):
    """The sketch that needs no data: the bucket is (p(v) + q(j)) mod S, the sign s(v) r(j).

    That is the circular convolution of the CountSketches of e and of h: two FFTs per token, whose
    products are summed among the frequencies, and one inverse FFT per sample (Pham & Pagh, KDD
    2013). The error is about |G_a| |G_b| / sqrt(S).
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self._dim = int(tensors["dim"])

    @classmethod
    def fit(cls, energy: Tensor, directions: Tensor, dim: int, seed: int) -> Self:
        """Returns a sketch of `dim` numbers; of the data it takes only their sizes."""
        vocabulary, hidden = len(energy), len(directions)
        # Raw Philox output is fixed by numpy's compatibility promise, unlike its distributions.
        raw = np.random.Philox(key=seed).random_raw(vocabulary + hidden)
        buckets = torch.from_numpy(((raw >> np.uint64(1)) % np.uint64(dim)).astype(np.int64))
        signs = torch.from_numpy((raw & np.uint64(1)).astype(np.float32) * 2 - 1)
        tensors = {
            "dim": torch.tensor(dim),
            "error_buckets": buckets[:vocabulary],
            "error_signs": signs[:vocabulary],
            "hidden_buckets": buckets[vocabulary:],
            "hidden_signs": signs[vocabulary:],
        }
        return cls({name: value.to(energy.device) for name, value in tensors.items()})

    @property
    def dim(self) -> int:
        """Numbers in a sketch."""
        return self._dim

    @property
    def width(self) -> int:
        """Numbers of a block: any that fits, as all its numbers are of one kind."""
        return math.gcd(self._dim, MAX_HIDDEN)

    def zeros(self, n_samples: int) -> Tensor:
        """Returns the state of `n_samples` samples with no tokens yet, [n_samples, S / 2 + 1]."""
        device = self.tensors["error_buckets"].device
        return torch.zeros(n_samples, self.dim // 2 + 1, dtype=torch.complex64, device=device)

    def update(self, state: Tensor, tokens: TokenFactors) -> None:
        """Adds tokens to the state of the samples that own them, in place."""
        errors = self._count_sketch(tokens.errors, "error")
        hidden = self._count_sketch(tokens.hidden, "hidden")
        product = torch.fft.rfft(errors) * torch.fft.rfft(hidden)  # [n tokens, S / 2 + 1]
        torch.view_as_real(state).index_add_(0, tokens.owner, torch.view_as_real(product))

    def finish(self, state: Tensor) -> Tensor:
        """Returns the sketches, [n_samples, S] float32."""
        sketches: Tensor = torch.fft.irfft(state, n=self.dim)
        return sketches

    def _count_sketch(self, values: Tensor, side: str) -> Tensor:
        sketch = values.new_zeros(values.shape[0], self.dim)
        signs, buckets = self.tensors[f"{side}_signs"], self.tensors[f"{side}_buckets"]
        return sketch.index_add_(1, buckets, values * signs)


def _add_in_turn(
    state: Tensor, errors: Tensor, hidden: Tensor, runs: list[tuple[int, int]]
) -> None:
    """Adds the products of tokens' errors and states to their samples' state.

    Args:
        state: [samples, blocks, hidden].
        errors: [n, slots, blocks].
        hidden: [n, slots, hidden].
        runs: the samples in the order of their tokens, each with their number.
    """
    start = 0
    for sample, count in runs:
        part = slice(start, start + count)
        state[sample].addmm_(errors[part].flatten(0, 1).T, hidden[part].flatten(0, 1))
        start += count


def _add_together(
    state: Tensor, errors: Tensor, hidden: Tensor, runs: list[tuple[int, int]], owner: Tensor
) -> None:
    """Does what `_add_in_turn` does in one product, for samples that follow each other.

    The tokens of every sample are padded to as many as the longest has here; `owner` is the sample
    of each token, [n].
    """
    first, longest = runs[0][0], max(count for _, count in runs)
    owner = owner.contiguous()
    place = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner, owner)
    place += (owner - first) * longest

    def padded(values: Tensor) -> Tensor:  # [samples, longest * slots, any]
        room = values.new_zeros(len(runs) * longest, *values.shape[1:])
        return room.index_copy_(0, place, values).view(len(runs), -1, values.shape[2])

    state[first : first + len(runs)].baddbmm_(padded(errors).mT, padded(hidden))


SKETCHES: dict[str, type[Sketch]] = {"block": BlockSketch, "tensor": TensorSketch}


def _deal(energy: NDArray[np.float64], blocks: int, slots: int) -> Tensor:
    """Returns a bucket for every vocabulary entry, [v] int64: equal energy per block and slot.

    The greatest first, each to the lightest block so far and to its lightest slot; bucket =
    block * slots + slot.
    """
    weights = energy / max(energy.sum(), 1e-30) + 1e-9  # so that equal ones are spread as well
    heap = [(0.0, block) for block in range(blocks)]
    loads = np.zeros((blocks, slots))
    buckets = np.zeros(len(weights), dtype=np.int64)
    for entry in np.argsort(-weights, kind="stable"):
        load, block = heapq.heappop(heap)
        slot = int(loads[block].argmin())
        loads[block, slot] += weights[entry]
        buckets[entry] = block * slots + slot
        heapq.heappush(heap, (load + weights[entry], block))
    return torch.from_numpy(buckets)


def _signs(draws: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(draws.integers(0, 2, shape).astype(np.float32) * 2 - 1)

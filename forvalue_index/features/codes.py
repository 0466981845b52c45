"""Codes: a vector as bytes, a few bits a number and one scale for all of them.

Numbers of a rotated vector are nearly normal, so that levels at equal distances with the best
distance for normal numbers lose hardly more than levels of any other kind. The scale of a vector
is chosen so that its inner product with what is decoded is its squared length: inner products with
queries, which are not rounded, are then right on average.

The layout is that of FAISS's `IndexRaBitQ` (arXiv 2409.09913), so that FAISS compares the codes:
the highest bit of all numbers, three factors for a first pass over these bits alone, the other
bits of all numbers, two factors. 16 bits are float16. This module knows of no file and no FAISS.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forvalue_index.config import BITS
from forvalue_index.errors import InputError

STEPS = {2: 0.9957, 3: 0.5860, 4: 0.3352, 8: 0.03087}
"""Bits -> the distance of levels that loses least of standard normal numbers (Max, 1960)."""

DEVIATIONS = 6.0
"""Of the error of a first pass: a vector whose score may be higher by so much is looked at."""

FP16_MAX = 65504.0

_BLOCK = 256  # vectors at a time: unpacked bits take a byte each

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Codes:
    """Vectors of `dim` numbers as rows of `size` bytes."""

    def __init__(self, dim: int, bits: int) -> None:
        """Raises InputError: there are no codes of so many bits."""
        if bits not in BITS:
            raise InputError(f"bits is {bits}, but must be one of {', '.join(map(str, BITS))}")
        self.dim = dim
        self.bits = bits
        self._row = _row(dim, bits)

    @property
    def size(self) -> int:
        """Bytes of a vector."""
        return self.dim * 2 if self.bits == 16 else self._row.itemsize

    def encode(self, vectors: Floats) -> Bytes:
        """Returns the codes of finite vectors [n, dim], [n, size]; each depends on it alone."""
        codes = np.empty((len(vectors), self.size), np.uint8)
        for start in range(0, len(vectors), _BLOCK):
            part = slice(start, start + _BLOCK)
            codes[part] = self._encode(vectors[part])
        return codes

    def decode(self, codes: Bytes) -> Floats:
        """Returns the vectors [n, dim] that codes [n, size] stand for."""
        vectors = np.empty((len(codes), self.dim), np.float32)
        for start in range(0, len(codes), _BLOCK):
            part = slice(start, start + _BLOCK)
            if self.bits == 16:
                vectors[part] = np.ascontiguousarray(codes[part]).view(np.float16)
                continue
            np.subtract(self.levels(codes[part]), 2 ** (self.bits - 1) - 0.5, out=vectors[part])
            vectors[part] *= self.scales(codes[part])[:, None]
        return vectors

    def levels(self, codes: Bytes) -> Bytes:
        """Returns the level of every number, from 0 on, [n, dim]; not for 16 bits.

        A number is its level less that in the middle, 2^(bits - 1) - 1/2, times the vector's scale.
        """
        rows, rest = self._rows(codes), self.bits - 1
        levels: Bytes = np.unpackbits(rows["high"], axis=1, count=self.dim, bitorder="little")
        levels <<= rest
        low = np.unpackbits(rows["low"], axis=1, count=self.dim * rest, bitorder="little")
        low = low.reshape(len(rows), self.dim, rest)
        for bit in range(rest):
            levels |= low[:, :, bit] << bit
        return levels

    def scales(self, codes: Bytes) -> Floats:
        """Returns the scale of every vector, [n]; not for 16 bits."""
        return np.ascontiguousarray(self._rows(codes)["scale"])

    def _rows(self, codes: Bytes) -> NDArray[np.void]:
        return np.ascontiguousarray(codes).view(self._row)[:, 0]

    def _encode(self, vectors: Floats) -> Bytes:
        if self.bits == 16:
            return vectors.astype(np.float16).view(np.uint8).reshape(len(vectors), -1)
        exact = vectors.astype(np.float64)
        squares = np.square(exact).sum(1)  # [n]
        middle, rest = 2 ** (self.bits - 1), self.bits - 1
        step = STEPS[self.bits] * np.sqrt(squares / self.dim)
        if (
            self.bits == 8
        ):  # its levels reach as far as normal numbers do: so should they for others
            step = np.maximum(step, np.abs(exact).max(1) / middle)
        step[squares == 0] = 1
        found = np.clip(np.floor(exact / step[:, None]), -middle, middle - 1) + 0.5
        scale = _ratio(squares, np.einsum("nd,nd->n", found, exact))
        # What a first pass takes for the vector: its signs, at the length that is right on average.
        signs = np.where(exact > 0, 1.0, -1.0)
        length = _ratio(squares, np.abs(exact).sum(1))
        missed = np.linalg.norm(found * scale[:, None] - signs * length[:, None], axis=1)
        levels = (found + (middle - 0.5)).astype(np.uint8)
        bits = np.unpackbits(levels[:, :, None], axis=2, count=self.bits, bitorder="little")
        rows: NDArray[np.void] = np.zeros(len(vectors), self._row)
        rows["high"] = np.packbits(bits[:, :, rest], axis=1, bitorder="little")
        low = np.ascontiguousarray(bits[:, :, :rest]).reshape(len(vectors), -1)
        rows["low"] = np.packbits(low, axis=1, bitorder="little")
        rows["high_scale"] = length * self.dim**0.5
        rows["high_error"] = DEVIATIONS * missed / self.dim**0.5
        rows["scale"] = scale
        return rows.view(np.uint8).reshape(len(vectors), -1)


def _row(dim: int, bits: int) -> np.dtype[np.void]:
    """Returns the layout of a vector's bytes."""
    return np.dtype(
        [
            ("high", np.uint8, ((dim + 7) // 8,)),
            ("high_offset", "<f4"),
            ("high_scale", "<f4"),
            ("high_error", "<f4"),
            ("low", np.uint8, ((dim * (bits - 1) + 7) // 8,)),
            ("offset", "<f4"),
            ("scale", "<f4"),
        ]
    )


def _ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a / b, and 0 where both are 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)

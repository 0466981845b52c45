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

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.config import BITS
from forvalue_index.errors import InputError

STEPS = {2: 0.9957, 3: 0.5860, 4: 0.3352, 8: 0.03087}
"""Bits -> the distance of levels that loses least of standard normal numbers (Max, 1960)."""

DEVIATIONS = 6.0
"""Of the error of a first pass: a vector whose score may be higher by so much is looked at."""

_QUERY_ERROR = 0.02
"""Of a first pass, for a vector that is its signs: queries are rounded to 8 bits there."""

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
            vectors[part] = self.levels(codes[part])
            vectors[part] -= np.float32(2 ** (self.bits - 1) - 0.5)
            vectors[part] *= self.scales(codes[part])[:, None]
        return vectors

    def levels(self, codes: Bytes) -> Bytes:
        """Returns the level of every number, from 0 on, [n, dim]; not for 16 bits.

        A number is its level less that in the middle, 2^(bits - 1) - 1/2, times the vector's scale.
        """
        rows, rest = self._rows(codes), self.bits - 1
        if self.bits == 4 and self.dim % 8 == 0:
            return _levels_of_4_bits(rows["high"], rows["low"])
        levels: Bytes = np.unpackbits(rows["high"], axis=1, count=self.dim, bitorder="little")
        levels <<= rest
        low = np.unpackbits(rows["low"], axis=1, count=self.dim * rest, bitorder="little")
        low = low.reshape(len(rows), self.dim, rest)
        for bit in range(rest):
            levels |= low[:, :, bit] << bit
        return levels

    def whole(self, codes: Bytes) -> NDArray[np.int8]:
        """Returns the level of every number from the middle on, [n, dim]; not for 16 bits.

        A number is this and a half, times the vector's scale.
        """
        levels = self.levels(codes)
        levels -= np.uint8(2 ** (self.bits - 1))
        return levels.view(np.int8)

    def first_pass(self, codes: Bytes, deviations: float, weights: Floats | None = None) -> Bytes:
        """Returns the codes of FAISS's `IndexRaBitQ` of one bit, [n, ceil(dim / 8) + 8].

        The inner product of a query of length 1 with one of them, as FAISS has it, is the highest
        that with the vector may be, `deviations` of the usual error above what its signs tell.

        Args:
            codes: [n, size].
            deviations: of the error.
            weights: [n], which the inner products are multiplied by; None: 1.
        """
        rows = np.empty((len(codes), (self.dim + 7) // 8 + 8), np.uint8)
        factors = np.empty((len(codes), 2), np.float32)  # offset, scale
        for start in range(0, len(codes), _BLOCK):
            part = slice(start, start + _BLOCK)
            error: NDArray[Any]
            if self.bits == 16:
                high, scale, error = _signs(self.decode(codes[part]).astype(np.float64))
            else:
                own = self._rows(codes[part])
                high, scale = own["high"], own["high_scale"]
                error = own["high_error"] / np.float32(DEVIATIONS)
            rows[part, :-8] = high
            factors[part, 0] = -2 * deviations * error
            factors[part, 1] = scale
        if weights is not None:
            factors *= weights[:, None]
        rows[:, -8:] = factors.view(np.uint8)
        return rows

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
        _, high_scale, high_error = _signs(exact, found * scale[:, None])
        levels = (found + (middle - 0.5)).astype(np.uint8)
        rows: NDArray[np.void] = np.zeros(len(vectors), self._row)
        rows["high"] = np.packbits(levels >> rest, axis=1, bitorder="little")
        rows["low"] = _low_bits(levels, rest)
        rows["high_scale"] = high_scale
        rows["high_error"] = DEVIATIONS * high_error
        rows["scale"] = scale
        return rows.view(np.uint8).reshape(len(vectors), -1)


def _signs(
    exact: NDArray[np.float64], stored: NDArray[np.float64] | None = None
) -> tuple[Bytes, Floats, Floats]:
    """Returns what the signs of vectors [n, dim] tell: bits, scale, usual error of a score.

    The scale gives an inner product with the signs that is right on average; the error is that
    against what is `stored` (default: the vectors), for a query of length 1.
    """
    dim = exact.shape[1]
    length = _ratio(np.square(exact).sum(1), np.abs(exact).sum(1))  # [n]
    positive = exact > 0
    missed = np.where(positive, length[:, None], -length[:, None])
    np.subtract(exact if stored is None else stored, missed, out=missed)
    bits = np.packbits(positive, axis=1, bitorder="little")
    scale = length * dim**0.5  # and the length of signs * length
    error = np.hypot(np.linalg.norm(missed, axis=1), _QUERY_ERROR * scale) / dim**0.5
    return bits, scale.astype(np.float32), error.astype(np.float32)


def _low_bits(levels: Bytes, rest: int) -> Bytes:
    """Returns the lowest `rest` bits of each of the levels [n, dim], packed, row by row."""
    if rest == 3 and levels.shape[1] % 8 == 0:  # 8 of them are 3 bytes
        parts = (levels & 7).reshape(len(levels), -1, 8)
        words = np.zeros(parts.shape[:2], "<u4")
        for place in range(8):
            words |= parts[:, :, place].astype("<u4") << np.uint32(3 * place)
        three = words.view(np.uint8).reshape(*words.shape, 4)[:, :, :3]
        return np.ascontiguousarray(three).reshape(len(levels), -1)
    bits = np.unpackbits(levels[:, :, None], axis=2, count=rest, bitorder="little")
    return np.packbits(bits.reshape(len(levels), -1), axis=1, bitorder="little")


def _levels_of_4_bits(high: Bytes, low: Bytes) -> Bytes:
    """Returns the levels [n, dim] of numbers whose highest bits and other three are apart.

    Eight numbers are one word of 64 bits, a byte each: the 24 bits of their low parts are drawn
    apart by halves, quarters and eighths, and the high bits come from a table.
    """
    ends = np.zeros((len(low), low.shape[1] + 1), np.uint8)  # 4 bytes are read at every third
    ends[:, :-1] = low
    steps = (ends.strides[0], 3)
    packed = np.ndarray((len(low), low.shape[1] // 3), np.dtype("<u4"), ends, strides=steps)
    words = packed.astype(np.uint64)
    moved = np.empty_like(words)
    for shift, stays, moves in _APART:
        np.bitwise_and(words, moves, out=moved)
        moved <<= shift
        words &= stays
        words |= moved
    words |= np.take(_EIGHT_HIGH, high, out=moved, mode="wrap")
    return words.view(np.uint8)


_EIGHT_HIGH = (
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") << 3
).view(np.uint64)[:, 0]
_APART = tuple(
    (np.uint64(shift), np.uint64(stays), np.uint64(moves))
    for shift, stays, moves in (
        (20, 0xFFF, 0xFFF000),
        (10, 0x3F0000003F, 0xFC000000FC0),
        (5, 0x7000700070007, 0x38003800380038),
    )
)
"""How far bits are shifted, which stay, which move."""


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

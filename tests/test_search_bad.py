"""Vectors that are alike, of no length or of very unlike lengths, few or narrow: right answers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers.vectors import random
from numpy.typing import NDArray

from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.segment import write_segment
from forvalue_index.vectors.codes import Codes

K = 5
N = 1200  # as many as it takes for candidates by the highest bits of codes
DIMS = 1, 2, 3, 7, 9, 17, 100
Floats = NDArray[np.float32]


def stretched(times: float, dim: int) -> Floats:
    vectors = random(N, dim)
    vectors[3::400] *= np.float32(times)
    vectors[5::7] = 0
    return vectors


VECTORS: dict[str, Callable[[int], Floats]] = {
    "one": lambda dim: random(1, dim),
    "fewer than k": lambda dim: random(3, dim),
    "zero": lambda dim: np.zeros((N, dim), np.float32),
    "identical": lambda dim: np.repeat(random(1, dim), N, axis=0),
    "pairs": lambda dim: np.tile(random(N // 2, dim), (2, 1)),
    "signs": lambda dim: np.sign(np.tile(random(N // 2, dim), (2, 1))),
    "long": lambda dim: stretched(1e3, dim),
    "very long": lambda dim: stretched(1e6, dim),
}


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("kind", VECTORS)
def test_answers_are_those_of_float64(tmp_path: Path, kind: str, bits: int) -> None:
    if bits == 16 and kind == "very long":
        pytest.skip("float16 holds no such numbers")
    for dim in DIMS:
        vectors = VECTORS[kind](dim)
        ids = 3 * np.arange(len(vectors))
        segment = write_segment(tmp_path, f"{dim}.faiss", ids, vectors, bits)
        flat = FlatSearch(tmp_path, [segment], dim, bits)
        codes = Codes(dim, bits)
        stored = codes.decode(codes.encode(vectors)).astype(np.float64)
        queries = random(50, dim, seed=1)
        queries[1], queries[2] = vectors[0], 0
        queries[3] *= 1e4
        weights = (1 / np.maximum(np.linalg.norm(stored, axis=1), 1e-3)).astype(np.float32)
        products = (queries.astype(np.float64) @ stored.T).astype(np.float32)
        for alone, (given, opponents) in enumerate(product((None, weights), (False, True))):
            every = products if given is None else products * given
            order = np.argsort(every if opponents else -every, axis=1, kind="stable")[:, :K]
            expected = np.take_along_axis(every, order, 1)
            for some in (slice(None), slice(alone, alone + 1)):
                scores, found = flat.search(queries[some], K, opponents=opponents, weights=given)
                message = f"dim {dim}, opponents {opponents}, {some}"
                np.testing.assert_array_equal(found, ids[order[some]], message)
                np.testing.assert_allclose(scores, expected[some], 1e-6, 0, err_msg=message)

"""Cosines of stored vectors, from their codes, against those of what is decoded."""

from __future__ import annotations

import numpy as np
import pytest

from forvalue_index.search.cosines import Comparable
from forvalue_index.vectors.codes import Codes


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("dim", [1, 7, 64, 4096])
def test_cosines_are_those_of_the_decoded_vectors(bits: int, dim: int) -> None:
    rng = np.random.default_rng(bits * dim)
    vectors = rng.standard_normal((9, dim)).astype(np.float32) * np.float32(100)
    vectors[3] = vectors[2] * 0.5
    vectors[5] = 0
    codes = Codes(dim, bits)
    data = codes.encode(vectors)
    decoded = codes.decode(data).astype(np.float64)
    lengths = np.linalg.norm(decoded, axis=1)
    unit = decoded / np.where(lengths > 0, lengths, 1)[:, None]
    some = Comparable.of(codes, data[:4])
    found = some.cosines(Comparable.of(codes, data))
    assert found.dtype == np.float32 and len(some) == 4
    np.testing.assert_allclose(found, unit[:4] @ unit.T, atol=2e-6)
    assert (found[:, 5] == 0).all() and found[3, 2] > 0.999
    chosen = np.array([8, 1])
    apart = Comparable.of(codes, data)[chosen].cosines(some[1:3])
    np.testing.assert_allclose(apart, unit[chosen] @ unit[1:3].T, atol=2e-6)

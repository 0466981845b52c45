"""Codes against a plain loop over numbers, and FAISS alone on the files of codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from helpers.indexes import KEYED, SMALL
from helpers.vectors import random

from forvalue_index import InfluenceIndex
from forvalue_index.errors import InputError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.segment import write_segment
from forvalue_index.vectors.codes import STEPS, Codes

FEW = (2, 3, 4, 8)
ERRORS = {2: 0.39, 3: 0.22, 4: 0.125, 8: 0.012, 16: 0.0005}  # of normal numbers, root mean square


def decoded(vectors: np.ndarray, bits: int) -> np.ndarray:
    codes = Codes(vectors.shape[1], bits)
    return codes.decode(codes.encode(vectors))


@pytest.mark.parametrize("bits", FEW)
@pytest.mark.parametrize("dim", [1, 7, 64, 100])
def test_codes_are_the_levels_of_a_plain_loop(bits: int, dim: int) -> None:
    vectors = random(5, dim)
    for vector, found in zip(vectors.astype(np.float64), decoded(vectors, bits), strict=True):
        most = 2 ** (bits - 1)
        step = STEPS[bits] * np.sqrt(np.mean(vector**2))
        if bits == 8:
            step = max(step, np.abs(vector).max() / most)
        levels = [min(max(np.floor(x / step), -most), most - 1) + 0.5 for x in vector]
        scale = sum(x * x for x in vector) / sum(x * y for x, y in zip(vector, levels, strict=True))
        np.testing.assert_allclose(found, np.array(levels) * scale, rtol=1e-6)


@pytest.mark.parametrize("bits", ERRORS)
def test_the_error_is_small_and_the_inner_product_with_itself_is_right(bits: int) -> None:
    vectors = random(20, 4096) * np.logspace(-3, 3, 20, dtype=np.float32)[:, None]
    if bits == 16:
        vectors = vectors[5:15]  # float16 holds no more
    found = decoded(vectors, bits)
    lengths = np.linalg.norm(vectors, axis=1)
    errors = np.linalg.norm(found - vectors, axis=1) / lengths
    assert errors.max() < ERRORS[bits]
    own = np.einsum("nd,nd->n", found, vectors) / lengths**2
    np.testing.assert_allclose(own, 1, rtol=1e-4)


@pytest.mark.parametrize("bits", [*FEW, 16])
def test_a_code_depends_on_its_vector_alone(bits: int) -> None:
    vectors = random(600, 24)
    codes = Codes(24, bits)
    whole = codes.encode(vectors)
    assert whole.shape == (600, codes.size)
    np.testing.assert_array_equal(codes.encode(vectors[::-1])[::-1], whole)
    np.testing.assert_array_equal(codes.encode(vectors[431:432]), whole[431:432])
    np.testing.assert_array_equal(codes.decode(whole[431:432]), codes.decode(whole)[431:432])


@pytest.mark.parametrize("bits", [*FEW, 16])
def test_zero_vectors_are_zero_and_unlike_lengths_do_not_meet(bits: int) -> None:
    vectors = random(3, 16)
    vectors[1] = 0
    vectors[2] = 1000 * vectors[0]
    found = decoded(vectors, bits)
    assert not found[1].any()
    np.testing.assert_allclose(found[2], 1000 * found[0], rtol=2e-3 if bits == 16 else 1e-5)


def test_no_codes_of_other_bits() -> None:
    for bits in (0, 1, 5, 32):
        with pytest.raises(InputError, match=f"bits is {bits}, but must be one of 2, 3, 4, 8, 16"):
            Codes(16, bits)


def test_the_default_takes_no_more_than_before() -> None:
    assert Codes(4096, 4).size == 2068
    assert Codes(1024, 16).size == 2048


@pytest.mark.parametrize("bits", [*FEW, 16])
@pytest.mark.parametrize("dim", [60, 256])
def test_plain_faiss_ranks_the_file_rightly(tmp_path: Path, bits: int, dim: int) -> None:
    vectors = random(500, dim) * np.random.default_rng(1).lognormal(0, 1, (500, 1))
    vectors = vectors.astype(np.float32)
    vectors[7] = 0
    ids = 3 * np.arange(500)[::-1]
    segment = write_segment(tmp_path, "a.faiss", ids.copy(), vectors, bits)
    stored = decoded(vectors, bits).astype(np.float64)
    index = faiss.read_index(str(tmp_path / "a.faiss"), faiss.IO_FLAG_MMAP_IFC)
    flat = FlatSearch(tmp_path, [segment], dim, bits=bits)
    queries = random(20, dim, seed=2) + vectors[:20]
    for sign in (1, -1):  # proponents, opponents
        exact = sign * queries.astype(np.float64) @ stored.T
        order = np.argsort(-exact, axis=1)[:, :10]
        scores, found = index.search(sign * queries, 10)
        np.testing.assert_array_equal(found, ids[order])
        np.testing.assert_allclose(
            scores, np.take_along_axis(exact, order, 1), rtol=1e-4, atol=1e-3
        )
        own_scores, own = flat.search(queries, 10, opponents=sign < 0)
        np.testing.assert_array_equal(own, ids[order])
        np.testing.assert_allclose(sign * own_scores, scores, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(flat.vectors(ids), decoded(vectors, bits))


@pytest.mark.parametrize("bits", [*FEW, 16])
def test_plain_faiss_answers_as_the_index_does(
    tmp_path: Path, rows: list[Row], lm: LanguageModel, bits: int
) -> None:
    """All that FAISS needs of this package is the query's vector, and the vectoriser's scale."""
    vector = replace(SMALL, bits=bits)
    InfluenceIndex.build(tmp_path / "i", rows[:25], lm, format=KEYED, vector=vector)[0].close()
    (segment,) = (tmp_path / "i" / "segments").iterdir()
    plain = faiss.read_index(str(segment), faiss.IO_FLAG_MMAP_IFC)
    orders = set()
    with InfluenceIndex.open(tmp_path / "i", model=lm) as index:
        for row in rows[25:]:
            query = index.vectors(index.samples(row))
            for sign in (1, -1):
                scores, ids = plain.search(sign * query, 10)
                hits = index.query(row, k=10, opponents=sign < 0, flat=True)
                assert [hit.id for hit in hits] == ids[0].tolist()
                found = [sign * hit.score * index.vectoriser.scale**2 for hit in hits]
                np.testing.assert_allclose(found, scores[0], rtol=1e-4, atol=1e-3)
                orders.add(tuple(ids[0]))
    assert len(orders) == 10  # of each query, and proponents and opponents, another one

"""Candidates from GPUs, or what stands in for them: the answers are those of the CPU."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.vectors import exact, random, write

from forvalue_index.search import gpu
from forvalue_index.search.backend import faiss
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.gpu import Resident, gpus
from forvalue_index.search.segment import write_segment

N, DIM, K = 3000, 64, 10
VECTORS, IDS = random(N, DIM), 3 * np.arange(N)
QUERIES = random(40, DIM, seed=1)


class Cpu:
    """A flat index of float16 in main memory."""

    def __init__(self, free: int = 2**40) -> None:
        self.free_bytes, self.made = free, 0

    def new_index(self, dim: int) -> Any:
        self.made += 1
        lib = faiss()
        kind = lib.ScalarQuantizer.QT_fp16
        return lib.IndexScalarQuantizer(dim, kind, lib.METRIC_INNER_PRODUCT)

    def free(self) -> int:
        return self.free_bytes


@pytest.fixture(params=["one", "two", pytest.param("real", marks=pytest.mark.gpu)])
def resident(request: pytest.FixtureRequest) -> Resident:
    if request.param == "real":
        assert gpus(), "FAISS sees no GPU: pip install forvalue-index[gpu]"
        return Resident(DIM)
    devices = [Cpu() for _ in range(1 + (request.param == "two"))]
    return Resident(DIM, lambda: devices)


@pytest.fixture
def no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for way in ("_among_many", "_among_few", "_among_all"):
        monkeypatch.setattr(FlatSearch, way, None)


def check(flat: FlatSearch, live: Any, queries: Any = QUERIES, **how: Any) -> None:
    for opponents, sign in ((False, 1), (True, -1)):
        scores, found = flat.search(queries, K, opponents=opponents, **how)
        expected, there = exact(sign * queries, VECTORS[live], IDS[live], K)
        np.testing.assert_array_equal(found, there)
        np.testing.assert_allclose(sign * scores, expected, rtol=1e-5)


@pytest.mark.usefixtures("no_cpu")
def test_answers_are_exact_while_the_index_grows_and_shrinks(
    tmp_path: Path, resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_PIECE", 400 * DIM)
    monkeypatch.setattr("forvalue_index.search.stored._NUMBERS", 150 * DIM)
    parts = [(IDS[:2000], VECTORS[:2000]), (IDS[2000:], VECTORS[2000:])]
    segments = write(tmp_path, parts)
    places = np.arange(N)
    check(FlatSearch(tmp_path, segments[:1], DIM, 16, (), resident), places < 2000)
    check(FlatSearch(tmp_path, segments, DIM, 16, (), resident), places >= 0)
    assert len(resident._ids) == N
    flat = FlatSearch(tmp_path, segments, DIM, 16, IDS[::5], resident)
    check(flat, places % 5 > 0)
    check(flat, (places % 5 > 0) & (places >= 1000), allowed=IDS[1000:])
    check(flat, places % 5 > 0, QUERIES[:1])
    most = FlatSearch(tmp_path, segments, DIM, 16, IDS[100:], resident)
    check(most, places < 100)
    assert len(resident._ids) == 100  # what is left was copied again


def test_few_queries_filters_and_weights_are_for_the_cpu(tmp_path: Path) -> None:
    device = Cpu()
    resident = Resident(DIM, lambda: [device])
    flat = FlatSearch(tmp_path, write(tmp_path, [(IDS, VECTORS)]), DIM, 16, (), resident)
    check(flat, IDS >= 0, QUERIES[:3])  # and the same negated
    check(flat, IDS < 300, allowed=IDS[:100])
    flat.search(QUERIES, K, weights=np.ones(N))
    assert not device.made
    assert flat.search(QUERIES, N)[1].shape == (40, N)
    check(flat, IDS >= 0)
    assert device.made == 1


def test_what_rounding_leaves_open_is_for_the_cpu(tmp_path: Path) -> None:
    """Vectors that differ by less than float16 tells, under queries that see the difference."""
    vectors = np.repeat(VECTORS[:10], 100, axis=0)
    ids = np.arange(1000)
    resident = Resident(DIM, lambda: [Cpu()])
    flat = FlatSearch(tmp_path, write(tmp_path, [(ids, vectors)]), DIM, 16, (), resident)
    found = flat.search(QUERIES, K)[1]
    np.testing.assert_array_equal(found, exact(QUERIES, vectors, ids, K)[1])
    proposed, most = resident.propose(QUERIES, K, ids, flat.ids, flat.blocks) or (found, None)
    assert most is not None and proposed.shape == (40, K + K // 4 + 8)


@pytest.mark.parametrize("length", [1e-6, 1e12])
def test_any_length_fits_into_float16(tmp_path: Path, length: float) -> None:
    vectors = VECTORS * np.float32(length)
    vectors[::2] *= 1e-3
    segments = [write_segment(tmp_path, "a.faiss", IDS, vectors, 8)]
    resident = Resident(DIM, lambda: [Cpu()])
    plain = FlatSearch(tmp_path, segments, DIM, 8)
    flat = FlatSearch(tmp_path, segments, DIM, 8, (), resident)
    for one, other in zip(flat.search(QUERIES, K), plain.search(QUERIES, K), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(resident._ids) == N


def test_no_room_and_failure_are_logged_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Cpu(free=2**20)
    resident = Resident(DIM, lambda: [device])
    flat = FlatSearch(tmp_path, write(tmp_path, [(IDS, VECTORS)]), DIM, 16, (), resident)
    monkeypatch.setattr(gpu, "_AGAIN", 100)
    with caplog.at_level(logging.WARNING):
        check(flat, IDS >= 0)
        assert "bytes of memory are needed, 1,048,576 are free" in caplog.text
        device.free_bytes = 2**40
        check(flat, IDS >= 0)
        check(flat, IDS >= 0)
        assert len(caplog.messages) == 1 and device.made == 1

        def failing(*_: Any) -> None:
            raise RuntimeError("CUDA error: out of memory")

        monkeypatch.setattr(resident, "_best", failing)
        check(flat, IDS >= 0)
        assert caplog.messages[1].endswith("CUDA error: out of memory")


def test_faiss_for_cpus_has_no_gpus() -> None:
    if not hasattr(faiss(), "StandardGpuResources"):
        assert gpus() == []

"""Search with vectors on GPUs gives what the CPU gives, to the bit.

The laws run with the CPU's memory in the place of a GPU's, and with the marker `gpu` on real ones.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from forvalue_index.records import Segment
from forvalue_index.search import resident as resident_module
from forvalue_index.search.backend import faiss
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.resident import Resident, Rows, gpus
from forvalue_index.search.segments import write_segment

DIM, N = 48, 3000


class FakeGpu:
    """A device on the CPU; counts what was made."""

    def __init__(self, memory: int = 2**40) -> None:
        self.memory = memory
        self.made: list[Rows] = []

    def new_rows(self, dim: int) -> Rows:
        self.made.append(Rows(dim, torch.device("cpu")))
        return self.made[-1]

    def free(self) -> int:
        return self.memory


def fake_devices() -> list[Any]:
    return [FakeGpu(), FakeGpu()]


def real_devices() -> list[Any]:
    found = gpus()
    if not found:
        pytest.skip("no GPU")
    return list(found)


@pytest.fixture(autouse=True)
def worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_module, "WORTH", 8)


@pytest.fixture(
    params=[
        pytest.param(fake_devices, id="cpu"),
        pytest.param(real_devices, id="gpu", marks=pytest.mark.gpu),
    ]
)
def devices(request: pytest.FixtureRequest) -> list[Any]:
    make: Callable[[], list[Any]] = request.param
    return make()


def vectors_of(n: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.standard_normal((n, 1)))
    return (rng.standard_normal((n, DIM)) * lengths).astype(np.float32)


QUERIES = np.concatenate([vectors_of(20, seed=1), 1e-6 * vectors_of(5, 2), 1e6 * vectors_of(5, 3)])


def random_unit(n: int) -> NDArray[np.float32]:
    vectors = vectors_of(n)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write(folder: Path, ids: NDArray[np.int64], name: str) -> list[Segment]:
    """Segments of vectors that depend on their id alone."""
    parts = np.array_split(ids, 3)
    return [
        write_segment(folder, f"{name}{i}.faiss", part, vectors_of(2 * N)[part])
        for i, part in enumerate(parts)
    ]


def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries each search left to a scan."""
    counts: list[int] = []
    scanned = FlatSearch._scanned

    def count(self: FlatSearch, queries: Any, *rest: Any) -> Any:
        counts.append(len(queries))
        return scanned(self, queries, *rest)

    monkeypatch.setattr(FlatSearch, "_scanned", count)
    return counts


def assert_same(found: tuple[Any, Any], wanted: tuple[Any, Any]) -> None:
    np.testing.assert_array_equal(found[1], wanted[1])
    np.testing.assert_array_equal(found[0], wanted[0])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shard", [2**30, 700 * DIM])
def test_gpus_give_the_bits_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: list[Any], shard: int, weighted: bool
) -> None:
    monkeypatch.setattr(resident_module, "_PIECE", shard)
    monkeypatch.setattr("forvalue_index.search.flat._NUMBERS", 300 * DIM)
    ids = np.arange(0, 2 * N, 2)
    segments = write(tmp_path, ids, "s")
    cpu = FlatSearch(tmp_path, segments, DIM, ids[::7])
    gpu = FlatSearch(tmp_path, segments, DIM, ids[::7], Resident(DIM, lambda: devices))
    counts, how = scans(monkeypatch), dict[str, Any]()
    if weighted:  # cosines
        how["weights"] = 1 / np.linalg.norm(cpu.vectors(cpu.ids), axis=1)
        how["weights"].flags.writeable = False
    for k in (1, 10, 100):
        for how["opponents"] in (False, True):
            for how["allowed"] in (None, ids[100:900]):
                wanted = cpu.search(QUERIES, k, **how)
                counts.clear()
                found = gpu.search(QUERIES, k, **how)
                assert sum(counts) < len(QUERIES) / 2
                assert_same(found, wanted)
                one = gpu.search(QUERIES[3:4], k, **how)
                assert_same(one, (wanted[0][3:4], wanted[1][3:4]))
    if weighted:  # it could fail: other weights are copied anew
        how = {"weights": np.linspace(1, 2, cpu.ntotal)}
        assert_same(gpu.search(QUERIES, 9, **how), cpu.search(QUERIES, 9, **how))
    if isinstance(devices[0], FakeGpu):
        pieces = [len(rows._pieces) for device in devices for rows in device.made]
        assert all((count > 1) == (shard < 2**30) for count in pieces)


def test_few_that_are_allowed_are_left_to_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: list[Any]
) -> None:
    """More candidates than a GPU gives would be needed to see them."""
    monkeypatch.setattr(resident_module, "_MOST", 64)
    ids = np.arange(N)
    segments = write(tmp_path, ids, "s")
    cpu = FlatSearch(tmp_path, segments, DIM)
    gpu = FlatSearch(tmp_path, segments, DIM, resident=Resident(DIM, lambda: devices))
    counts = scans(monkeypatch)
    allowed = ids[::50]
    assert_same(gpu.search(QUERIES, 10, allowed=allowed), cpu.search(QUERIES, 10, allowed=allowed))
    assert_same(gpu.search(QUERIES, 200), cpu.search(QUERIES, 200))
    assert counts[0] > len(QUERIES) / 2


def test_more_than_a_gpu_gives_is_left_to_the_cpu(tmp_path: Path, devices: list[Any]) -> None:
    segments = write(tmp_path, np.arange(N), "s")
    cpu = FlatSearch(tmp_path, segments, DIM)
    gpu = FlatSearch(tmp_path, segments, DIM, resident=Resident(DIM, lambda: devices))
    assert_same(gpu.search(QUERIES, 1500), cpu.search(QUERIES, 1500))
    for opponents in (False, True):
        found = gpu.search(QUERIES, 2100, opponents=opponents)
        assert found[1].shape == (len(QUERIES), 2100)
        assert_same(found, cpu.search(QUERIES, 2100, opponents=opponents))


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "dim"), [(100_000, 512), (20_000, 4096)])
def test_long_vectors_on_tensor_cores_are_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, dim: int
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n, dim), np.float32)
    segments = [write_segment(tmp_path, "a.faiss", np.arange(n), vectors)]
    queries = rng.standard_normal((40, dim), np.float32) + vectors[:40]
    cpu = FlatSearch(tmp_path, segments, dim)
    gpu = FlatSearch(tmp_path, segments, dim, resident=Resident(dim, real_devices))
    wanted = cpu.search(queries, 10)
    counts = scans(monkeypatch)
    proposed: list[Any] = []
    propose = Resident.propose

    def record(self: Resident, *arguments: Any) -> Any:
        proposed.append(propose(self, *arguments))
        return proposed[-1]

    monkeypatch.setattr(Resident, "propose", record)
    assert_same(gpu.search(queries, 10), wanted)
    ids, bounds = proposed[0]
    others = wanted[0].copy()
    others[(wanted[1][:, :, None] == ids[:, None]).any(2)] = -np.inf
    assert (others <= bounds[:, None]).all()
    assert sum(counts) < len(queries) / 2


def test_vectors_stay_while_the_index_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: list[Any]
) -> None:
    resident, ids = Resident(DIM, lambda: devices), np.arange(N)
    copied: list[int] = []
    add = Rows.add

    def count(self: Rows, ids: Any, halves: Any) -> None:
        copied.append(len(ids))
        add(self, ids, halves)

    monkeypatch.setattr(Rows, "add", count)

    def search(segments: list[Segment], removed: Any) -> None:
        flat = FlatSearch(tmp_path, segments, DIM, removed, resident)
        assert_same(
            flat.search(QUERIES, 10),
            FlatSearch(tmp_path, segments, DIM, removed).search(QUERIES, 10),
        )

    first = write(tmp_path, ids[:1000], "a")
    search(first, ())
    assert sum(copied) == 1000
    more = write(tmp_path, ids[1000:1300], "b")  # added, and some removed
    search(first + more, ids[:1000:3])
    assert sum(copied) == 1300
    live = np.setdiff1d(ids[:1300], ids[:1000:3])
    search(write(tmp_path, live, "c"), ())  # compacted: other files, the same vectors
    assert sum(copied) == 1300
    search(write(tmp_path, live[-200:], "d"), ())  # so many removed that a fresh copy is better
    assert sum(copied) == 1500


def test_a_copy_waits_until_it_pays(tmp_path: Path) -> None:
    device = FakeGpu()
    flat = FlatSearch(
        tmp_path, write(tmp_path, np.arange(N), "s"), DIM, resident=Resident(DIM, lambda: [device])
    )
    for i in range(7):
        flat.search(QUERIES[i : i + 1], 3)
    assert not device.made
    flat.search(QUERIES[:1], 3)
    assert device.made


def test_without_room_the_cpu_answers_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segments = write(tmp_path, np.arange(N), "s")
    wanted = FlatSearch(tmp_path, segments, DIM).search(QUERIES, 3)
    small = FakeGpu(memory=10**6)
    flat = FlatSearch(tmp_path, segments, DIM, resident=Resident(DIM, lambda: [FakeGpu(), small]))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert_same(flat.search(QUERIES, 3), wanted)
    assert [r.message for r in caplog.records if "1,000,000 are free" in r.message] != []
    assert len(caplog.records) == 1
    assert not any(map(len, small.made))


def test_a_gpu_that_fails_leaves_it_to_the_cpu(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = write(tmp_path, np.arange(N), "s")
    wanted = FlatSearch(tmp_path, segments, DIM).search(QUERIES, 3)
    flat = FlatSearch(tmp_path, segments, DIM, resident=Resident(DIM, fake_devices))
    assert_same(flat.search(QUERIES, 3), wanted)

    def fail(*_: object) -> None:
        raise RuntimeError("Error in CUDA:\\nout of memory")

    monkeypatch.setattr(Rows, "search", fail)
    for _ in range(2):
        assert_same(flat.search(QUERIES, 3), wanted)
    assert [record.message for record in caplog.records if "cannot be used" in record.message]
    assert len(caplog.records) == 1


def test_threads_share_a_gpu(tmp_path: Path, devices: list[Any]) -> None:
    segments = write(tmp_path, np.arange(N), "s")
    wanted = FlatSearch(tmp_path, segments, DIM).search(QUERIES, 5)
    flat = FlatSearch(tmp_path, segments, DIM, resident=Resident(DIM, lambda: devices))
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda query: flat.search(query[None], 5), QUERIES))
            np.testing.assert_array_equal(np.concatenate([ids for _, ids in found]), wanted[1])


def rows_and_queries(device: torch.device, n: int) -> tuple[Rows, NDArray[np.float32]]:
    """Vectors under the ids 10, 11, …, and the last of them as queries."""
    rows, vectors = Rows(DIM, device), vectors_of(N).astype(np.float16)
    for ids in np.array_split(np.arange(N), 7):
        rows.add(ids + 10, vectors[ids])
    assert len(rows) == N
    lengths, weighed = np.linalg.norm(vectors.astype(np.float64), axis=1), rows.weighed(None)
    assert (weighed.lengths.cpu().numpy() >= lengths).all()
    np.testing.assert_allclose(weighed.lengths.cpu().numpy(), lengths, rtol=1e-4)
    assert weighed.longest == weighed.lengths.max()
    return rows, vectors[-n:].astype(np.float32)


@pytest.mark.parametrize("piece", [2**30, 1000 * DIM])
def test_rows_grow_and_find_the_best(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(resident_module, "_PIECE", piece)
    rows, queries = rows_and_queries(torch.device("cpu"), 40)
    vectors = vectors_of(N).astype(np.float16).astype(np.float64)
    every = queries @ vectors.T
    off = DIM * 2.0**-24 * np.outer(*(np.linalg.norm(some, axis=1) for some in (queries, vectors)))
    monkeypatch.setattr(resident_module, "_PRODUCTS", 7 * N)  # some queries at a time
    order = np.argsort(-every, axis=1)
    for k in (9, N):
        scores, ids, others = rows.search(queries, k, rows.weighed(None))
        np.testing.assert_array_equal(ids[:, :9], order[:, :9] + 10)
        wrong = np.abs(scores - np.take_along_axis(every, ids - 10, 1))
        assert (wrong <= np.take_along_axis(off, ids - 10, 1)).all()
        if k < N:
            np.testing.assert_array_equal(others, scores[:, -1])
        else:
            assert (others == -np.inf).all()


class Lib:
    """FAISS's search in the memory of others, on the CPU."""

    METRIC_INNER_PRODUCT, DistanceDataType_F16, IndicesDataType_I64 = "ip", "half", "int64"
    GpuDistanceParams = SimpleNamespace
    StandardGpuResources = object
    ResultHeap = faiss().ResultHeap
    cast_integer_to_void_ptr = staticmethod(lambda address: address)
    swig_ptr = staticmethod(lambda array: array)

    @staticmethod
    def bfKnn(resources: object, asked: Any) -> None:  # noqa: N802
        assert asked.metric == "ip" and asked.vectorType == asked.queryType == "half"
        assert asked.outIndicesType == "int64"

        def read(address: int, n: int) -> NDArray[np.float32]:
            data = ctypes.string_at(address, 2 * n * asked.dims)
            return np.frombuffer(data, np.float16).reshape(n, -1).astype(np.float32)

        scores = read(asked.queries, asked.numQueries) @ read(asked.vectors, asked.numVectors).T
        asked.outIndices[:] = np.argsort(-scores, axis=1)[:, : asked.k]
        asked.outDistances[:] = np.take_along_axis(scores, asked.outIndices, 1)


def test_faiss_is_given_the_same_memory_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_module, "_PIECE", 1000 * DIM)
    rows, queries = rows_and_queries(torch.device("cpu"), 40)
    wanted = rows.search(queries, 600, rows.weighed(None))
    monkeypatch.setattr(resident_module, "faiss", lambda: Lib)
    monkeypatch.setattr(resident_module, "_faiss_can", lambda device: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    found = rows.search(queries, 600, rows.weighed(None))  # more than the last piece has
    np.testing.assert_array_equal(found[1][:, :50], wanted[1][:, :50])
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-3)
    monkeypatch.setattr(Lib, "bfKnn", lambda *_: pytest.fail("it was asked"))
    few = rows.search(queries[:3], 9, rows.weighed(None))
    np.testing.assert_array_equal(few[1], wanted[1][:3, :9])


def test_what_was_found_is_not_left_out_for_the_bound_would_rise(tmp_path: Path) -> None:
    resident, live = Resident(DIM, lambda: [FakeGpu()]), np.arange(N)
    flat = FlatSearch(tmp_path, write(tmp_path, live, "s"), DIM, resident=resident)
    exact = np.sort(flat.scores(QUERIES)[1], axis=1)[:, ::-1]
    found = resident.propose(QUERIES, 18, live, live, flat._blocks)
    assert found is not None and found[0].shape == (len(QUERIES), 38)
    assert (found[1] >= exact[:, 38]).all()
    assert (found[1] < exact[:, 18])[:20].all()


def test_one_long_vector_does_not_blur_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far a score may be off is for each vector by its own length."""
    vectors = random_unit(N)
    vectors[7] *= 5000
    segments = [write_segment(tmp_path, "s.faiss", np.arange(N), vectors)]
    queries = random_unit(40)[20:25]
    counts = scans(monkeypatch)
    flat = FlatSearch(tmp_path, segments, DIM, resident=Resident(DIM, lambda: [FakeGpu()]))
    wanted = FlatSearch(tmp_path, segments, DIM).search(queries, 5)
    counts.clear()
    for _ in range(2):  # the GPU is used from the second time on
        assert_same(flat.search(queries, 5), wanted)
    assert counts == [5]


def test_a_gpu_that_had_no_room_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resident_module, "_AGAIN", 2 * len(QUERIES))
    segments, device = write(tmp_path, np.arange(N), "s"), FakeGpu(memory=10**6)
    flat = FlatSearch(tmp_path, segments, DIM, resident=Resident(DIM, lambda: [device]))
    flat.search(QUERIES, 3)
    device.memory = 2**40
    flat.search(QUERIES, 3)
    assert not any(map(len, device.made))  # not yet
    flat.search(QUERIES, 3)
    assert sum(map(len, device.made)) == N
    assert len(caplog.records) == 1


@pytest.mark.gpu
def test_faiss_and_torch_find_the_same_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    if not resident_module._faiss_can(device):
        pytest.skip("FAISS is without GPUs")
    rows, queries = rows_and_queries(device, 40)
    found = rows.search(queries, 9, rows.weighed(None))
    monkeypatch.setattr(resident_module, "_faiss_can", lambda device: False)
    wanted = rows.search(queries, 9, rows.weighed(None))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-3)
    assert (found[1] == wanted[1]).mean() > 0.99

"""Segments on disk: what was written is what is read, and any damage is named."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from helpers.vectors import DIM, fp16, random, write

from forvalue_index.errors import CorruptIndexError, ModelError
from forvalue_index.records import Segment
from forvalue_index.search import backend
from forvalue_index.search.segment import open_segment, orphans, verify_segment, write_segment


def test_a_segment_is_what_was_written(tmp_path: Path) -> None:
    vectors, ids = random(50), np.random.default_rng(1).permutation(500)[:50]
    segment = write_segment(tmp_path, "a.faiss", ids, vectors, 16)
    data = (tmp_path / "a.faiss").read_bytes()
    assert segment == Segment("a.faiss", 50, len(data), hashlib.sha256(data).hexdigest())
    assert [path.name for path in tmp_path.iterdir()] == ["a.faiss"]
    opened = open_segment(tmp_path, segment, DIM, 16)
    order = np.argsort(ids)
    np.testing.assert_array_equal(opened.ids, ids[order])
    np.testing.assert_array_equal(opened.vectors(np.arange(50)), fp16(vectors[order]))
    assert verify_segment(tmp_path, segment, DIM, ids, 16) == []


def test_a_stored_segment_written_again_is_the_same_file(tmp_path: Path) -> None:
    vectors, ids = random(20), np.arange(20)
    first = write_segment(tmp_path, "a.faiss", ids, vectors, 16)
    stored = open_segment(tmp_path, first, DIM, 16).vectors(ids)
    assert write_segment(tmp_path, "b.faiss", ids, stored, 16).sha256 == first.sha256
    # What an interrupted writer left is replaced.
    (tmp_path / "c.faiss").write_bytes(b"half a file")
    assert write_segment(tmp_path, "c.faiss", ids[::-1], vectors[::-1], 16).sha256 == first.sha256


def test_an_open_segment_is_mapped_not_copied(tmp_path: Path) -> None:
    [segment] = write(tmp_path, [(range(4096), random(4096, 1024))])
    process = psutil.Process()
    before = process.memory_full_info().uss
    opened = open_segment(tmp_path, segment, 1024, 16)
    assert segment.bytes > 8e6
    assert process.memory_full_info().uss - before < segment.bytes / 2
    assert any(Path(m.path).name == "s0.faiss" for m in process.memory_maps())
    # Its file may go (compaction) while a reader has it open.
    (tmp_path / "s0.faiss").unlink()
    assert np.isfinite(opened.vectors(np.arange(4096))).all()


BAD = [(np.nan, "NaN"), (np.inf, "NaN or inf"), (7e4, "fp16.*7e\\+04")]


@pytest.mark.parametrize(("value", "message"), BAD)
def test_what_fp16_cannot_keep_is_refused(tmp_path: Path, value: float, message: str) -> None:
    vectors = random(5)
    vectors[3] = 0
    vectors[3, 2] = value
    with pytest.raises(ModelError, match=rf"samples 13 .*{message}"):
        write_segment(tmp_path, "a.faiss", np.arange(10, 15), vectors, 16)
    assert list(tmp_path.iterdir()) == []
    vectors[3, 2] = 6.55e4  # the largest number is kept, and so is next to nothing
    vectors[4] = 1e-9
    write_segment(tmp_path, "a.faiss", np.arange(10, 15), vectors, 16)


@pytest.mark.parametrize(
    ("ids", "vectors"),
    [
        (np.arange(3), random(4)),
        (np.array([1, 2, 2, 3]), random(4)),
        (np.array([-1, 2, 3, 4]), random(4)),
        (np.arange(4, dtype=np.int32), random(4)),
        (np.arange(4), random(4).astype(np.float64)),
        (np.arange(4), random(4)[0]),
        (np.arange(0), random(0)),
        (np.arange(4), random(4)[:, :0]),
    ],
)
def test_arrays_that_do_not_fit_are_our_bug(tmp_path: Path, ids: Any, vectors: Any) -> None:
    with pytest.raises(ValueError, match="ids"):
        write_segment(tmp_path, "a.faiss", ids, vectors, 16)
    for name in ("a", "../a.faiss", "/a.faiss"):
        with pytest.raises(ValueError, match="named"):
            write_segment(tmp_path, name, np.arange(4), random(4), 16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "write_index", "replace"])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    owner = {"fsync": "os", "write_index": "faiss", "replace": "pathlib.Path"}[step]
    monkeypatch.setattr(f"{owner}.{step}", full)
    with pytest.raises(OSError, match="No space"):
        write_segment(tmp_path, "a.faiss", np.arange(4), random(4), 16)
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    ids = np.arange(0, 9, 3)
    [segment] = write(tmp_path, [(ids, random(3, 4))])
    path = tmp_path / "s0.faiss"
    good = path.read_bytes()
    assert verify_segment(tmp_path, segment, 4, ids, 16) == []
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        path.write_bytes(bad)
        problems = verify_segment(tmp_path, segment, 4, ids, 16)
        assert f"s0.faiss has sha256 {hashlib.sha256(bad).hexdigest()}" in problems[0]


def test_what_differs_is_named(tmp_path: Path) -> None:
    ids = np.arange(5)
    segment, other, nan = write(tmp_path, [(ids, random(5)), (ids, random(5, 8)), (ids, random(5))])
    path = tmp_path / nan.name
    stored = fp16(random(5)).astype(np.float16).tobytes()
    data = path.read_bytes()
    assert stored in data
    path.write_bytes(data.replace(stored[:2], np.float16("nan").tobytes(), 1))
    cases = [
        (replace(segment, ntotal=6), DIM, r"s0\.faiss: vectors 5, committed 6"),
        (replace(segment, bytes=7), DIM, rf"s0\.faiss: bytes {segment.bytes}, committed 7"),
        (other, DIM, r"s1\.faiss: dim 8, committed 16"),
        (replace(segment, name="x.faiss"), DIM, r"x\.faiss is missing"),
    ]
    for wrong, dim, message in cases:
        with pytest.raises(CorruptIndexError, match=message):
            open_segment(tmp_path, wrong, dim, 16)
        [*_, problem] = verify_segment(tmp_path, wrong, dim, ids, 16)
        assert message.replace("\\", "") in problem
    digest, finite = verify_segment(tmp_path, nan, DIM, ids, 16)
    assert "sha256" in digest
    assert "not finite: ids 0" in finite
    surplus, absent = verify_segment(tmp_path, segment, DIM, np.arange(2, 9), 16)
    assert "vectors without a row in the catalogue: ids 0, 1" in surplus
    assert "no vectors for rows of the catalogue: ids 5, 6, 7, 8" in absent
    path.write_bytes(b"x" * nan.bytes)
    with pytest.raises(CorruptIndexError, match=r"s2\.faiss cannot be read"):
        open_segment(tmp_path, nan, DIM, 16)


def _foreign(kind: str) -> Any:
    faiss = backend.faiss()
    if kind == "flat":
        return faiss.IndexFlatIP(DIM)
    quantiser = faiss.ScalarQuantizer.QT_bf16 if kind == "bf16" else faiss.ScalarQuantizer.QT_fp16
    metric = faiss.METRIC_L2 if kind == "l2" else faiss.METRIC_INNER_PRODUCT
    return faiss.IndexScalarQuantizer(DIM, quantiser, metric)


@pytest.mark.parametrize(
    ("kind", "message"), [("flat", "quantiser"), ("bf16", "quantiser kind"), ("l2", "metric")]
)
def test_a_foreign_index_is_not_a_segment(tmp_path: Path, kind: str, message: str) -> None:
    faiss = backend.faiss()
    index = faiss.IndexIDMap(_foreign(kind))
    index.add_with_ids(random(5), np.arange(5))
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    segment = Segment("a.faiss", 5, (tmp_path / "a.faiss").stat().st_size, "")
    with pytest.raises(CorruptIndexError, match=rf"a\.faiss: {message} "):
        open_segment(tmp_path, segment, DIM, 16)


def test_ids_out_of_order_are_not_opened(tmp_path: Path) -> None:
    [segment] = write(tmp_path, [(range(5), random(5))])
    path = tmp_path / "s0.faiss"
    path.write_bytes(path.read_bytes()[:-40] + np.array([0, 1, 3, 2, 4]).tobytes())
    with pytest.raises(CorruptIndexError, match="do not ascend"):
        open_segment(tmp_path, segment, DIM, 16)


def test_orphans_are_what_was_not_committed(tmp_path: Path) -> None:
    segments = write(tmp_path, [(range(3), random(3)), (range(3, 6), random(3))])
    (tmp_path / "s2.faiss.tmp").touch()
    (tmp_path / "notes.txt").touch()
    assert [path.name for path in orphans(tmp_path, segments[:1])] == ["s1.faiss", "s2.faiss.tmp"]

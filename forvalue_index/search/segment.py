"""One immutable FAISS file of vectors: written whole, opened by mapping, checked.

A segment holds codes (`vectors/codes.py`), compared by inner product, in the order of their ids:
an `IndexRaBitQ`, or for 16 bits a number an `IndexScalarQuantizer` of fp16. Plain FAISS reads and
maps the file, and ranks rightly. Knows nothing of samples, nor of which vectors are removed.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.errors import CorruptIndexError, ModelError
from forvalue_index.records import Segment
from forvalue_index.search.backend import faiss, read_index
from forvalue_index.system.files import TEMPORARY, atomic_write, open_own, own_files, path_in
from forvalue_index.vectors.codes import FP16_MAX, Bytes, Codes

SUFFIX = ".faiss"
LARGEST = 1e15  # number of a vector: products of two vectors are still numbers of float32
QUERY_BITS = 8
"""Of a query's number, where FAISS compares the highest bits of codes."""


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """A segment mapped into memory. `ids` [n] ascending int64; vector i belongs to ids[i]."""

    name: str
    index: Any  # faiss.IndexIDMap
    quantiser: Any  # faiss.IndexFlatCodes inside it, which counts from 0
    ids: NDArray[np.int64]
    codes: Codes

    @property
    def data(self) -> Bytes:
        """All codes, [n, size]: a view of the mapped file."""
        codes = self.quantiser.codes
        memory: Bytes = faiss().rev_swig_ptr(codes.data(), codes.size())
        return memory.reshape(-1, self.codes.size)

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the vectors of the codes at `positions` [m], [m, dim]."""
        return self.codes.decode(self.data[positions])


def write_segment(
    folder: str | Path,
    name: str,
    ids: NDArray[np.int64],
    vectors: NDArray[np.float32],
    bits: int,
) -> Segment:
    """Writes the segment `folder/name` of vectors, as `write_codes` does, and returns it.

    Args:
        folder: exists already.
        name: ends in ".faiss".
        ids: [n] int64, 0 or more, each once, in any order.
        vectors: [n, dim] float32.
        bits: of a number.

    Raises:
        ModelError: a vector holds NaN or infinity, or numbers that fp16 cannot keep and should.
        ValueError: ids and vectors do not fit together.
        OSError: the disk is full, or the folder cannot be written.
    """
    ids = np.asarray(ids)
    data, codes = codes_of(ids, np.asarray(vectors), bits)
    return write_codes(folder, name, ids, data, codes)


def codes_of(
    ids: NDArray[np.int64], vectors: NDArray[np.float32], bits: int
) -> tuple[Bytes, Codes]:
    """Returns the codes of vectors [n, dim] as a segment has them, [n, size], and their kind.

    Arguments and errors are those of `write_segment`.
    """
    _check_arrays(ids, vectors, bits)
    codes = Codes(vectors.shape[1], bits)
    return codes.encode(vectors), codes


def write_codes(
    folder: str | Path, name: str, ids: NDArray[np.int64], data: Bytes, codes: Codes
) -> Segment:
    """Writes the segment `folder/name` of codes [n, size], safe on disk, and returns it.

    The name must not be a committed segment's. A file that an interrupted writer left under it is
    replaced.

    Raises:
        ValueError: the name is none, or ids and codes do not fit together.
        OSError: the disk is full, or the folder cannot be written.
    """
    if Path(name).name != name or not name.endswith(SUFFIX):
        raise ValueError(f"a segment is named NAME{SUFFIX}, not {name!r}")
    if not 0 < len(ids) == len(data):
        raise ValueError(f"{len(ids)} ids for codes of shape {data.shape}")
    order = np.argsort(ids)
    lib = faiss()
    quantiser = _quantiser(codes)
    index = lib.IndexIDMap(quantiser)
    quantiser.add_sa_codes(np.ascontiguousarray(data[order]))
    lib.copy_array_to_vector(np.ascontiguousarray(ids[order]), index.id_map)
    index.ntotal = quantiser.ntotal

    size, sha256 = write_index(index, Path(folder), lambda _: name)
    return Segment(name, len(ids), size, sha256)


def _quantiser(codes: Codes) -> Any:
    """Returns FAISS's index of codes, without any vectors."""
    lib = faiss()
    if codes.bits == 16:
        kind = lib.ScalarQuantizer.QT_fp16
        return lib.IndexScalarQuantizer(codes.dim, kind, lib.METRIC_INNER_PRODUCT)
    return rabitq(codes.dim, codes.bits)


def rabitq(dim: int, bits: int) -> Any:
    """Returns FAISS's index of codes of 1 to 8 bits, without any vectors."""
    lib = faiss()
    quantiser = lib.IndexRaBitQ(dim, lib.METRIC_INNER_PRODUCT, bits)
    quantiser.train(np.zeros((1, dim), np.float32))  # the centre
    quantiser.qb = QUERY_BITS
    return quantiser


def write_index(index: Any, folder: Path, named: Callable[[str], str]) -> tuple[int, str]:
    """Writes a FAISS index, complete and safe on disk; returns its size and sha256.

    Its name in the folder is what `named` makes of its sha256.

    Raises:
        OSError: the disk is full, or the folder cannot be written; nothing is left then.
    """
    sha256, size = hashlib.sha256(), 0

    def path() -> Path:
        return folder / named(sha256.hexdigest())

    with atomic_write(folder / f"new{SUFFIX}", named=path) as file:

        def write(data: bytes) -> int:
            nonlocal size
            sha256.update(data)
            size += len(data)
            written: int = file.write(data)
            return written

        lib = faiss()
        lib.write_index(index, lib.PyCallbackIOWriter(write))
    return size, sha256.hexdigest()


def open_segment(folder: str | Path, segment: Segment, dim: int, bits: int) -> OpenSegment:
    """Returns a mapped segment: its vectors are read from disk when they are first compared.

    Size, header and ids are checked, the vectors are not (`verify_segment` does).

    Raises:
        CorruptIndexError: the file is missing, or is not what was committed; the message names
            it and what differs.
    """
    lib = faiss()
    path = path_in(folder, segment.name, SUFFIX)
    stat_of(path, segment)
    try:
        index = read_index(path, mapped=True)
    except (RuntimeError, MemoryError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptIndexError(f"{path} cannot be read ({reason}): {NEXT}") from error
    _same(path, "type", type(index).__name__, "IndexIDMap")
    quantiser = lib.downcast_index(index.index)
    codes = Codes(dim, bits)
    kind = "IndexScalarQuantizer" if bits == 16 else "IndexRaBitQ"
    _same(path, "quantiser", type(quantiser).__name__, kind)
    for part in (index, quantiser):
        _same(path, "vectors", part.ntotal, segment.ntotal)
        _same(path, "dim", part.d, dim)
        _same(path, "metric", part.metric_type, lib.METRIC_INNER_PRODUCT)
    if bits == 16:
        _same(path, "quantiser kind", quantiser.sq.qtype, lib.ScalarQuantizer.QT_fp16)
    else:
        _same(path, "bits of a number", quantiser.rabitq.nb_bits, bits)
        centred = bool(lib.vector_to_array(quantiser.center).any())
        _same(path, "centre other than 0", centred, False)
    _same(path, "bytes of a vector", quantiser.code_size, codes.size)
    _same(path, "bytes of vectors", quantiser.codes.size(), codes.size * segment.ntotal)
    ids = lib.vector_to_array(index.id_map)
    _same(path, "ids", len(ids), segment.ntotal)
    if ids[0] < 0 or (np.diff(ids) <= 0).any():
        raise CorruptIndexError(f"{path} has ids that do not ascend: {NEXT}")
    return OpenSegment(segment.name, index, quantiser, ids, codes)


def verify_segment(
    folder: str | Path, segment: Segment, dim: int, ids: NDArray[np.int64], bits: int
) -> list[str]:
    """Returns what is wrong with a segment, a line each. Reads all of it.

    `ids` are those that the catalogue has for it, tombstones included, in any order.
    """
    problems: list[str] = []
    try:
        path = path_in(folder, segment.name, SUFFIX)
        stat_of(path, segment)
        with open_own(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != segment.sha256:
            problems.append(f"{path} has sha256 {sha256}, but {segment.sha256} was committed")
        opened = open_segment(folder, segment, dim, bits)
    except CorruptIndexError as error:
        return [*problems, str(error)]
    except OSError as error:
        return [*problems, f"{path} cannot be read: {error}"]
    for start in range(0, len(opened.ids), 1024):
        positions = np.arange(start, min(start + 1024, len(opened.ids)))
        finite = np.isfinite(opened.vectors(positions)).all(axis=1)
        if not finite.all():
            bad = opened.ids[positions[~finite]]
            problems.append(f"{path} has vectors that are not finite: ids {_some(bad)}")
    for found, given, what in (
        (opened.ids, ids, "vectors without a row in the catalogue"),
        (ids, opened.ids, "no vectors for rows of the catalogue"),
    ):
        extra = np.setdiff1d(found, given)
        if len(extra):
            problems.append(f"{path} has {what}: ids {_some(extra)}")
    return problems


def orphans(folder: str | Path, segments: Iterable[Segment]) -> list[Path]:
    """Returns the files that an interrupted writer left in `folder`: no segment has their name.

    Only the holder of the writer's lock may remove them: a writer at work may commit them.
    """
    names = {segment.name for segment in segments}
    if not Path(folder).is_dir():  # each of its files is missing then
        return []
    return sorted(
        path
        for path in own_files(Path(folder))
        if path.suffix in (SUFFIX, TEMPORARY) and path.name not in names
    )


NEXT = "see `forvalue verify`, restore the file from a copy, or build again"


def _check_arrays(ids: NDArray[Any], vectors: NDArray[Any], bits: int) -> None:
    if ids.ndim != 1 or ids.dtype != np.int64 or vectors.ndim != 2 or vectors.dtype != np.float32:
        raise ValueError(
            f"ids are {ids.dtype} {ids.shape}, vectors {vectors.dtype} {vectors.shape}: "
            "they must be int64 [n] and float32 [n, dim]"
        )
    if not 0 < len(ids) == len(vectors) or not vectors.shape[1]:
        raise ValueError(f"{len(ids)} ids for vectors of shape {vectors.shape}")
    if ids.min() < 0 or len(np.unique(ids)) != len(ids):
        raise ValueError("ids must be 0 or more, and each may occur only once")
    if bad := unstorable(vectors, bits):
        raise ModelError(
            f"samples {_some(ids[list(bad)])} cannot be stored, nothing was written: "
            f"{bad[min(bad)]}"
        )


def unstorable(vectors: NDArray[np.float32], bits: int) -> dict[int, str]:
    """Returns the positions of vectors [n, dim] that no segment can keep, each with the reason."""
    # Numbers that are too small for fp16 become 0, which is right beside the others.
    largest = np.abs(vectors).max(axis=1)  # NaN if one is
    most = FP16_MAX if bits == 16 else LARGEST
    bad = np.flatnonzero(~(largest <= most))
    return {int(i): _unstorable(float(largest[i]), most) for i in bad}


def _unstorable(largest: float, most: float) -> str:
    if not math.isfinite(largest):
        return "its vector holds NaN or infinity: check the model and its dtype"
    what = "fp16" if most == FP16_MAX else "codes"
    return (
        f"its vector does not fit into {what} (the largest number is {largest:.3g}, the limit "
        f"{most:.3g}); it is far longer than those the index was fitted to: build again with more "
        "--fit-samples, or with --recipe balanced or fewer --bits"
    )


def stat_of(path: Path, segment: Segment) -> os.stat_result:
    """Returns the status of the segment's file.

    Raises:
        CorruptIndexError: it is missing, or has another size than was committed.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptIndexError(f"{path} is missing: {NEXT}") from None
    _same(path, "bytes", found.st_size, segment.bytes)
    return found


def _same(path: Path, what: str, found: object, committed: object) -> None:
    if found != committed:
        raise CorruptIndexError(f"{path}: {what} {found}, committed {committed}: {NEXT}")


def _some(ids: NDArray[np.int64], shown: int = 5) -> str:
    rest = f" and {len(ids) - shown} more" if len(ids) > shown else ""
    return ", ".join(str(id) for id in ids[:shown]) + rest

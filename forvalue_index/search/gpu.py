"""Candidates from GPUs: the vectors of an index in FAISS's flat indexes there, in float16.

A GPU only proposes; scores are those of the stored codes. The scores of all vectors that are not
proposed have a known bound, so answers stay exact. An open index keeps its vectors there while it
grows: an id is never used again, and its vector never changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.search.backend import faiss
from forvalue_index.search.common import Ids, Scores

WORTH = 32
"""Queries from which it pays to copy all vectors to a GPU: a copy takes as long as many scans."""

_AGAIN = 2**14  # queries after which GPUs that had no room, or failed, are tried again
_MOST = 2048  # candidates that FAISS gives on a GPU
_PIECE = 2**30  # numbers of one index: 2 GiB, which FAISS copies when it adds some
_SCRATCH = 4 * 2**30  # bytes to work with, beside a piece that is copied
_LARGEST = 1024.0  # number of a vector at first; later ones may be 60 times as large
_ERROR = 2.0**-8  # of a score by rounding to float16, 8 times the usual
_EPSILON = 2.0**-23  # of a term, by adding up in float32
log = logging.getLogger(__name__)


class Gpu:
    """A GPU, by its number."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._resources = faiss().StandardGpuResources()

    def new_index(self, dim: int) -> Any:
        """Returns an empty flat FAISS index of inner products that keeps float16."""
        config = faiss().GpuIndexFlatConfig()
        config.device, config.useFloat16 = self._number, True
        return faiss().GpuIndexFlatIP(self._resources, dim, config)

    def free(self) -> int:
        """Returns the bytes of memory that nobody uses."""
        import torch  # it takes a second to import, and only GPUs need it here

        torch.cuda.empty_cache()  # what torch keeps for later, FAISS cannot have
        return int(torch.cuda.mem_get_info(self._number)[0])


def gpus() -> list[Gpu]:
    """Returns the GPUs that FAISS can use; none if it is the one for CPUs."""
    if not hasattr(faiss(), "StandardGpuResources"):
        return []
    return [Gpu(number) for number in range(faiss().get_num_gpus())]


class Resident:
    """Vectors on all GPUs, under their ids. Threads may share it: they take turns."""

    def __init__(self, dim: int, find: Callable[[], Sequence[Gpu]] = gpus) -> None:
        """Copies nothing yet; `find` is called when a copy pays."""
        self._dim = dim
        self._find = find
        self._asked = 0
        self._lock = Lock()
        self._forget()

    def _forget(self) -> None:
        self._devices: Sequence[Gpu] | None = None
        self._index: Any = None
        self._shards: list[Any] = []  # of each device: pieces
        self._ids = np.empty(0, np.int64)
        self._covered: Ids | None = None  # all of these are there
        self._longest = self._scale = 0.0

    def propose(
        self,
        queries: Scores,
        m: int,
        wanted: Ids,
        live: Ids,
        blocks: Callable[[Ids], Iterable[tuple[Ids, Scores]]],
    ) -> tuple[Ids, NDArray[np.float64]] | None:
        """Returns ids [q, m or more] of the best of `wanted`, and the most others may score [q].

        An id that may not be an answer is -1. Returns None if the CPU should search: GPUs do not
        pay yet, cannot give so many, or fail, which is logged; they are tried again later.

        Args:
            queries: [q, dim].
            m: candidates.
            wanted: ids that may be an answer, ascending, one or more.
            live: all that may ever be, ascending; the same array each time.
            blocks: yields ids and their vectors.
        """
        with self._lock:
            self._asked += len(queries)
            if self._asked < WORTH or 2 * len(wanted) < len(live):
                return None
            try:
                if self._devices is None:
                    self._devices = self._find()
                if self._devices and live is not self._covered:
                    self._cover(self._devices, live, blocks)
                count = (m + m // 4 + 8) * len(self._ids) // len(wanted)
                count = min(count, len(self._ids))
                if not self._devices or count > _MOST:
                    return None
                return self._best(queries, count, wanted)
            except (MemoryError, RuntimeError) as error:  # raised where CUDA fails, too
                reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
                log.warning("searching on the CPU: the GPUs cannot be used: %s", reason)
                self._forget()
                self._asked = WORTH - _AGAIN
                return None

    def _cover(
        self,
        devices: Sequence[Gpu],
        live: Ids,
        blocks: Callable[[Ids], Iterable[tuple[Ids, Scores]]],
    ) -> None:
        """Copies what is not there yet, in equal shares."""
        if len(self._ids) > 2 * len(live):  # most of it was removed
            self._forget()
            self._devices = devices
        lib = faiss()
        if self._index is None:
            self._index = lib.IndexShards(self._dim, True, False)  # a thread for each GPU
            self._shards = [lib.IndexShards(self._dim, False, False) for _ in devices]
        missing = np.setdiff1d(live, self._ids, assume_unique=True)
        share = 2 * self._dim * -(-len(missing) // len(devices))
        needed = share + min(2 * share, 2 * _PIECE) + _SCRATCH
        for device in devices if len(missing) else ():
            if (free := device.free()) < needed:
                raise MemoryError(f"{needed:,} bytes of memory are needed, {free:,} are free")
        for ids, vectors in blocks(missing):
            self._scale = self._scale or _LARGEST / max(float(np.abs(vectors).max()), 1e-30)
            halves = vectors * np.float32(self._scale)
            if not (np.abs(halves) < 65504).all():
                raise MemoryError("vectors are too unlike for float16")
            number = min(range(len(devices)), key=lambda i: self._shards[i].ntotal)
            shard = self._shards[number]
            last = shard.at(shard.count() - 1) if shard.count() else None
            if last is None or (last.ntotal + len(ids)) * self._dim > _PIECE:
                last = lib.IndexIDMap(devices[number].new_index(self._dim))
                shard.add_shard(last)
            last.add_with_ids(halves, ids)
            shard.syncWithSubIndexes()
            if shard.count() == 1 and shard.ntotal == len(ids):  # of the metric of its first piece
                self._index.add_shard(shard)
            lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
            self._longest = max(self._longest, float(lengths.max()))
        self._index.syncWithSubIndexes()
        self._ids, self._covered = np.concatenate([self._ids, missing]), live

    def _best(self, queries: Scores, count: int, wanted: Ids) -> tuple[Ids, NDArray[np.float64]]:
        lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
        # In float16, numbers beyond 65,504 would be infinite, and small ones nothing.
        units = (queries / np.maximum(lengths, 1e-300)[:, None]).astype(np.float32)
        scores, ids = self._index.search(units, count)
        most = np.full(len(queries), -np.inf)
        if count < len(self._ids):
            error = self._longest * (_ERROR / self._dim**0.5 + _EPSILON * self._dim)
            most = lengths * (scores[:, -1].astype(np.float64) / self._scale + error)
        places = np.minimum(np.searchsorted(wanted, ids), len(wanted) - 1)
        return np.where(wanted[places] == ids, ids, -1), most

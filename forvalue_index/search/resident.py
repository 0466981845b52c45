"""Vectors kept in the memory of GPUs, in float16, which propose candidates for queries.

FAISS's flat indexes on GPUs know no ids, and pass over a selector without a word. So they are
asked for more than is wanted, and what may not be an answer is left out here. Their scores are of
queries rounded to float16: as with `many.py` they only propose, with a bound for what they do not.

An index that stays open keeps its vectors there while it grows: a sample's id is never another
one's, and its vector never changes, so that what is there stays right, whatever becomes of files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from forvalue_index.search.backend import faiss
from forvalue_index.search.many import Proposal, slack
from forvalue_index.search.parts import Ids, Scores

WORTH = 8
"""Queries from which it pays to copy all vectors to a GPU: a copy takes as long as some scans."""

_SHARD = 2**30  # numbers of one FAISS index: 2 GiB, which are copied as it grows
_SCRATCH = 2**31  # bytes that FAISS takes on a GPU to work with
_MOST = 2048  # candidates that FAISS gives on a GPU
log = logging.getLogger(__name__)

Blocks = Callable[[Ids], Iterable[tuple[Ids, Scores]]]


class Device(Protocol):
    """Where vectors can be: a GPU."""

    def new_index(self, dim: int) -> Any:
        """An empty FAISS index of inner products, that stores float16."""

    def free(self) -> int:
        """Bytes of memory that nobody uses."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that FAISS can use, by its number."""

    number: int

    def new_index(self, dim: int) -> Any:
        """An empty FAISS index of inner products, that stores float16."""
        lib = faiss()
        config = lib.GpuIndexFlatConfig()
        config.device, config.useFloat16 = self.number, True
        return lib.GpuIndexFlatIP(_resources(self.number), dim, config)

    def free(self) -> int:
        """Bytes of memory that nobody uses."""
        import torch  # FAISS knows only its own memory

        torch.cuda.empty_cache()  # what torch keeps for later is of no use to FAISS
        return torch.cuda.mem_get_info(self.number)[0]


@cache
def _resources(number: int) -> Any:
    return faiss().StandardGpuResources()


def gpus() -> list[Gpu]:
    """The GPUs that both FAISS and torch can use; none with `faiss-cpu`."""
    if not hasattr(faiss(), "GpuIndexFlatIP"):
        return []
    import torch

    # Asked first: where there is no driver, FAISS ends the process.
    count = torch.cuda.device_count()
    return [Gpu(i) for i in range(min(faiss().get_num_gpus(), count) if count else 0)]


@dataclass
class _Shard:
    """A FAISS index on a device, and the ids of its vectors in their order."""

    index: Any
    ids: Ids = field(default_factory=lambda: np.empty(0, np.int64))


class Resident:
    """Vectors on devices under their ids. For many threads: one at a time."""

    def __init__(self, dim: int, devices: Sequence[Device]) -> None:
        """Nothing is copied yet.

        Args:
            dim: of the vectors.
            devices: vectors are spread over all of them.
        """
        self._dim = dim
        self._devices = devices
        self._shards: list[list[_Shard]] = [[] for _ in devices]
        self._covered: Ids | None = None  # all of these are on the devices
        self._longest = 0.0
        self._asked = 0
        self._lock = Lock()

    def propose(
        self, queries: Scores, m: int, wanted: Ids, live: Ids, blocks: Blocks
    ) -> Proposal | None:
        """The m best of `wanted` for each query by approximate scores, [q, m], and a bound, [q].

        -1 stands where fewer were found. No other vector of `wanted` has a score above the bound,
        as with `many.propose`. What is missing on the devices is copied first.

        None if that does not pay yet, or they cannot give so many; also if there is no room, or a
        device fails, which is logged, and from then on.

        Args:
            queries: [q, dim] float32.
            m: candidates.
            wanted: ids that may be an answer, ascending, m or more.
            live: all that may ever be, ascending.
            blocks: yields some ids and their vectors.
        """
        with self._lock:
            self._asked += len(queries)
            if not self._devices or self._asked < WORTH or m > _MOST:
                return None
            try:
                if live is not self._covered:
                    self._cover(live, blocks)
                return self._best(queries, m, wanted)
            except (MemoryError, RuntimeError) as error:  # FAISS raises these if CUDA fails
                reason = str(error).strip().splitlines()[-1]
                log.warning("searching on the CPU, for the GPUs cannot be used: %s", reason)
                self._devices, self._shards = (), []
                return None

    def _cover(self, live: Ids, blocks: Blocks) -> None:
        """Copies to the devices what is not there yet."""
        here = [shard.ids for shards in self._shards for shard in shards]
        missing = np.setdiff1d(live, np.concatenate([np.empty(0, np.int64), *here]))
        if sum(map(len, here)) > 2 * len(live):  # most of it was removed
            self._shards, missing = [[] for _ in self._devices], live
        share = 2 * self._dim * -(-len(missing) // len(self._devices))
        needed = share + min(share, 2 * _SHARD) + (0 if any(self._shards) else _SCRATCH)
        for device in self._devices if len(missing) else ():
            if (free := device.free()) < needed:
                raise MemoryError(f"{needed:,} bytes of memory are needed, {free:,} are free")
        for ids, vectors in blocks(missing):
            self._add(ids, vectors)
        self._covered = live

    def _best(self, queries: Scores, m: int, wanted: Ids) -> Proposal:
        lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
        # In float16, numbers beyond 65,504 would be infinite, and small ones nothing.
        units = (queries / np.maximum(lengths, 1e-300)[:, None]).astype(np.float32)
        total = sum(len(shard.ids) for shards in self._shards for shard in shards)
        fetched = min(_MOST, int(1.25 * m * total / len(wanted)) + 16)
        with ThreadPoolExecutor(len(self._devices)) as pool:
            found = list(pool.map(lambda shards: _search(shards, units, fetched), self._shards))
        scores = np.concatenate([scores for scores, _, _ in found], axis=1)
        ids = np.concatenate([ids for _, ids, _ in found], axis=1)
        others = np.max([bound for _, _, bound in found], axis=0)
        none = wanted[np.minimum(np.searchsorted(wanted, ids), len(wanted) - 1)] != ids
        scores[none], ids[none] = -np.inf, -1
        if scores.shape[1] > m:
            order = np.argpartition(-scores, m, axis=1)
            others = np.maximum(others, np.take_along_axis(scores, order[:, m:], 1).max(axis=1))
            ids = np.take_along_axis(ids, order[:, :m], 1)
        # Half a step of float16, what that leaves of the smallest numbers, and tensor cores,
        # which cut off what they add up where a CPU rounds.
        rounding = 2.0**-11 + self._dim**0.5 * 2.0**-25 + self._dim * 2.0**-22
        return ids, others * lengths + slack(queries, self._longest, rounding)

    def _add(self, ids: Ids, vectors: Scores) -> None:
        shards = min(self._shards, key=lambda shards: sum(len(shard.ids) for shard in shards))
        if not shards or (len(shards[-1].ids) + len(ids)) * self._dim > _SHARD:
            device = next(
                d for d, s in zip(self._devices, self._shards, strict=True) if s is shards
            )
            shards.append(_Shard(device.new_index(self._dim)))
        shards[-1].index.add(vectors)
        shards[-1].ids = np.concatenate([shards[-1].ids, ids])
        squares = np.einsum("nd,nd->n", vectors, vectors)
        longest = squares.max() ** 0.5 * (1 + self._dim * 2.0**-23)
        self._longest = float(np.maximum(self._longest, longest))  # NaN stays, and bounds nothing


def _search(
    shards: list[_Shard], queries: Scores, m: int
) -> tuple[Scores, Ids, NDArray[np.float64]]:
    """Scores and ids of the m best of each shard, [q, all], and a bound for the others, [q]."""
    every_score = [np.empty((len(queries), 0), np.float32)]
    every_id = [np.empty((len(queries), 0), np.int64)]
    bound = np.full(len(queries), -np.inf)
    for shard in shards:
        scores, places = shard.index.search(queries, min(m, len(shard.ids)))
        every_score.append(scores)
        every_id.append(np.where(places < 0, -1, shard.ids[places]))
        if m < len(shard.ids):
            bound = np.maximum(bound, scores[:, -1])
    return np.concatenate(every_score, axis=1), np.concatenate(every_id, axis=1), bound

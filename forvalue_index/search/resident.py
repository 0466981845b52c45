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

        return torch.cuda.mem_get_info(self.number)[0]


@cache
def _resources(number: int) -> Any:
    return faiss().StandardGpuResources()


def gpus() -> list[Gpu]:
    """The GPUs that both FAISS and torch can use; none with `faiss-cpu`."""
    if not hasattr(faiss(), "GpuIndexFlatIP"):
        return []
    import torch

    return [Gpu(i) for i in range(min(faiss().get_num_gpus(), torch.cuda.device_count()))]


@dataclass
class _Shard:
    """A FAISS index on a device, and the ids of its vectors in their order."""

    index: Any
    ids: Ids = field(default_factory=lambda: np.empty(0, np.int64))


class Resident:
    """Vectors on devices under their ids. For many threads: one at a time."""

    def __init__(self, dim: int, devices: Sequence[Device]) -> None:
        """Nothing is copied before `ready` is asked for.

        Args:
            dim: of the vectors.
            devices: vectors are spread over all of them.
        """
        self._dim = dim
        self._devices = devices
        self._shards: list[list[_Shard]] = [[] for _ in devices]
        self._longest = 0.0
        self._asked = 0
        self._lock = Lock()

    def ready(self, queries: int, live: Ids, blocks: Blocks) -> bool:
        """Whether all of `live` are on the devices; copies what is missing, if that pays.

        If they do not fit, or a device fails, that is logged, and from then on it is False.

        Args:
            queries: how many are about to be asked.
            live: ids, ascending.
            blocks: yields some ids and their vectors.
        """
        with self._lock:
            self._asked += queries
            if not self._devices or self._asked < WORTH:
                return False
            here = [shard.ids for shards in self._shards for shard in shards]
            missing = np.setdiff1d(live, np.concatenate([np.empty(0, np.int64), *here]))
            if not len(missing):
                return True
            if sum(map(len, here)) > 2 * len(live):  # most of it was removed
                self._shards = [[] for _ in self._devices]
                missing = live
            try:
                self._require_room(len(missing))
                for ids, vectors in blocks(missing):
                    self._add(ids, vectors)
            except (MemoryError, RuntimeError) as error:  # what FAISS raises if CUDA fails
                self._give_up(error)
                return False
            return True

    def propose(self, queries: Scores, m: int, live: Ids) -> Proposal | None:
        """The m best of `live` for each query by approximate scores, [q, m], and a bound, [q].

        -1 stands where fewer were found. No other vector of `live` has a score above the bound,
        as with `many.propose`; `ready` has said that all of them are here. None: a device failed.
        """
        lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
        # In float16, numbers beyond 65,504 would be infinite, and small ones nothing.
        units = (queries / np.maximum(lengths, 1e-300)[:, None]).astype(np.float32)
        with self._lock:
            total = sum(len(shard.ids) for shards in self._shards for shard in shards)
            fetched = min(_MOST, int(1.25 * m * total / len(live)) + 16)
            try:
                with ThreadPoolExecutor(len(self._devices)) as pool:
                    found = list(pool.map(lambda s: _search(s, units, fetched), self._shards))
            except RuntimeError as error:
                self._give_up(error)
                return None
        scores = np.concatenate([scores for scores, _, _ in found], axis=1)
        ids = np.concatenate([ids for _, ids, _ in found], axis=1)
        places = np.minimum(np.searchsorted(live, ids), len(live) - 1)
        none = live[places] != ids
        scores[none], ids[none] = -np.inf, -1
        if scores.shape[1] > m:
            best = np.argpartition(-scores, m - 1, axis=1)
            rest = np.take_along_axis(scores, best[:, m:], 1).max(axis=1)
            ids = np.take_along_axis(ids, best[:, :m], 1)
        else:
            rest = np.full(len(queries), -np.inf)
        others = np.max([rest, *(bound for _, _, bound in found)], axis=0)
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
        self._longest = max(self._longest, float(squares.max()) ** 0.5 * (1 + self._dim * 2.0**-23))

    def _require_room(self, vectors: int) -> None:
        share = 2 * self._dim * -(-vectors // len(self._devices))
        wanted = share + min(share, 2 * _SHARD) + _SCRATCH
        for device in self._devices:
            if (free := device.free()) < wanted:
                raise MemoryError(f"{wanted:,} bytes of a GPU are needed, {free:,} are free")

    def _give_up(self, error: Exception) -> None:
        log.warning("searching on the CPU: %s", str(error).strip().splitlines()[-1])
        self._devices, self._shards = (), []


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

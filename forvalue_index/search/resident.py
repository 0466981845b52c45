"""Vectors kept in the memory of GPUs, in float16, which propose candidates for queries.

One query is a product by torch and a selection by all of the GPU; FAISS, which selects the best of
each query in a single block of threads, gets the same memory where queries are many. Neither knows
ids: they are asked for more than is wanted, and what may not be an answer is left out here. Scores
are of queries rounded to float16: as with `many.py` they only propose, with a bound for what they
do not.

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
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from forvalue_index.search.backend import faiss
from forvalue_index.search.many import MANY, Proposal, slack
from forvalue_index.search.parts import Ids, Scores

if TYPE_CHECKING:  # it takes a second to import, and only GPUs need it
    import torch
    from torch import Tensor

WORTH = 32
"""Queries from which it pays to copy all vectors to a GPU: a copy takes as long as many scans."""

_SHARD = 2**30  # numbers in one piece of memory: 2 GiB, which are copied as it grows
_SCRATCH = 3 * 2**30  # bytes to work with: the scores of some queries, and what FAISS takes
_PRODUCTS = 2**28  # scores at a time: 1 GiB
_MOST = 2048  # candidates that FAISS gives on a GPU
log = logging.getLogger(__name__)

Halves = NDArray[np.float16]
Blocks = Callable[[Ids], Iterable[tuple[Ids, Halves]]]
_alone = Lock()
"""For all GPUs and indexes: FAISS's scratch memory of a GPU may have one user at a time."""


class Device(Protocol):
    """Where vectors can be: a GPU."""

    def new_rows(self, dim: int) -> Rows:
        """No vectors yet, but a place for them."""

    def free(self) -> int:
        """Bytes of memory that nobody uses."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, by its number."""

    number: int

    def new_rows(self, dim: int) -> Rows:
        """No vectors yet, but a place for them."""
        import torch

        return Rows(dim, torch.device("cuda", self.number))

    def free(self) -> int:
        """Bytes of memory that nobody uses."""
        import torch

        torch.cuda.empty_cache()  # what torch keeps for later, FAISS cannot have
        return torch.cuda.mem_get_info(self.number)[0]


def gpus() -> list[Gpu]:
    """The GPUs of this machine."""
    import torch

    return [Gpu(i) for i in range(torch.cuda.device_count())]


class Rows:
    """Vectors in float16 on a device, in the order in which they came."""

    def __init__(self, dim: int, device: torch.device) -> None:
        """None yet."""
        import torch

        self._memory = torch.empty(0, dim, dtype=torch.float16, device=device)
        self._n = 0

    def add(self, halves: Halves) -> float:
        """Appends vectors [n, dim]; returns the greatest length of one, up to float32 rounding."""
        import torch

        start, (room, dim) = self._n, self._memory.shape
        self._n += len(halves)
        if self._n > room:
            grown = self._memory.new_empty(max(self._n, min(2 * room, _SHARD // dim)), dim)
            grown[:start] = self._memory[:start]
            self._memory = grown
        rows = self._memory[start : self._n]
        rows.copy_(torch.from_numpy(halves))
        return float(torch.linalg.vector_norm(rows.float(), dim=1).max())

    def search(self, queries: Scores, k: int) -> tuple[Tensor, Tensor]:
        """Scores and places of the k best, [q, k] float32 and int64, best first.

        A GPU need not be done when this returns. Queries [q, dim] are rounded to float16.
        """
        import torch

        rows = self._memory[: self._n]
        asked = torch.from_numpy(queries).to(rows.device).half()
        if len(queries) >= MANY and _faiss_can(rows.device):
            return _faiss_best(rows, asked, k)
        step = max(1, _PRODUCTS // self._n)
        found = [
            _products(asked[start : start + step], rows).topk(k, dim=1)
            for start in range(0, len(asked), step)
        ]
        return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _products(queries: Tensor, rows: Tensor) -> Tensor:
    """Inner products of float16 vectors, added up in float32, [q, n]."""
    import torch

    if rows.is_cuda:
        return torch.mm(queries, rows.T, out_dtype=torch.float32)
    return queries.float() @ rows.float().T


@cache
def _faiss_can(device: torch.device) -> bool:
    """Whether FAISS knows the device; a FAISS without GPUs knows none."""
    return device.type == "cuda" and hasattr(faiss(), "bfKnn") and faiss().get_num_gpus() > 0


@cache
def _resources(device: torch.device) -> Any:
    return faiss().StandardGpuResources()


def _faiss_best(rows: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What `Rows.search` returns, by FAISS, of vectors in torch's memory."""
    import torch

    lib = faiss()
    scores = np.empty((len(queries), k), np.float32)
    places = np.empty((len(queries), k), np.int64)
    asked = lib.GpuDistanceParams()
    asked.metric, asked.k, asked.dims = lib.METRIC_INNER_PRODUCT, k, rows.shape[1]
    asked.vectors, asked.numVectors = lib.cast_integer_to_void_ptr(rows.data_ptr()), len(rows)
    asked.queries, asked.numQueries = lib.cast_integer_to_void_ptr(queries.data_ptr()), len(queries)
    asked.vectorType = asked.queryType = lib.DistanceDataType_F16
    asked.outDistances, asked.outIndices = lib.swig_ptr(scores), lib.swig_ptr(places)
    asked.outIndicesType, asked.device = lib.IndicesDataType_I64, rows.device.index
    torch.cuda.synchronize(rows.device)  # FAISS works in a stream of its own
    lib.bfKnn(_resources(rows.device), asked)
    return torch.from_numpy(scores), torch.from_numpy(places)


@dataclass
class _Shard:
    """Vectors on a device, and their ids in their order."""

    rows: Rows
    ids: Ids = field(default_factory=lambda: np.empty(0, np.int64))


class Resident:
    """Vectors on devices under their ids. For many threads: one at a time."""

    def __init__(self, dim: int, find: Callable[[], Sequence[Device]] = gpus) -> None:
        """Nothing is copied yet.

        Args:
            dim: of the vectors.
            find: returns the devices that vectors are spread over; called when it pays to use them.
        """
        self._dim = dim
        self._find = find
        self._devices: Sequence[Device] | None = None
        self._shards: list[list[_Shard]] = []
        self._covered: Ids | None = None  # all of these are on the devices
        self._longest = 0.0
        self._asked = 0

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
            blocks: yields some ids and their vectors [n, dim].
        """
        with _alone:
            self._asked += len(queries)
            if self._asked < WORTH or m > _MOST:
                return None
            if self._devices is None:
                self._devices = self._find()
                self._shards = [[] for _ in self._devices]
            if not self._devices:
                return None
            try:
                if live is not self._covered:
                    self._cover(self._devices, live, blocks)
                return self._best(queries, m, wanted)
            except (MemoryError, RuntimeError) as error:  # raised where CUDA fails, too
                reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
                log.warning("searching on the CPU, for the GPUs cannot be used: %s", reason)
                self._devices, self._shards = (), []
                return None

    def _cover(self, devices: Sequence[Device], live: Ids, blocks: Blocks) -> None:
        """Copies to the devices what is not there yet."""
        here = [shard.ids for shards in self._shards for shard in shards]
        missing = np.setdiff1d(live, np.concatenate([np.empty(0, np.int64), *here]))
        if sum(map(len, here)) > 2 * len(live):  # most of it was removed
            self._shards, missing = [[] for _ in devices], live
        share = 2 * self._dim * -(-len(missing) // len(devices))
        needed = share + min(share, 2 * _SHARD) + (0 if any(self._shards) else _SCRATCH)
        for device in devices if len(missing) else ():
            if (free := device.free()) < needed:
                raise MemoryError(f"{needed:,} bytes of memory are needed, {free:,} are free")
        for ids, halves in blocks(missing):
            self._add(devices, ids, halves)
        self._covered = live

    def _best(self, queries: Scores, m: int, wanted: Ids) -> Proposal:
        lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
        # In float16, numbers beyond 65,504 would be infinite, and small ones nothing.
        units = (queries / np.maximum(lengths, 1e-300)[:, None]).astype(np.float32)
        total = sum(len(shard.ids) for shards in self._shards for shard in shards)
        fetched = min(_MOST, int(1.25 * m * total / len(wanted)) + 16)
        if len(self._shards) == 1:
            found = [_search(self._shards[0], units, fetched)]
        else:
            with ThreadPoolExecutor(len(self._shards)) as pool:
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

    def _add(self, devices: Sequence[Device], ids: Ids, halves: Halves) -> None:
        shards = min(self._shards, key=lambda shards: sum(len(shard.ids) for shard in shards))
        if not shards or (len(shards[-1].ids) + len(ids)) * self._dim > _SHARD:
            device = next(d for d, s in zip(devices, self._shards, strict=True) if s is shards)
            shards.append(_Shard(device.new_rows(self._dim)))
        longest = shards[-1].rows.add(halves) * (1 + self._dim * 2.0**-23)
        shards[-1].ids = np.concatenate([shards[-1].ids, ids])
        self._longest = float(np.maximum(self._longest, longest))  # NaN stays, and bounds nothing


def _search(
    shards: list[_Shard], queries: Scores, m: int
) -> tuple[Scores, Ids, NDArray[np.float64]]:
    """Scores and ids of the m best of each shard, [q, all], and a bound for the others, [q]."""
    begun = [shard.rows.search(queries, min(m, len(shard.ids))) for shard in shards]
    every_score = [np.empty((len(queries), 0), np.float32)]
    every_id = [np.empty((len(queries), 0), np.int64)]
    bound = np.full(len(queries), -np.inf)
    for shard, found in zip(shards, begun, strict=True):
        scores, places = (part.cpu().numpy() for part in found)
        every_score.append(scores)
        every_id.append(np.where(places < 0, -1, shard.ids[places]))
        if m < len(shard.ids):
            bound = np.maximum(bound, scores[:, -1])
    return np.concatenate(every_score, axis=1), np.concatenate(every_id, axis=1), bound

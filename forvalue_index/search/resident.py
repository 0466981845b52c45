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
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from forvalue_index.search.backend import faiss
from forvalue_index.search.many import MANY, Proposal, relative_slack, underflow
from forvalue_index.search.parts import Ids, Scores

if TYPE_CHECKING:  # it takes a second to import, and only GPUs need it
    import torch
    from torch import Tensor

WORTH = 32
"""Queries from which it pays to copy all vectors to a GPU: a copy takes as long as many scans."""

_PIECE = 2**30  # numbers in one piece of memory: 2 GiB, which are copied as it grows
_SCRATCH = 3 * 2**30  # bytes to work with: the scores of some queries, and what FAISS takes
_PRODUCTS = 2**28  # scores at a time: 1 GiB
_MOST = 2048  # candidates that FAISS gives on a GPU
_AGAIN = 2**14  # queries after which a GPU that had no room, or failed, is tried again
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


@dataclass(frozen=True)
class Weighed:
    """What the scores of vectors on a device are multiplied by, and how long the vectors are."""

    weights: Tensor | None  # [n] float32; None: all are 1
    lengths: Tensor  # [n] float32, times the weights; rounded up
    longest: float  # of these


class Rows:
    """Vectors in float16 on a device, under their ids."""

    def __init__(self, dim: int, device: torch.device) -> None:
        """None yet."""
        self._dim = dim
        self._device = device
        self._pieces: list[Tensor] = []  # of memory; the last may have room for more
        self._used = 0  # vectors in the last piece
        self._ids: list[Ids] = [np.empty(0, np.int64)]
        self._lengths: list[Tensor] = []  # of the vectors that came together
        self._n = 0

    @property
    def ids(self) -> Ids:
        """The ids in the order in which they came, [n]."""
        if len(self._ids) > 1:
            self._ids = [np.concatenate(self._ids)]
        return self._ids[0]

    def __len__(self) -> int:
        """Number of vectors."""
        return self._n

    def growth(self) -> int:
        """Bytes that the next vectors may take beside their own, while a piece grows."""
        room = len(self._pieces[-1]) if self._pieces else 0
        return 2 * min(2 * room * self._dim, _PIECE)

    def add(self, ids: Ids, halves: Halves) -> None:
        """Takes vectors [n, dim]."""
        import torch

        if not self._pieces or (self._used + len(ids)) * self._dim > _PIECE:
            self._pieces = [*self._filled(), self._new(len(ids))]
            self._used = 0
        start, room = self._used, len(self._pieces[-1])
        self._used += len(ids)
        if self._used > room:
            grown = self._new(max(self._used, min(2 * room, _PIECE // self._dim)))
            grown[:start] = self._pieces[-1][:start]
            self._pieces[-1] = grown
        rows = self._pieces[-1][start : self._used]
        rows.copy_(torch.from_numpy(halves))
        self._ids.append(ids)
        self._n += len(ids)
        self._lengths.append(torch.linalg.vector_norm(rows.float(), dim=1))

    def weighed(self, table: Scores | None) -> Weighed:
        """The vectors' weights and weighted lengths.

        `table` has the weight of each id at the place of its number; where it ends, they are 0.
        None: all are 1.
        """
        import torch

        self._lengths = [torch.cat(self._lengths)]
        lengths, weights = self._lengths[0] * (1 + self._dim * 2.0**-23), None
        if table is not None:
            inside = self.ids < len(table)
            found = np.where(inside, table[np.where(inside, self.ids, 0)], np.float32(0))
            weights = torch.from_numpy(found).to(self._device)
            lengths = lengths * weights
        return Weighed(weights, lengths, float(lengths.max()))

    def search(
        self, queries: Scores, k: int, weighed: Weighed, margin: float = 0.0
    ) -> tuple[Scores, Ids, NDArray[np.float64]]:
        """Scores and ids of the k best [q, min(k, n)], best first, and a bound for the others, [q].

        Queries [q, dim] are rounded to float16. To each score `margin` times the weighted length
        of its vector is added, and that is what is best: as high as the score may be in truth.
        FAISS knows no lengths: it takes the greatest for all.
        """
        import torch

        k, pieces = min(k, len(self)), self._filled()
        asked = torch.from_numpy(queries).to(self._device).half()
        if len(queries) >= MANY and weighed.weights is None and _faiss_can(self._device):
            scores, places = _faiss_best(pieces, asked, k)
            scores += np.float32(margin * weighed.longest)
        else:
            step = max(1, _PRODUCTS // len(self))

            def ranked(some: Tensor) -> Any:
                scores = torch.cat([_products(some, piece) for piece in pieces], 1)
                if weighed.weights is not None:
                    scores *= weighed.weights
                return scores.add_(weighed.lengths, alpha=margin).topk(k)

            found = [ranked(asked[i : i + step]) for i in range(0, len(asked), step)]
            scores = torch.cat([best.values for best in found]).cpu().numpy()
            places = torch.cat([best.indices for best in found]).cpu().numpy()
        others = scores[:, -1] if k < len(self) else np.full(len(queries), -np.inf)
        if not np.isfinite(weighed.longest):  # what cannot be compared bounds nothing
            others = np.full(len(queries), np.nan)
        return scores, np.where(places < 0, -1, self.ids[places]), others.astype(np.float64)

    def _new(self, n: int) -> Tensor:
        import torch

        return torch.empty(n, self._dim, dtype=torch.float16, device=self._device)

    def _filled(self) -> list[Tensor]:
        """The pieces, the last without the room that is left."""
        return [*self._pieces[:-1], *(piece[: self._used] for piece in self._pieces[-1:])]


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


def _faiss_best(pieces: Sequence[Tensor], queries: Tensor, k: int) -> tuple[Scores, Ids]:
    """Scores and places of the k best [q, k], best first, by FAISS, of vectors in torch's memory.

    The place of what FAISS does not find is -1.
    """
    import torch

    lib, start = faiss(), 0
    best = lib.ResultHeap(len(queries), k, keep_max=True)
    torch.cuda.synchronize(queries.device)  # FAISS works in a stream of its own
    for rows in pieces:
        most = min(k, len(rows))
        scores = np.empty((len(queries), most), np.float32)
        places = np.empty((len(queries), most), np.int64)
        asked = lib.GpuDistanceParams()
        asked.metric, asked.k, asked.dims = lib.METRIC_INNER_PRODUCT, most, rows.shape[1]
        asked.vectors, asked.numVectors = lib.cast_integer_to_void_ptr(rows.data_ptr()), len(rows)
        asked.queries = lib.cast_integer_to_void_ptr(queries.data_ptr())
        asked.numQueries = len(queries)
        asked.vectorType = asked.queryType = lib.DistanceDataType_F16
        asked.outDistances, asked.outIndices = lib.swig_ptr(scores), lib.swig_ptr(places)
        asked.outIndicesType, asked.device = lib.IndicesDataType_I64, rows.device.index
        lib.bfKnn(_resources(rows.device), asked)
        best.add_result(scores, np.where(places < 0, -1, places + start))
        start += len(rows)
    best.finalize()
    return best.D, best.I


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
        self._rows: list[Rows] = []  # on each device
        self._covered: Ids | None = None  # all of these are on the devices
        self._asked = 0
        self._weighed: tuple[Scores | None, Ids, list[Weighed]] | None = None  # the last

    def propose(
        self,
        queries: Scores,
        m: int,
        wanted: Ids,
        live: Ids,
        blocks: Blocks,
        table: Scores | None = None,
    ) -> Proposal | None:
        """The best of `wanted` for each query by approximate scores, [q, m or more], and a bound.

        -1 stands where fewer were found. No other vector of `wanted` has a score above the bound
        [q], as with `many.propose`. What is missing on the devices is copied first.

        None if that does not pay yet, or they cannot give so many; also if there is no room, or a
        device fails, which is logged; it is tried again when many more queries were asked.

        Args:
            queries: [q, dim] float32.
            m: candidates.
            wanted: ids that may be an answer, ascending, m or more.
            live: all that may ever be, ascending.
            blocks: yields some ids and their vectors [n, dim].
            table: the weight of each id, at the place of its number; the same array each time,
                or they are copied again.
        """
        with _alone:
            self._asked += len(queries)
            if self._asked < WORTH or m > _MOST:
                return None
            if self._devices is None:
                self._devices = self._find()
                self._rows = [device.new_rows(self._dim) for device in self._devices]
            if not self._devices:
                return None
            try:
                if live is not self._covered:
                    self._cover(self._devices, live, blocks)
                return self._best(queries, m, wanted, table)
            except (MemoryError, RuntimeError) as error:  # raised where CUDA fails, too
                reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
                log.warning("searching on the CPU: the GPUs cannot be used: %s", reason)
                self._devices, self._rows, self._covered = None, [], None
                self._weighed, self._asked = None, WORTH - _AGAIN
                return None

    def _cover(self, devices: Sequence[Device], live: Ids, blocks: Blocks) -> None:
        """Copies to the devices what is not there yet."""
        there = np.concatenate([rows.ids for rows in self._rows])
        missing = live[np.isin(live, there, assume_unique=True, invert=True)]
        if sum(map(len, self._rows)) > 2 * len(live):  # most of it was removed
            self._rows, missing = [device.new_rows(self._dim) for device in devices], live
        share = 2 * self._dim * -(-len(missing) // len(devices))
        scratch = 0 if any(map(len, self._rows)) else _SCRATCH
        for device, rows in zip(devices, self._rows, strict=True) if len(missing) else ():
            needed = share + max(min(share, 2 * _PIECE), rows.growth()) + scratch
            if (free := device.free()) < needed:
                raise MemoryError(f"{needed:,} bytes of memory are needed, {free:,} are free")
        for ids, halves in blocks(missing):
            min(self._rows, key=len).add(ids, halves)
        self._covered = live

    def _best(self, queries: Scores, m: int, wanted: Ids, table: Scores | None) -> Proposal:
        lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
        # In float16, numbers beyond 65,504 would be infinite, and small ones nothing.
        units = (queries / np.maximum(lengths, 1e-300)[:, None]).astype(np.float32)
        full = [rows for rows in self._rows if len(rows)]
        fetched = min(_MOST, int(1.25 * m * sum(map(len, full)) / len(wanted)) + 16)
        # Half a step of float16, what that leaves of the smallest numbers, and tensor cores,
        # which cut off what they add up where a CPU rounds.
        rounding = 2.0**-11 + self._dim**0.5 * 2.0**-25 + self._dim * 2.0**-22
        margin = relative_slack(self._dim, rounding)

        def search(rows: Rows, weighed: Weighed) -> tuple[Scores, Ids, NDArray[np.float64]]:
            return rows.search(units, fetched, weighed, margin)

        all_weighed = self._all_weighed(full, table)
        if len(full) == 1:
            found = [search(full[0], all_weighed[0])]
        else:
            with ThreadPoolExecutor(len(full)) as pool:
                found = list(pool.map(search, full, all_weighed))
        scores = np.concatenate([scores for scores, _, _ in found], axis=1)
        ids = np.concatenate([ids for _, ids, _ in found], axis=1)
        others = np.max([bound for _, _, bound in found], axis=0)
        none = wanted[np.minimum(np.searchsorted(wanted, ids), len(wanted) - 1)] != ids
        scores[none], ids[none] = -np.inf, -1
        # What was found is kept: with each that is left out, the bound for the others would rise.
        kept = max(m, min(fetched, int((~none).sum(axis=1).max())))
        if scores.shape[1] > kept:
            order = np.argpartition(-scores, kept, axis=1)
            others = np.maximum(others, np.take_along_axis(scores, order[:, kept:], 1).max(axis=1))
            ids = np.take_along_axis(ids, order[:, :kept], 1)
        # Also what float32 takes off in the scores above, and in adding the margin.
        return ids, others * lengths + 2.0**-22 * np.abs(others) * lengths + underflow(self._dim)

    def _all_weighed(self, full: Sequence[Rows], table: Scores | None) -> list[Weighed]:
        """What the vectors on each device weigh."""
        assert self._covered is not None
        kept = self._weighed
        if kept is None or kept[0] is not table or kept[1] is not self._covered:
            kept = table, self._covered, [rows.weighed(table) for rows in full]
            self._weighed = kept
        return kept[2]

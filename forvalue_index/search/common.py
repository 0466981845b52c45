"""What searches share: names of types, selections of ids, the best of several lists, threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from forvalue_index.search.backend import faiss

Scores = NDArray[np.float32]
Ids = NDArray[np.int64]
T = TypeVar("T")
S = TypeVar("S")


def bits_of(ids: Ids) -> NDArray[np.bool_]:
    """Returns whether each number is among `ids` (ascending), up to their last."""
    bits = np.zeros(int(ids[-1]) + 1 if len(ids) else 0, bool)
    bits[ids] = True
    return bits


def selector_of(bits: NDArray[np.bool_]) -> Any:
    """Returns FAISS's selector of the ids whose bit is set."""
    return faiss().IDSelectorBitmap(np.packbits(bits, bitorder="little"))


def best_of(scores: list[Scores], ids: list[Ids], k: int) -> tuple[Scores, Ids]:
    """Returns the k highest of scores [..., m] and their ids; of equal ones the smaller ids."""
    every_score, every_id = np.concatenate(scores, axis=-1), np.concatenate(ids, axis=-1)
    order = np.lexsort((every_id, -every_score), axis=-1)[..., :k]
    return np.take_along_axis(every_score, order, -1), np.take_along_axis(every_id, order, -1)


def on_all_cores(function: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """Returns `function` of each item, computed on all cores; FAISS uses one core in each call."""
    if len(items) < 2:
        return [function(item) for item in items]
    return list(_threads(faiss().omp_get_max_threads()).map(function, items))


@cache
def _threads(cores: int) -> ThreadPoolExecutor:
    """Threads that stay: starting them costs a pass over 10,000 vectors."""
    one = faiss().omp_set_num_threads  # of the calling thread only
    return ThreadPoolExecutor(cores, initializer=one, initargs=(1,))


os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of the threads

"""What searches share: names of types, selections of ids, and the best of several lists."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.search.backend import faiss

Scores = NDArray[np.float32]
Ids = NDArray[np.int64]


def bits_of(ids: Ids) -> NDArray[np.bool_]:
    """Whether a number is among `ids` (ascending), up to their last."""
    bits = np.zeros(int(ids[-1]) + 1 if len(ids) else 0, bool)
    bits[ids] = True
    return bits


def selector_of(bits: NDArray[np.bool_]) -> Any:
    """FAISS's selector of the ids whose bit is set."""
    return faiss().IDSelectorBitmap(np.packbits(bits, bitorder="little"))


def best_of(scores: list[Scores], ids: list[Ids], k: int) -> tuple[Scores, Ids]:
    """The k highest of lists of scores [..., m] and ids; of equal scores the smaller ids."""
    every_score, every_id = np.concatenate(scores, axis=-1), np.concatenate(ids, axis=-1)
    order = np.lexsort((every_id, -every_score), axis=-1)[..., :k]
    return np.take_along_axis(every_score, order, -1), np.take_along_axis(every_id, order, -1)

"""What a search reads of all vectors of a segment: figures, and the highest bits of the codes.

It is a quarter of the segment, and mapped like it. Derived: the figures are those of the rows, the
bits those of the vectors (`first_pass.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.records import Segment
from forvalue_index.search.common import Ids
from forvalue_index.search.parts import parts_file, read_parts, write_parts
from forvalue_index.vectors.codes import Bytes

SUFFIX = ".side"

_KINDS = "<i8", "<i8", "<f8", "<f8", "u1"

Lineage = dict[str, tuple[str, int, int]]
"""Name of a segment that was joined into another -> its sha256, first and last id."""


@dataclass(frozen=True, slots=True)
class Side:
    """Figures and bits of the n vectors of a segment, those that were removed among them."""

    ids: Ids  # [n], ascending
    n_scored: NDArray[np.int64]  # [n]
    loss: NDArray[np.float64]  # [n] nats
    norm: NDArray[np.float64]  # [n]
    rows: Bytes  # [n, size]; `Codes.first_pass`
    lineage: Lineage

    def write(self, folder: Path, segment: Segment) -> os.stat_result:
        """Keeps them beside the derived indexes.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        arrays = self.ids, self.n_scored, self.loss, self.norm, self.rows
        path = parts_file(folder, segment, SUFFIX)
        return write_parts(path, segment, arrays, _KINDS, lineage=self.lineage)

    @classmethod
    def read(cls, folder: Path, segment: Segment, *, known: bool = False) -> Side | None:
        """Returns what is kept of a segment; None: nothing, or nothing that can be believed."""
        found = read_parts(parts_file(folder, segment, SUFFIX), segment, _KINDS, known=known)
        if found is None:
            return None
        (ids, n_scored, loss, norm, rows), head = found
        n = segment.ntotal
        if not len(ids) == len(n_scored) == len(loss) == len(norm) == n or rows.size % max(1, n):
            return None
        return cls(ids, n_scored, loss, norm, rows.reshape(n, -1), _lineage(head))

    @classmethod
    def joined(cls, parts: Sequence[tuple[Segment, Side]]) -> Side:
        """Returns that of one segment that has the vectors of several, in their order."""
        lineage: Lineage = {}
        for segment, side in parts:
            lineage |= side.lineage
            lineage[segment.name] = segment.sha256, int(side.ids[0]), int(side.ids[-1])
        sides = [side for _, side in parts]
        return cls(
            np.concatenate([side.ids for side in sides]),
            np.concatenate([side.n_scored for side in sides]),
            np.concatenate([side.loss for side in sides]),
            np.concatenate([side.norm for side in sides]),
            np.concatenate([side.rows for side in sides]),
            lineage,
        )


def _lineage(head: dict[str, Any]) -> Lineage:
    found = head.get("lineage")
    if not isinstance(found, dict):
        return {}
    return {
        name: (str(sha256), int(first), int(last)) for name, (sha256, first, last) in found.items()
    }

"""The states of samples, segment by segment, and their cosines with those of queries.

A state is the mean of the states that predict a sample's scored tokens, whitened
(`vectors/whitening.py`), a byte a number: a sixth or so beside a vector. Only cosines are asked
for, so that each is stored as long as its bytes allow. Unlike what else is kept beside segments,
states cannot be made again from rows and vectors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forvalue_index.records import Segment
from forvalue_index.search.common import Ids
from forvalue_index.search.parts import parts_file, read_parts, write_parts
from forvalue_index.search.stored import among

SUFFIX = ".states"
LARGEST = 127
BLOCK = 4096  # states that are in float32 at a time

StateCodes = NDArray[np.int8]

_KINDS = "<i8", "i1"


def state_codes(states: NDArray[np.float32]) -> StateCodes:
    """Returns states [n, m] as bytes, the largest number of each as LARGEST."""
    most = np.maximum(np.abs(states).max(axis=1, keepdims=True), 1e-30)
    codes: StateCodes = np.rint(states * (LARGEST / most)).astype(np.int8)
    return codes


@dataclass(frozen=True, slots=True)
class States:
    """The states of the n vectors of a segment, those that were removed among them."""

    ids: Ids  # [n], ascending
    codes: StateCodes  # [n, m]

    def write(self, folder: Path, segment: Segment) -> os.stat_result:
        """Keeps them beside the derived indexes.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        path = parts_file(folder, segment, SUFFIX)
        return write_parts(path, segment, (self.ids, self.codes), _KINDS)

    @classmethod
    def read(cls, folder: Path, segment: Segment, *, known: bool = False) -> States | None:
        """Returns what is kept of a segment; None: nothing, or nothing that can be believed."""
        read = read_parts(parts_file(folder, segment, SUFFIX), segment, _KINDS, known=known)
        if read is None:
            return None
        ids, codes = read[0]
        n = segment.ntotal
        if len(ids) != n or not codes.size or codes.size % n:
            return None
        found = cls(ids, codes.reshape(n, -1))
        return found if known or bool((ids[1:] > ids[:-1]).all()) else None


class StateSearch:
    """The states of the live samples of an index. Safe to use from many threads."""

    def __init__(self, segments: Sequence[States], live: Ids) -> None:
        """Takes the states of all segments, of one width, and the live ids, ascending [n]."""
        self.segments = segments
        self.ids = live
        self.dim = segments[0].codes.shape[1]

    def cosines(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the cosines of all live samples with the states of queries [q, m], [q, n]."""
        asked, lengths = _numbers(state_codes(queries))
        scores = np.zeros((len(queries), len(self.ids)), np.float32)
        for own in self.segments:
            for start in range(0, len(own.ids), BLOCK):
                part = slice(start, start + BLOCK)
                live = among(own.ids[part], self.ids)
                rows, sizes = _numbers(own.codes[part][live])
                places = np.searchsorted(self.ids, own.ids[part][live])
                scores[:, places] = asked @ rows.T / lengths[:, None] / sizes
        return scores

    def codes(self, ids: Ids) -> StateCodes:
        """Returns the states of live samples, ids ascending, [k, m]."""
        codes = np.zeros((len(ids), self.dim), np.int8)
        for own in self.segments:
            there = among(ids, own.ids)
            codes[there] = own.codes[np.searchsorted(own.ids, ids[there])]
        return codes


def _numbers(codes: StateCodes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns bytes [n, m] as numbers, and their lengths [n].

    Inner products of up to a thousand of them are exact in float32, in whatever order they are
    added up: scores do not depend on which rows are read together.
    """
    numbers = codes.astype(np.float32)
    lengths = np.sqrt(np.maximum(np.square(numbers).sum(axis=1), 1))
    return numbers, lengths

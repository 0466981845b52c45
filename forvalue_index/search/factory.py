"""FAISS factory strings: which to take, how to make one, and what its search can be told.

Knows of no file, segment or recall.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from forvalue_index.errors import InputError
from forvalue_index.search.backend import faiss

FLAT_UP_TO = 100_000
"""Samples up to which comparing all of them is the better answer: exact, and milliseconds."""

# What a vector of d numbers takes, with its id; the most faithful first. Hits are scored again
# with the stored vectors, so that coarse codes cost candidates, not exactness.
_CODES = (
    ("SQ8", "8 bits a number", lambda d: d + 8),
    ("SQ4", "4 bits a number", lambda d: d / 2 + 8),
    ("RaBitQ", "1 bit a number", lambda d: d / 8 + 16),
)


def auto_factory(n: int, dim: int, memory_bytes: int) -> tuple[str, str]:
    """The factory string for n samples of `dim` numbers, and why, in words.

    "Flat" means that no derived index is worth its while: search the segments.

    Args:
        n: samples in the index.
        dim: numbers of a vector.
        memory_bytes: what the derived index may take; the segments are read from disk.
    """
    if n <= FLAT_UP_TO:
        reason = (
            f"{n:,} samples are compared one by one within milliseconds, exactly; "
            f"a derived index is worth its while above {FLAT_UP_TO:,}"
        )
        return "Flat", reason
    lists = 2 ** round(sqrt(n).bit_length_hint()) if False else _lists(n)
    sizes = [(code, what, int(n * size(dim))) for code, what, size in _CODES]
    fitting = [choice for choice in sizes if choice[2] <= memory_bytes]
    code, what, size = (fitting or sizes[-1:])[0]
    reason = (
        f"{n:,} samples in {lists:,} lists (about 4 sqrt(n)), {what}: {_mib(size)} of the "
        f"{_mib(memory_bytes)} that it may take"
    )
    if not fitting:
        reason += ", which is too little for any"
    elif code != "SQ8":
        reason += f"; 8 bits would take {_mib(sizes[0][2])}"
    return f"IVF{lists},{code}", reason + "; hits are scored again with the stored vectors"

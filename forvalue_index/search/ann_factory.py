"""FAISS factory strings: which to take, how to make one, and what its search can be told.

Knows of no file, segment or recall.
"""

from __future__ import annotations

from math import log2
from typing import Any

from forvalue_index.errors import InputError
from forvalue_index.search.backend import faiss

FLAT_UP_TO = 100_000
"""Samples up to which comparing all of them is the better answer: exact, within milliseconds."""

# The codes of a vector, the most faithful first: the parts of the factory string before and after
# the lists, a description, bytes of a number, bytes besides (the id and corrections).
_CODES = (
    ("", "SQ8", "8 bits a number", 1.0, 8),
    ("", "SQ4", "4 bits a number", 0.5, 8),
    ("RR{dim},", "RaBitQ2", "2 bits a number after a random rotation", 0.25, 28),
    # So coarse that opponents, whose scores lie closer together, are often left to flat search.
    ("RR{dim},", "RaBitQ", "1 bit a number after a random rotation", 0.125, 16),
)


def auto_factory(n: int, dim: int, memory_bytes: int) -> tuple[str, str]:
    """Returns the factory string for n samples of `dim` numbers, and the reason in words.

    "Flat" means that a derived index does not pay: search the segments.

    Args:
        n: samples in the index.
        dim: numbers of a vector.
        memory_bytes: what the derived index may take. Segments are mapped and do not count.
    """
    if n <= FLAT_UP_TO:
        return "Flat", (
            f"{n:,} samples can all be compared, exactly, within milliseconds; "
            f"a derived index pays off above {FLAT_UP_TO:,}"
        )
    lists = 2 ** round(log2(4 * n**0.5))
    sizes = [int(n * (dim * number + rest)) for *_, number, rest in _CODES]
    fitting = [i for i, size in enumerate(sizes) if size <= memory_bytes]
    choice = fitting[0] if fitting else len(_CODES) - 1
    before, code, words, *_ = _CODES[choice]
    reason = (
        f"{n:,} samples go into {lists:,} lists (about 4 times their square root), as codes of "
        f"{words}: {_mib(sizes[choice])} of the {_mib(memory_bytes)} available"
    )
    if not fitting:
        reason += ", which is too little, but there are no smaller codes"
    elif choice:
        reason += f"; 8 bits would take {_mib(sizes[0])}"
    reason += ". Hits are scored again with the stored vectors"
    return f"{before.format(dim=dim)}IVF{lists},{code}", reason


def new_index(dim: int, factory: str, seed: int) -> Any:
    """Returns an empty, untrained FAISS index of inner products that keeps ids.

    Raises:
        InputError: FAISS does not know the factory string, or cannot make it of `dim` numbers.
    """
    lib = faiss()
    try:
        index = lib.index_factory(dim, factory, lib.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InputError(
            f"FAISS cannot make {factory!r} of {dim} numbers ({_reason(error)}): "
            'use another factory string, such as "IVF1024,SQ8", or none'
        ) from error
    lists = lib.try_extract_index_ivf(index)
    if lists is not None:
        lists.cp.seed = seed
        lists.cp.min_points_per_centroid = 1  # or it writes a warning to stderr
    elif not isinstance(index, lib.IndexIDMap):
        index = lib.IndexIDMap(index)
    return index


def train(index: Any, vectors: Any, factory: str) -> None:
    """Trains the index, and checks that its search can leave samples out.

    Raises:
        InputError: too few vectors, or a kind of index whose search takes no selector.
    """
    lib = faiss()
    try:
        index.train(vectors)
    except RuntimeError as error:
        raise InputError(
            f"{factory!r} cannot be trained on {len(vectors)} vectors ({_reason(error)}): "
            "use fewer lists, or Flat"
        ) from error
    try:
        none = lib.IDSelectorBatch([0])
        index.search(vectors[:1], 1, params=Effort(index).parameters(1, none))
    except RuntimeError as error:
        raise InputError(
            f"{factory!r} cannot leave removed samples out of its answers ({_reason(error)}): "
            "put lists around it, as in IVF1024,PQ64"
        ) from error


class Effort:
    """How much of an index is searched for a query: nprobe of lists, efSearch of a graph."""

    def __init__(self, index: Any) -> None:
        lib = faiss()
        self._lists = lib.try_extract_index_ivf(index)
        inner = index
        while isinstance(inner, lib.IndexIDMap | lib.IndexPreTransform):
            inner = lib.downcast_index(inner.index)
        self._graph = isinstance(inner, lib.IndexHNSW)
        self.name = "nprobe" if self._lists is not None else "efSearch" if self._graph else None

    def most(self, ntotal: int) -> int:
        """Returns the effort above which it is better to compare all vectors."""
        if self._lists is not None:
            return int(self._lists.nlist)
        return max(16, min(ntotal // 8, 4096)) if self._graph else 1

    def parameters(self, effort: int, selector: Any = None) -> Any:
        """FAISS's SearchParameters, for one call: some kinds of index write into them."""
        lib = faiss()
        if self._lists is not None:
            return lib.SearchParametersIVF(nprobe=effort, sel=selector)
        if self._graph:
            return lib.SearchParametersHNSW(efSearch=effort, sel=selector)
        return lib.SearchParameters(sel=selector)


def _reason(error: RuntimeError) -> str:
    # "Error in ... at FILE:LINE: what": the last line, from where it stops being a place.
    return str(error).strip().splitlines()[-1].rpartition(": ")[2][:200]


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"

"""An approximate FAISS index over all segments, for where comparing every vector takes too long.

It is derived: it can be made again from the segments without a forward pass, and deleting it loses
nothing. It only proposes candidates; every score is that of the stored vectors, to the bit. What
it does not cover (newer segments) is compared one by one, what was removed is left out inside
FAISS. Knows nothing of rows, keys or models. `making.py` makes it.

    derived/NAME.json                what it is, and the name of its file; this is what counts
    derived/NAME-SHA256.faiss        the FAISS index: samples under their ids
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import ceil, log10
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forvalue_index.errors import CorruptIndexError, IndexMissingError, InputError, brief
from forvalue_index.metric import DERIVED
from forvalue_index.search.ann_factory import Effort
from forvalue_index.search.backend import faiss, read_index
from forvalue_index.search.checked import CheckedFiles, state_of
from forvalue_index.search.common import Ids, Scores, best_of, bits_of, selector_of
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.segment import SUFFIX, write_index
from forvalue_index.system.files import atomic_write, open_own, path_in

_NEXT = "make it again with `forvalue optimize`, or search without it (--flat)"


@dataclass(frozen=True, slots=True)
class Side:
    """How proponents, or opponents, are searched, and what was measured with it.

    Recall is the mean share of the exact top that is found, over `DerivedInfo.queries` queries.
    """

    effort: int  # nprobe or efSearch, of up to 10 hits
    effort_at_100: int  # of 100 hits; between and beyond, the power law through the two
    recall_at_10: float
    recall_at_100: float
    queries_per_second: float  # one at a time
    flat_queries_per_second: float
    flat: bool = False  # its recall is too low: all vectors are compared instead


@dataclass(frozen=True, slots=True)
class DerivedInfo:
    """What a derived index is, as its JSON file keeps it."""

    name: str
    factory: str
    metric: str  # what its weights make: "dot", "cosine", "per-token"
    file: str
    bytes: int
    sha256: str
    dim: int
    ntotal: int  # vectors in the file
    segments: dict[str, str]  # name -> sha256 of those it covers
    generation: int  # of the catalogue, when it was made or extended
    scale: float  # vectors were multiplied by it
    seed: int
    measured_on: int  # vectors in it when recall was measured
    queries: int
    target: float  # the recall@10 that was wanted
    k_factor: int  # candidates per hit that are scored again
    proponents: Side
    opponents: Side

    @property
    def bytes_per_vector(self) -> float:
        """Bytes of the file for each vector in it."""
        return self.bytes / self.ntotal

    @property
    def notes(self) -> list[str]:
        """What a person should know of how well it searches, a line each; nothing if well."""
        notes = []
        for what, side in (("proponents", self.proponents), ("opponents", self.opponents)):
            if side.recall_at_10 < self.target:
                notes.append(
                    f"{self.factory} finds {side.recall_at_10:.3f} of the top 10 {what}, but "
                    f"{self.target} was wanted: "
                    + ("all vectors are compared instead" if side.flat else "it can do no better")
                )
        return notes

    def path_in(self, folder: str | Path) -> Path:
        """The path of its file.

        Raises:
            CorruptIndexError: it is not a file of the folder's own.
        """
        return path_in(folder, self.file, SUFFIX)

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> DerivedInfo:
        """What `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        sides = {side: Side(**value[side]) for side in ("proponents", "opponents")}
        info = cls(**(value | sides))
        for made in (info, info.proponents, info.opponents):
            _check_fields(made)
        if Path(info.file).name != info.file or not info.file.endswith(SUFFIX):
            raise ValueError(f"file is {info.file!r}, but must be a name that ends in {SUFFIX}")
        if not all(isinstance(text, str) for pair in info.segments.items() for text in pair):
            raise ValueError("segments must be names with their sha256")
        return info


_LEAST = {"effort": 1, "effort_at_100": 1, "k_factor": 1, "dim": 1, "ntotal": 1, "scale": 1e-38}
"""The least of a number, where it is not 0."""


def _check_fields(made: DerivedInfo | Side) -> None:
    """Makes sure that all fields are of their types, and all numbers finite and large enough.

    Raises:
        ValueError: one is not; the message names it.
    """
    kinds: dict[str, type] = get_type_hints(type(made))
    for name, kind in kinds.items():
        value = getattr(made, name)
        kind = get_origin(kind) or kind
        if isinstance(value, bool) != (kind is bool) or not isinstance(
            value, (int, float) if kind is float else kind
        ):
            raise ValueError(f"{name} is {value!r:.100}, but must be of type {kind.__name__}")
        least = _LEAST.get(name, 0)
        if isinstance(value, int | float) and not least <= value < 2**63:
            raise ValueError(f"{name} is {value!r:.100}, but must be {least} or more")


class DerivedSearch:
    """Search with a derived index, with the guarantees of `FlatSearch`, but for recall."""

    def __init__(
        self, info: DerivedInfo, index: Any, flat: FlatSearch, weights: ArrayLike | None = None
    ) -> None:
        """`open_derived` is the way to get one.

        Args:
            info: what `index` is.
            index: the FAISS index.
            flat: the segments, as they are now.
            weights: those of the metric it was made for, one for each of `flat.ids`.
        """
        self.info = info
        self._index = index
        self._flat = flat
        self._weights = None if weights is None else np.asarray(weights, np.float32)
        self._effort = Effort(index)
        self._covered = flat.ids_in(info.segments)
        newer = {segment.name for segment in flat.segments} - set(info.segments)
        self._newer = flat.ids_in(newer)
        self._live = None  # the selector of what it covers, if that is not all it holds
        if len(self._covered) < info.ntotal:
            self._live = selector_of(bits_of(self._covered))

    @property
    def ntotal(self) -> int:
        """Number of vectors that can be an answer."""
        return self._flat.ntotal

    @property
    def uncovered(self) -> float:
        """Share of the live vectors that are newer than the index, and compared one by one."""
        return len(self._newer) / max(1, self.ntotal)

    def search(
        self,
        queries: Scores,
        k: int,
        *,
        opponents: bool = False,
        allowed: ArrayLike | None = None,
    ) -> tuple[Scores, Ids]:
        """As `FlatSearch.search`: exactly min(k, live) hits, with exact scores, in their order.

        Not every one of the exact top k is found; `info` has the share. Where the index can give
        fewer than k, or would look at most of it, as with a filter that leaves little, all vectors
        are compared.
        """
        side = self.info.opponents if opponents else self.info.proponents
        covered, newer, selector = self._covered, self._newer, self._live
        if allowed is not None:
            wanted = self._flat.live(allowed)
            covered = np.intersect1d(covered, wanted, assume_unique=True)
            newer = np.intersect1d(newer, wanted, assume_unique=True)
            selector = selector_of(bits_of(covered))
        effort = self.needed(side, k, len(covered))
        if effort is None or side.flat or k < 1 or not len(queries):
            return self._flat.search(
                queries, k, opponents=opponents, allowed=allowed, weights=self._weights
            )
        asked = -self._flat.checked(queries) if opponents else self._flat.checked(queries)
        ids = self.candidates(asked, k * self.info.k_factor, effort, selector)
        scores = self.scored(asked, ids)
        if len(newer):
            more_scores, more_ids = self._flat.search(
                asked, k, allowed=newer, weights=self._weights
            )
            scores = np.concatenate([scores, more_scores], axis=1)
            ids = np.concatenate([ids, more_ids], axis=1)
        k = min(k, len(covered) + len(newer))
        scores, ids = best_of([scores], [ids], k)
        short = (ids < 0).any(axis=1) if ids.shape[1] == k else np.ones(len(ids), bool)
        if short.any():
            if ids.shape[1] < k:
                scores, ids = np.empty((len(ids), k), np.float32), np.empty((len(ids), k), np.int64)
            scores[short], ids[short] = self._flat.search(
                asked[short], k, allowed=allowed, weights=self._weights
            )
        return (-scores if opponents else scores), ids

    def candidates(self, queries: Scores, m: int, effort: int, selector: Any = None) -> Ids:
        """Ids of what FAISS proposes by its codes, [q, m], best first; -1 where it has no more."""
        m = min(m, self.info.ntotal)
        parameters = self._effort.parameters(effort, selector)
        return np.asarray(self._index.search(queries, m, params=parameters)[1])

    def scored(self, queries: Scores, ids: Ids) -> Scores:
        """The exact scores of candidates [q, m]; minus infinity where there is none."""
        none = ids < 0
        scores = self._flat.scores_of(
            queries, np.where(none, self._covered[0], ids), weights=self._weights
        )
        scores[none] = -np.inf
        return scores

    def needed(self, side: Side, k: int, allowed: int) -> int | None:
        """The effort at which as many allowed vectors are seen as were, when recall was measured,
        and enough for k; None if it is as well to compare all that are allowed."""
        if not allowed:
            return None
        most = self._effort.most(self.info.ntotal)
        growth = log10(side.effort_at_100 / side.effort)
        effort = ceil(side.effort * max(1.0, k / 10) ** growth)
        if self._effort.name == "nprobe":
            # Lists are of about one length: see at least four vectors for each candidate.
            effort = max(effort, -(-4 * k * self.info.k_factor * most // self.info.ntotal))
        elif self._effort.name == "efSearch":
            effort = max(effort, k * self.info.k_factor)
        elif allowed < self.info.ntotal // 4:
            return None
        fewer = max(1.0, self.info.ntotal / allowed)
        # A graph's steps lead through those that are not allowed: measured, it takes more.
        effort = ceil(effort * (fewer**1.5 if self._effort.name == "efSearch" else fewer))
        return effort if effort < most or effort == side.effort else None


def open_derived(
    folder: str | Path,
    flat: FlatSearch,
    name: str = "dot",
    *,
    weights: ArrayLike | None = None,
    checked: CheckedFiles | None = None,
) -> DerivedSearch:
    """The derived index NAME in `folder`, mapped into memory where FAISS can.

    Its file is hashed whole, some 0.5 s per GB: a damaged graph or list could crash FAISS.

    Args:
        folder: INDEX/derived.
        flat: the segments, as they are now.
        name: by convention the metric it is for.
        weights: those of the metric it was made for, one for each of `flat.ids`.
        checked: files that need not be hashed, to which this one is added.

    Raises:
        IndexMissingError: there is none of this name.
        CorruptIndexError: it is damaged, or covers segments that are no longer there.
    """
    info = read_info(folder, name)
    path = info.path_in(folder)
    check_current(info, flat, path)
    index = read_file(path, info, mapped=True, checked=checked)
    return DerivedSearch(info, index, flat, weights)


def check_current(info: DerivedInfo, flat: FlatSearch, path: Path) -> None:
    """Nothing, if all that the derived index covers is in the segments of `flat`.

    Raises:
        CorruptIndexError: it was made from other segments; the message names one.
    """
    found = {segment.name: segment.sha256 for segment in flat.segments}
    for name, sha256 in info.segments.items():
        if found.get(name) != sha256:
            what = "has changed since" if name in found else "no longer exists"
            raise CorruptIndexError(
                f"{path} is out of date: it was made from segment {name}, which {what}; {_NEXT}"
            )
    covered = len(flat.ids_in(info.segments))
    if info.dim != flat.dim or info.ntotal < covered:
        raise CorruptIndexError(
            f"{path} holds {info.ntotal} vectors of {info.dim} numbers, but its segments hold "
            f"{covered} of {flat.dim}: {_NEXT}"
        )


def read_file(
    path: Path, info: DerivedInfo, *, mapped: bool, checked: CheckedFiles | None = None
) -> Any:
    """The FAISS index in `path`: mapped to search, or in memory to add to it.

    It is hashed, unless it is among the files in `checked`, to which it is added.

    Raises:
        CorruptIndexError: the file is not the one that `info` describes.
    """
    lib = faiss()
    try:
        with open_own(path) as file:
            found = os.fstat(file.fileno())
            state = {path.name: state_of(info.sha256, found)}
            known = checked is not None and not checked.unknown(state)
            size, sha256 = found.st_size, info.sha256 if known else ""
            if size == info.bytes and not known:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorruptIndexError(f"{path} cannot be read ({error.strerror}): {_NEXT}") from error
    if size != info.bytes or sha256 != info.sha256:
        raise CorruptIndexError(
            f"{path} is damaged: {size} bytes with sha256 {sha256 or '(not taken)'}, but "
            f"{info.bytes} with {info.sha256} were written; {_NEXT}"
        )
    if checked is not None:
        checked.add(state, hashed=not known)
    try:
        index = read_index(path, mapped=mapped)
    except (RuntimeError, MemoryError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise CorruptIndexError(f"{path} cannot be read ({reason}): {_NEXT}") from error
    header = index.ntotal, index.d, index.metric_type
    if header != (info.ntotal, info.dim, lib.METRIC_INNER_PRODUCT):
        raise CorruptIndexError(f"{path} is not what {info.name}.json says: {_NEXT}")
    return index


def read_info(folder: str | Path, name: str) -> DerivedInfo:
    """What the derived index NAME in `folder` is; its file is not looked at.

    Raises:
        IndexMissingError: there is none of this name.
        CorruptIndexError: what it is cannot be read.
    """
    path = _sidecar(folder, name)
    try:
        with open_own(path) as file:
            info = DerivedInfo.from_json(json.loads(file.read()))
    except FileNotFoundError:
        raise IndexMissingError(
            f"there is no derived index {name!r} in {folder}: make one with `forvalue optimize`"
        ) from None
    except OSError as error:
        raise CorruptIndexError(f"{path} cannot be read ({error.strerror}): {_NEXT}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{type(error).__name__}: {brief(error)}"
        raise CorruptIndexError(f"{path} is damaged ({reason}): {_NEXT}") from error
    if info.name != name or info.metric not in DERIVED:
        raise CorruptIndexError(
            f"{path} is damaged (name {info.name!r:.100}, metric {info.metric!r:.100}): {_NEXT}"
        )
    return info


def derived_names(folder: str | Path) -> list[str]:
    """The names of the derived indexes in `folder`, which need not exist."""
    files = Path(folder).glob("*.json")
    return sorted(path.stem for path in files if _is_name(path.stem) and path.is_file())


def readable_infos(folder: str | Path) -> list[DerivedInfo]:
    """What is derived in `folder`, without those whose description cannot be read."""
    found = []
    for name in derived_names(folder):
        with suppress(CorruptIndexError):
            found.append(read_info(folder, name))
    return found


def remove_derived(folder: str | Path, name: str) -> None:
    """Deletes the derived index NAME, if there is one, and what was left of earlier ones.

    Only the holder of the writer's lock may.
    """
    _sidecar(folder, name).unlink(missing_ok=True)
    _sweep(Path(folder), name, keep=None)


def write_info(folder: str | Path, info: DerivedInfo) -> None:
    """Makes `info` what counts under its name, safe on disk, and deletes the file before it.

    A reader that has that one open keeps it.
    """
    path = _sidecar(folder, info.name)
    with atomic_write(path, text=True) as file:
        json.dump(info.to_json(), file, indent=1)
    _sweep(path.parent, info.name, keep=info.file)


def write_file(folder: str | Path, name: str, index: Any) -> tuple[str, int, str]:
    """The name, size and sha256 of a new file of the FAISS index, complete and safe on disk.

    It counts once `write_info` has named it.
    """

    def named(sha256: str) -> str:
        return f"{name}-{sha256[:12]}{SUFFIX}"

    size, sha256 = write_index(index, Path(folder), named)
    return named(sha256), size, sha256


def scaled(vectors: Scores, weights: NDArray[np.float32] | None, scale: float) -> Scores:
    """Vectors [m, dim] as they go into the FAISS index."""
    if weights is not None:
        vectors *= weights[:, None]
    vectors *= np.float32(scale)
    return vectors


def _sidecar(folder: str | Path, name: str) -> Path:
    if not _is_name(name):
        raise InputError(f"a derived index cannot be named {name!r}: use letters, digits, - and _")
    return Path(folder) / f"{name}.json"


def _is_name(name: str) -> bool:
    return name.replace("-", "").replace("_", "").isalnum()


def _sweep(folder: Path, name: str, keep: str | None) -> None:
    """Deletes the files under a name, but for one."""
    for path in folder.glob(f"{name}-*{SUFFIX}"):
        # "dot-x" is another name, whose files also begin with "dot-".
        if path.name != keep and len(path.name) == len(f"{name}-{'0' * 12}{SUFFIX}"):
            path.unlink(missing_ok=True)

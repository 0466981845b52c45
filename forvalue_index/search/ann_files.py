"""Files of derived FAISS indexes: what each is, and its name, size and sha256.

derived/NAME.json                what it is, and the name of its file; this is what counts
derived/NAME-SHA256.faiss        the FAISS index: samples under their ids
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from forvalue_index.errors import CorruptIndexError, IndexMissingError, InputError, brief
from forvalue_index.metric import DERIVED
from forvalue_index.search.backend import faiss, read_index
from forvalue_index.search.checked import CheckedFiles, state_of
from forvalue_index.search.segment import SUFFIX, write_index
from forvalue_index.system.files import atomic_write, open_own, path_in

NEXT = "make it again with `forvalue optimize`, or search without it (--flat)"


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
        """Returns the path of its file.

        Raises:
            CorruptIndexError: it is not a file of the folder's own.
        """
        return path_in(folder, self.file, SUFFIX)

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> DerivedInfo:
        """Returns what `to_json` wrote.

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
    """Checks that all fields are of their types, and all numbers finite and large enough.

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


def read_file(
    path: Path, info: DerivedInfo, *, mapped: bool, checked: CheckedFiles | None = None
) -> Any:
    """Returns the FAISS index in `path`: mapped to search, or in memory to add to it.

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
        raise CorruptIndexError(f"{path} cannot be read ({error.strerror}): {NEXT}") from error
    if size != info.bytes or sha256 != info.sha256:
        raise CorruptIndexError(
            f"{path} is damaged: {size} bytes with sha256 {sha256 or '(not taken)'}, but "
            f"{info.bytes} with {info.sha256} were written; {NEXT}"
        )
    if checked is not None:
        checked.add(state, hashed=not known)
    try:
        index = read_index(path, mapped=mapped)
    except (RuntimeError, MemoryError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise CorruptIndexError(f"{path} cannot be read ({reason}): {NEXT}") from error
    header = index.ntotal, index.d, index.metric_type
    if header != (info.ntotal, info.dim, lib.METRIC_INNER_PRODUCT):
        raise CorruptIndexError(f"{path} is not what {info.name}.json says: {NEXT}")
    return index


def read_info(folder: str | Path, name: str) -> DerivedInfo:
    """Returns what the derived index NAME in `folder` is, without reading its file.

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
        raise CorruptIndexError(f"{path} cannot be read ({error.strerror}): {NEXT}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = brief(error)
        raise CorruptIndexError(f"{path} is damaged ({reason}): {NEXT}") from error
    if info.name != name or info.metric not in DERIVED:
        raise CorruptIndexError(
            f"{path} is damaged (name {info.name!r:.100}, metric {info.metric!r:.100}): {NEXT}"
        )
    return info


def derived_names(folder: str | Path) -> list[str]:
    """Returns the names of the derived indexes in `folder`, which need not exist."""
    files = Path(folder).glob("*.json")
    return sorted(path.stem for path in files if _is_name(path.stem) and path.is_file())


def readable_infos(folder: str | Path) -> list[DerivedInfo]:
    """Returns what each derived index in `folder` is, if its description can be read."""
    found = []
    for name in derived_names(folder):
        with suppress(CorruptIndexError):
            found.append(read_info(folder, name))
    return found


def remove_derived(folder: str | Path, name: str) -> None:
    """Deletes the derived index NAME, if there is one, and what was left of earlier ones.

    Only the holder of the writer's lock may call it.
    """
    _sidecar(folder, name).unlink(missing_ok=True)
    _sweep(Path(folder), name, keep=None)


def write_info(folder: str | Path, info: DerivedInfo) -> None:
    """Makes `info` the one that counts under its name, safe on disk; deletes the earlier file.

    A reader that has that one open keeps it.
    """
    path = _sidecar(folder, info.name)
    with atomic_write(path, text=True) as file:
        json.dump(info.to_json(), file, indent=1)
    _sweep(path.parent, info.name, keep=info.file)


def write_file(folder: str | Path, name: str, index: Any) -> tuple[str, int, str]:
    """Writes a FAISS index, safe on disk; returns the new file's name, size and sha256.

    It counts once `write_info` has named it.
    """

    def named(sha256: str) -> str:
        return f"{name}-{sha256[:12]}{SUFFIX}"

    size, sha256 = write_index(index, Path(folder), named)
    return named(sha256), size, sha256


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

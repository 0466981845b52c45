"""FAISS, imported when it is first needed, or an error that says what to install."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from forvalue_index.errors import DependencyError
from forvalue_index.system.files import open_own

INSTALL = "pip install forvalue-index[cpu] (or forvalue-index[gpu] with CUDA)"
DISTRIBUTIONS = "faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cuvs"


@cache
def faiss() -> Any:
    """Returns the module `faiss`.

    Raises:
        DependencyError: it is not installed, cannot be loaded, or is installed twice.
    """
    installed = [name for name in DISTRIBUTIONS if _installed(name)]
    # Both unpack into the same folder, so that half of each is loaded.
    if len(installed) > 1:
        raise DependencyError(
            f"{' and '.join(installed)} are installed together and overwrite each other: "
            f"pip uninstall -y {' '.join(installed)}, then {INSTALL}"
        )
    try:
        return import_module("faiss")
    except (ImportError, RuntimeError) as error:  # faiss-gpu raises both
        reason = error
    try:
        import_module("torch")  # brings CUDA's libraries, which FAISS for GPUs may lack
        return import_module("faiss")
    except (ImportError, RuntimeError):
        raise DependencyError(f"FAISS cannot be loaded ({reason}): {INSTALL}") from reason


def read_index(path: Path, *, mapped: bool) -> Any:
    """Returns the FAISS index in a file: mapped where FAISS can, or in memory.

    A file from somebody else can name another file for its lists, which FAISS would map, and write
    to. With ONDISK_SAME_DIR, both ways of reading fail on such a file.

    Raises:
        RuntimeError: FAISS cannot read it, or it names another file.
        MemoryError: it claims to be larger than the memory.
        OSError: it cannot be read, or is not a regular file.
    """
    lib = faiss()
    if mapped:  # unlike IO_FLAG_MMAP, which is for inverted lists and copies the whole file
        return lib.read_index(str(path), lib.IO_FLAG_MMAP_IFC | lib.IO_FLAG_ONDISK_SAME_DIR)
    with open_own(path) as file:
        return lib.read_index(lib.PyCallbackIOReader(file.read), lib.IO_FLAG_ONDISK_SAME_DIR)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True

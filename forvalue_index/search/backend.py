"""FAISS, imported when it is first needed, or an error that says what to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from forvalue_index.errors import DependencyError

INSTALL = "pip install forvalue-index[cpu] (or forvalue-index[gpu] with CUDA)"
DISTRIBUTIONS = "faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cuvs"


@cache
def faiss() -> Any:
    """The module `faiss`.

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


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS works on the calling thread alone: for small work that threads would only delay."""
    threads = faiss().omp_get_max_threads()
    faiss().omp_set_num_threads(1)  # of the calling thread only
    try:
        yield
    finally:
        faiss().omp_set_num_threads(threads)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True

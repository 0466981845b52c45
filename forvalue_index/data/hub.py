"""Data sets of the `datasets` library: folders, the hub's, and those a program hands over."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forvalue_index.data.arrow import INSTALL, one_line
from forvalue_index.errors import DependencyError, InputError
from forvalue_index.system.files import require_no_special


def load_folder(path: Path, name: str, split: str | None) -> Any:
    """Returns the data set that `save_to_disk` wrote to a folder.

    Raises:
        DependencyError: `datasets` is not installed.
        InputError: the folder holds none, or it has splits and `split` is none of them.
    """
    marks = [path / mark for mark in ("state.json", "dataset_dict.json")]
    if not any(mark.is_file() for mark in marks):
        raise InputError(
            f"{name} is a directory, but not a data set that save_to_disk wrote: "
            f'give its files, such as "{path}/*.parquet"'
        )
    datasets = _require_datasets(name)
    with _loading(name):
        require_no_special(path)
        loaded = datasets.load_from_disk(str(path))
    return choose_split(loaded, name, split)


def load_hub(name: str, subset: str | None, split: str | None) -> Any:
    """Returns a data set of the hub. It is downloaded once, and read from the disk.

    Raises:
        DependencyError: `datasets` is not installed.
        InputError: there is no such data set, subset or split, or several splits to choose from.
    """
    datasets = _require_datasets(name)
    with _loading(name):
        loaded = datasets.load_dataset(name, subset, split=split)
    return loaded if split is not None else choose_split(loaded, name, None)


def choose_split(loaded: Any, name: str, split: str | None) -> Any:
    """Returns a split of what was loaded, which may have none.

    Raises:
        InputError: `split` is not there, or there are several and none was named.
    """
    if not isinstance(loaded, dict):
        if split is not None:
            raise InputError(f"{name} has no splits: leave --split out")
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        missing = "choose one" if split is None else f"{split!r} is not one of them: choose another"
        raise InputError(
            f"{name} has the splits {', '.join(loaded)}; {missing} with --split "
            '(in Python, data["train"] or open_rows(data, split="train"))'
        )
    return loaded[split]


def is_dataset(value: Any) -> bool:
    """Whether a value is of the `datasets` library, which nobody can have unless it is loaded."""
    datasets = sys.modules.get("datasets")
    if datasets is None:
        return False
    kinds = "Dataset", "IterableDataset", "DatasetDict", "IterableDatasetDict"
    return isinstance(value, tuple(getattr(datasets, kind) for kind in kinds))


def _require_datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DependencyError(f"reading {name} needs the package datasets: {INSTALL}") from None
    return datasets


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turns whatever `datasets` raises into this package's words."""
    try:
        yield
    except Exception as error:  # it raises what a server, a file system or a script raised
        said = one_line(error).removesuffix(".")
        raise InputError(
            f"cannot load the data set {name}: {said}; correct its id, --split or "
            "--subset, or see to the network"
        ) from error

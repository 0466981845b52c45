"""A copy of an index for somebody else: what is live at one moment, and nothing that was removed.

The copy is an index of its own, with its rows in SQLite. What is derived of vectors and rows, and
what readers and writers noted on this machine, is not in it; states are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from forvalue_index.config import IndexConfig, ModelConfig
from forvalue_index.errors import IndexMissingError
from forvalue_index.records import StoredSample
from forvalue_index.search.segment import SUFFIX, write_codes
from forvalue_index.store.layout import SEGMENTS, discard, require_empty, storing
from forvalue_index.store.snapshot import Snapshot
from forvalue_index.store.store import Store
from forvalue_index.store.vectoriser import vectoriser_file
from forvalue_index.system.files import atomic_write

SEGMENT_BYTES = 32 * 2**20
"""Of vectors in a file. The files of the first rows stay the same as long as these rows do, so that
what was uploaded once need not be uploaded again."""


def copy(store: Store, directory: Path, *, rows: bool = True, model: str | None = None) -> None:
    """Writes an index to a new directory.

    Args:
        store: of the index, which stays as it is.
        directory: not there yet, or empty.
        rows: without them, a sample is its key, its figures, its vector and its state.
        model: what the copy names its model; default: as the index, but of a path on this machine
            only the last part.

    Raises:
        IndexMissingError: the directory is not empty, or the index is.
        CorruptIndexError: a segment is not what was committed.
        StorageError: the disk is full.
    """
    require_empty(directory)
    if not len(store):
        raise IndexMissingError(f"{store.directory} is empty: add rows with forvalue add")
    config = replace(store.config, model=_elsewhere(store.config.model, model))
    store.answer(lambda snapshot: _write(store, snapshot, directory, config, rows))


def _write(
    store: Store, snapshot: Snapshot, directory: Path, config: IndexConfig, rows: bool
) -> None:
    if directory.exists():  # of a moment that a writer took away meanwhile
        discard(directory, itself=False)
    flat, states, energy = snapshot.flat, snapshot.states, _energy(store, snapshot)
    made = Store.create(directory, config, store.fingerprint)
    try:
        with storing(directory):
            with atomic_write(vectoriser_file(directory, made.catalog)) as file:
                file.write(store.vectoriser_bytes())
            step = max(1, SEGMENT_BYTES // flat.codes.size)
            for start in range(0, len(flat.ids), step):
                ids = flat.ids[start : start + step]
                name = f"{ids[0]:012d}{SUFFIX}"
                segment = write_codes(directory / SEGMENTS, name, ids, flat.data(ids), flat.codes)
                samples = snapshot.samples(ids.tolist()).values()
                kept = [sample if rows else _without_row(sample) for sample in samples]
                if states is not None:
                    made.beside.states.put_codes(segment, ids, states.codes(ids))
                made.catalog.commit_segment(segment, kept, retained_energy=energy)
        made.catalog.vacuum()
    finally:
        made.close()


def _energy(store: Store, snapshot: Snapshot) -> float | None:
    """Returns the mean share of energy that the projection kept; None where there is none."""
    shares = store.catalog.retained_energy()
    known = [(shares.get(part.name), part.ntotal) for part in snapshot.flat.segments]
    pairs = [(share, n) for share, n in known if share is not None]
    return sum(share * n for share, n in pairs) / sum(n for _, n in pairs) if pairs else None


def _without_row(sample: StoredSample) -> StoredSample:
    return replace(sample, row={})


def _elsewhere(model: ModelConfig, name: str | None) -> ModelConfig:
    """Returns what another machine is told of the model: no folder of this one."""
    return replace(
        model,
        name=_shown(model.name) if name is None else name,
        adapters=tuple(map(_shown, model.adapters)),
    )


def _shown(name: str) -> str:
    path = Path(name)
    return path.name if path.is_absolute() or path.exists() else name

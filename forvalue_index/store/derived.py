"""What is derived from the segments, kept up with them: FAISS indexes and the second moment.

All of it can be made again from the segments, so deleting it loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TypeAlias

from forvalue_index.errors import CorruptIndexError, ForvalueError, InputError
from forvalue_index.metric import DERIVED as DERIVED_METRICS
from forvalue_index.metric import METRICS, Metric, metric_of
from forvalue_index.search.ann import open_derived
from forvalue_index.search.ann_build import StageProgress, extend_derived, make_derived
from forvalue_index.search.ann_factory import auto_factory
from forvalue_index.search.ann_files import DerivedInfo, read_info, readable_infos, remove_derived
from forvalue_index.store.layout import DERIVED, storing
from forvalue_index.store.store import Store

Made: TypeAlias = tuple[DerivedInfo | None, str]
"""A derived index, or that there is none, and why."""

UNCOVERED = 0.1
"""Share of the samples that a derived index may lack before `add` extends it."""


def optimize(
    store: Store,
    factory: str | None,
    metric: str | Metric,
    memory: int,
    progress: StageProgress | None,
) -> tuple[DerivedInfo | None, str]:
    """Makes a derived FAISS index over all samples; see `InfluenceIndex.optimize`."""
    metric = metric_of(metric, linear=True)
    if metric.name not in DERIVED_METRICS:
        raise InputError(
            f"metric {metric.name!r} has no derived index of its own: make that for "
            f"{metric.derived}, which also serves {metric.name}"
        )
    reason = "as requested"
    if factory is None:
        factory, reason = auto_factory(len(store), store.dim, memory)
        if factory == "Flat":
            return None, reason
    with store.writer.lock(), storing(store.directory):
        store.snapshots.refresh()
        snapshot = store.snapshots.current
        info = make_derived(
            store.directory / DERIVED,
            snapshot.flat,
            factory,
            name=metric.name,
            metric=metric.name,
            weights=snapshot.weights(metric),
            generation=store.catalog.generation(),
            progress=progress,
        )
        store.snapshots.drop()
        return info, reason


def worst(made: Sequence[Made]) -> Made:
    """Returns the derived index with the least recall, of those that were made of shards."""
    recalls = {
        number: info.proponents.recall_at_10
        for number, (info, _) in enumerate(made)
        if info is not None
    }
    return made[min(recalls, key=recalls.__getitem__, default=0)]


def extend(store: Store) -> None:
    """Adds newer samples to each derived index of which they are over a tenth, untrained.

    The caller holds the writer's lock. One that is damaged or out of date stays as it is.
    """
    folder, checked = store.directory / DERIVED, store.snapshots.derived
    store.snapshots.refresh()
    for info in readable_infos(folder):
        flat = store.snapshots.current.flat
        weights = store.snapshots.current.weights(METRICS[info.metric])
        with suppress(CorruptIndexError):
            found = open_derived(folder, flat, info.name, weights=weights, checked=checked)
            if found.uncovered > UNCOVERED:
                extend_derived(
                    folder,
                    flat,
                    info.name,
                    weights=weights,
                    generation=store.catalog.generation(),
                    checked=checked,
                )


def remake(store: Store, info: DerivedInfo) -> None:
    """Makes a derived index again if it does not fit the segments; removes it if it cannot be.

    The caller holds the writer's lock.
    """
    folder, snapshot = store.directory / DERIVED, store.snapshots.current
    weights = snapshot.weights(METRICS[info.metric])
    try:
        open_derived(folder, snapshot.flat, info.name, weights=weights)
        return
    except ForvalueError:
        remove_derived(folder, info.name)
    try:
        with storing(store.directory):
            make_derived(
                folder,
                snapshot.flat,
                info.factory,
                name=info.name,
                metric=info.metric,
                weights=weights,
                generation=store.catalog.generation(),
                target=info.target,
                seed=info.seed,
            )
    except InputError:  # too few vectors are left for it
        remove_derived(folder, info.name)


def derived_problem(store: Store, name: str) -> str | None:
    """Returns what is wrong with a derived index, whose file is hashed; None if nothing is."""
    folder = store.directory / DERIVED
    try:
        store.snapshots.refresh()
        snapshot = store.snapshots.current
        weights = snapshot.weights(METRICS[read_info(folder, name).metric])
        open_derived(folder, snapshot.flat, name, weights=weights)
    except ForvalueError as error:
        return str(error)
    return None

"""What is wrong with an index, and the repair of what does not count.

Reads everything and changes nothing, but for `repair`, which removes stray files and makes again
what is derived.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from forvalue_index.catalog.lock import may_be_interrupted
from forvalue_index.errors import CorruptIndexError, ForvalueError
from forvalue_index.search.ann_files import derived_names, read_info, remove_derived
from forvalue_index.search.moment import MOMENT
from forvalue_index.search.segment import verify_segment
from forvalue_index.store.derived import derived_problem, remake
from forvalue_index.store.layout import DERIVED, SEGMENTS, storing
from forvalue_index.store.store import Store


def verify(store: Store) -> list[str]:
    """Returns what is wrong with a store, a line each; nothing if all is well.

    Everything is read whole: every segment (hash, vectors, ids against the catalogue), every row
    (checksum), their numbers, the vectoriser, what is derived, and which files count for nothing.
    """
    while True:
        before = _generation(store)
        problems = [*_problems(store), *_stray(store)]
        if not problems or _generation(store) == before:
            return list(dict.fromkeys(problems))


def repair(store: Store) -> list[str]:
    """Removes stray files and makes derived indexes again; returns what was done, a line each.

    What counts is never touched; `verify` says what is still wrong.

    Raises:
        LockedError: another process is writing.
    """
    with store.writer.lock():
        done = [f"removed {path}, which was never committed" for path in store.writer.sweep()]
        folder = store.directory / DERIVED
        for name in derived_names(folder):
            if derived_problem(store, name) is None:
                continue
            try:
                info = read_info(folder, name)
            except CorruptIndexError:
                remove_derived(folder, name)
                done.append(f"removed {folder / name}, which could not be read")
            else:
                remake(store, info)
                done.append(f"rebuilt the derived index {name}")
        for problem in store.part_problems():
            done.append(f"made again: {problem.split(' is ')[0]}")
        with storing(store.directory):
            store.put_missing_parts()
        with suppress(ForvalueError):  # of damaged segments nothing is known
            if store.moments.problem(store.snapshots.current.flat):
                store.moments.drop()
                done.append(f"removed {folder / MOMENT}, which was damaged or out of date")
        return done


def _generation(store: Store) -> int | None:
    """Returns the generation of a store; None if its catalogue cannot be read."""
    try:
        return store.catalog.generation()
    except CorruptIndexError:
        return None


def _problems(store: Store) -> Iterator[str]:
    folder, catalog = store.directory / SEGMENTS, store.catalog
    yield from catalog.check()
    try:
        catalog.snapshot()
    except CorruptIndexError as error:
        yield str(error)
    sound = True
    try:
        for segment in catalog.segments():
            ids = catalog.segment_ids(segment.name)
            for problem in verify_segment(folder, segment, store.dim, ids, store.bits):
                sound = False
                yield problem
    except CorruptIndexError as error:
        sound = False
        yield str(error)
    if store.fitted:
        try:
            store.vectoriser_bytes()
        except CorruptIndexError as error:
            yield str(error)
    if sound:
        for name in derived_names(store.directory / DERIVED):
            yield from filter(None, [derived_problem(store, name)])
        yield from store.part_problems()
        with suppress(CorruptIndexError):  # of what was learned, which was said above
            yield from store.state_problems()
        with suppress(CorruptIndexError):  # which was said above
            store.snapshots.refresh()
            yield from filter(None, [store.moments.problem(store.snapshots.current.flat)])


def _stray(store: Store) -> list[str]:
    """Returns a line for each file that counts for nothing.

    None if a writer is at work, or one that was killed left them: the next writer removes them.
    """
    try:
        if not store.writer.orphans():
            return []
    except CorruptIndexError:  # nobody knows which files count
        return []
    if may_be_interrupted(store.directory):
        return []
    return [
        f"{path} was never committed: forvalue verify --repair removes it"
        for path in store.writer.orphans()
    ]

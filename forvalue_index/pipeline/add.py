"""How rows become part of an index.

    open -> check -> leave out what is there -> [fit the vectoriser, the first time]
         -> samples -> vectors -> segment and rows, chunk by chunk -> extend what is derived

While a chunk is encoded, the samples of the next one are made and the last one is committed.
Encoding never happens inside a transaction; `store/writer.py` commits a chunk.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial

from forvalue_index.data.images import with_images
from forvalue_index.data.ingest import CheckedRows, Rejects, check_rows, chunks_of
from forvalue_index.data.row_keys import RowKeys
from forvalue_index.data.rows import Rows
from forvalue_index.data.sources import Data, open_rows
from forvalue_index.data.token_rows import parted
from forvalue_index.errors import (
    InputError,
    KeyConflictError,
    RowError,
    UnreadableRowError,
)
from forvalue_index.model.fit import UnfitError, fit_vectoriser
from forvalue_index.pipeline.fidelity import QUERIES, affordable, measure
from forvalue_index.pipeline.session import Session
from forvalue_index.pipeline.workers import EncodeResult, Workers, settle_devices
from forvalue_index.records import Encoded, Fidelity, Progress, Sample
from forvalue_index.search.segment import unstorable
from forvalue_index.store import derived
from forvalue_index.store.layout import REJECTS, storing
from forvalue_index.store.manifest import SHARD
from forvalue_index.store.store import Store
from forvalue_index.system.prefetch import ahead

CHUNK = 1024
"""Samples that are encoded, written and committed together: the steps at which a build resumes."""

SMALL = 2**32  # parameters: a GPU reads CHUNK samples with a smaller model in no time
LARGEST = 8  # times CHUNK


_CHANGED = (
    "a second time: it has changed, or is made anew each time; keep it as it is and run the "
    "command again"
)


@dataclass(frozen=True, slots=True)
class AddReport:
    """What an `add` did."""

    added: int  # updated ones included
    updated: int  # took the place of other content under the same key
    skipped: int  # there already, with the same content
    repeated: int  # the same as another row of the input, in every field
    rejected: int  # cannot be used, and noted in INDEX/rejects.jsonl
    truncated: int  # added, but cut to the maximum length
    tokens: int  # of the added samples
    samples: int  # in the index now
    retained: float  # share of the added samples' energy in learned directions (1: none was added)
    expected: float  # the same share, of rows that were kept out when the projection was learned
    fidelity: Fidelity | None
    """Of the index, as new rows ask it; where they are few, `expected_fidelity`."""
    expected_fidelity: Fidelity | None
    """Of the index when its projection was learned; None: it had too few rows to tell."""
    unused: tuple[str, ...] = ()  # fields of the rows that hold something and were not read


def add(
    session: Session,
    data: Data,
    update: bool,
    on_error: str,
    progress: Progress | None,
    devices: str | Sequence[str | int] | None,
) -> AddReport:
    """Adds the rows that are not there yet; see `InfluenceIndex.add`."""
    names = settle_devices(devices) if devices is not None else []
    if names:
        session.move(names[0])
    format = session.config.format
    rows = parted(with_images(open_rows(data), format), format)
    with Rejects(on_error) as rejects:
        checked = check_rows(rows, session.config.format, rejects, progress)
        return add_checked(session, rows, checked, rejects, progress, update, names)


def add_checked(
    session: Session,
    rows: Rows,
    checked: CheckedRows,
    rejects: Rejects,
    progress: Progress | None,
    update: bool = False,
    devices: Sequence[str] = (),
) -> AddReport:
    """Adds the checked rows that are not there yet, and returns what was done."""
    store = session.store
    wanted = checked.contents
    with store.writer.lock():
        found = wanted.compare(store.catalog.known)
        if found.changed and not update:
            raise KeyConflictError(
                f"key {found.first_changed!r} is already in the index, with other content: give "
                "--update to replace it, or change the key"
            )
        total, before = found.new + found.changed, len(rejects)
        added, updated, truncated, tokens, retained = 0, 0, 0, 0, 0.0
        n_fresh, fresh = 0, list[Sample]()  # rows that nothing was fitted to, and some of them

        def report(done: int, done_tokens: int) -> None:
            if progress is not None:
                left = total - (len(rejects) - before)
                progress("encoding", added + done, left, tokens + done_tokens)

        with ExitStack() as stack:
            workers = stack.enter_context(Workers(session, devices if total else ()))
            ready = fit(session, rows, wanted, rejects, progress) if total else {}
            chunks = ahead(_prepared(session, rows, wanted, total, rejects))
            stack.enter_context(closing(chunks))
            commits = stack.enter_context(_Commits(store))
            for made, outcomes in workers.encode(chunks, ready, report):
                samples, encoded = _usable(made, outcomes, rejects, store.bits)
                if not samples:
                    continue
                _require_unchanged(samples, wanted)
                keys = [sample.key for sample in samples]
                replaced = wanted.changed(keys) if found.changed else []
                commits.add(samples, encoded, replaced)
                updated += len(replaced)
                retained += sum(item.retained for item in encoded)
                added += len(samples)
                new = [sample for sample in samples if sample.key not in ready]
                n_fresh += len(new)
                fresh = sorted([*fresh, *new], key=lambda sample: sample.content_hash)[: QUERIES[1]]
                truncated += sum(sample.truncated for sample in samples)
                tokens += sum(len(sample.input_ids) for sample in samples)
        if added:
            for shard in store.shards:
                derived.extend(shard)
        measured = store.fidelity
        if n := affordable(n_fresh):
            measured = measure(session, fresh[:n]) or measured
            if ready and measured is not None:
                store.set_fidelity(measured)
        expected = store.fidelity
        gone = total - added - (len(rejects) - before)
        if gone:
            raise InputError(f"{gone} rows were missing when the input was read {_CHANGED}")
        if rejects.skip:
            with storing(store.directory):
                rejects.save(store.directory / REJECTS)
    return AddReport(
        added=added,
        updated=updated,
        skipped=found.same,
        repeated=checked.repeated,
        rejected=len(rejects),
        truncated=truncated,
        tokens=tokens,
        samples=len(store),
        retained=retained / added if added else 1.0,
        expected=float(store.fingerprint["retained"]),
        fidelity=measured,
        expected_fidelity=expected,
        unused=checked.unused,
    )


def _require_unchanged(samples: Sequence[Sample], wanted: RowKeys) -> None:
    """Checks that rows are those that were checked under their keys.

    Raises:
        InputError: one is not, so that a vector may be of another row than the one it is kept with.
    """
    key = wanted.other((sample.key, sample.content_hash) for sample in samples)
    if key is not None:
        raise InputError(f"the row with key {key!r} was another when the input was read {_CHANGED}")


class _Commits:
    """Commits chunks in their order, each in a thread while the next is encoded.

    At the end of the `with` block all chunks are committed, or the error of the first one that
    failed is raised, and none after it was tried.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(1, "commit")
        self._last: Future[None] | None = None

    def add(
        self, samples: Sequence[Sample], encoded: Sequence[Encoded], replaced: Sequence[str]
    ) -> None:
        """Begins to commit a chunk, once the one before it is; `replaced` are keys."""
        self._wait()
        self._last = self._pool.submit(self._commit, samples, encoded, replaced)

    def _commit(
        self, samples: Sequence[Sample], encoded: Sequence[Encoded], replaced: Sequence[str]
    ) -> None:
        old = self._store.catalog.ids_of(replaced) if replaced else {}
        self._store.writer.commit(samples, encoded, list(old.values()))

    def __enter__(self) -> _Commits:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._wait()

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()


def _prepared(
    session: Session, rows: Rows, wanted: RowKeys, count: int, rejects: Rejects
) -> Iterator[list[Sample]]:
    """Yields the samples of the missing rows, a chunk at a time."""
    size = CHUNK
    if count and session.lm.device.type == "cuda":  # it is idle between two chunks
        size *= max(1, min(LARGEST, SMALL // max(1, session.lm.n_parameters)))
    for chunk in chunks_of(rows, wanted.take, count, session.config.format, rejects, size):
        if samples := session.formatter().samples(chunk, rejects.add):
            yield samples


def fit(
    session: Session,
    rows: Rows,
    wanted: RowKeys,
    rejects: Rejects,
    progress: Progress | None,
) -> dict[str, Encoded]:
    """Fits the vectoriser if it was not yet; returns key -> vector of the fitting samples.

    The fitting samples are those with the smallest content hashes: a random part of the data
    that does not depend on their order.

    Raises:
        InputError: none of the rows can be used, or this is a shard, which learns nothing itself.
    """
    if session.store.fitted:
        return {}
    if SHARD in session.store.fingerprint:
        raise InputError(
            f"{session.store.directory} is a shard, which learns nothing by itself: add rows to "
            "the sharded index as a whole"
        )
    order, enough = wanted.by_content(), session.config.vector.fit_samples
    samples: list[Sample] = []

    def report(done: int) -> None:
        if progress is not None:
            progress("fitting", done, len(samples), 0)

    while True:
        # Rejected samples are replaced by others.
        while drawn := set(itertools.islice(order, enough - len(samples))):
            take, count = partial(_taken, drawn), len(drawn)
            for part in chunks_of(rows, take, count, session.config.format, rejects, CHUNK):
                samples += session.formatter().samples(part, rejects.add)
        if not samples:
            if rejects.first is None:
                raise InputError(f"no row was the same when the input was read {_CHANGED}")
            raise InputError(f"none of the rows can be used; the first: {rejects.first}")
        _require_unchanged(samples, wanted)
        samples.sort(key=lambda sample: sample.content_hash)
        try:
            fitted = fit_vectoriser(session.lm, samples, session.config.vector, report)
            break
        except UnfitError as error:
            for position, reason in error.refused.items():
                rejects.add(reason, samples[position].row)
            samples = [s for i, s in enumerate(samples) if i not in error.refused]
    found = fitted.fidelity
    figures = {
        "retained": round(fitted.retained, 4),
        "fidelity": None if found is None else asdict(found),
    }
    session.store.set_vectoriser(
        fitted.vectoriser.to_bytes(), {"dim": fitted.vectoriser.dim} | figures
    )
    session.vectoriser = fitted.vectoriser
    return {sample.key: item for sample, item in zip(samples, fitted.encoded, strict=True)}


def _taken(keys: set[str], key: str) -> bool:
    """Returns whether a key is among some, from which it is taken."""
    found = key in keys
    keys.discard(key)
    return found


def _usable(
    samples: list[Sample], outcomes: Sequence[EncodeResult], rejects: Rejects, bits: int
) -> tuple[list[Sample], list[Encoded]]:
    """Returns the samples whose vectors can be stored, and the vectors; the others are rejected."""
    kept, encoded = list[Sample](), list[Encoded]()
    for sample, item in zip(samples, outcomes, strict=True):
        if isinstance(item, Encoded) and (bad := unstorable(item.vector[None], bits)):
            item = UnreadableRowError(sample.source, bad[0])
        if isinstance(item, RowError):
            rejects.add(item, sample.row)
            continue
        kept.append(sample)
        encoded.append(item)
    return kept, encoded

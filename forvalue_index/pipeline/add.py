"""How rows become part of an index: checked, fitted to the first time, encoded, committed.

    rows -> checked -> those not there yet -> samples -> vectors -> store, chunk by chunk

While a chunk is encoded, the samples of the next one are made and the last one is committed.
Encoding never happens inside a transaction; `store/store.py` commits a chunk.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass

from forvalue_index.data.ingest import CheckedRows, Rejects, chunks_of
from forvalue_index.data.rows import Rows
from forvalue_index.errors import (
    InputError,
    KeyConflictError,
    RowError,
    UnreadableRowError,
)
from forvalue_index.model.fidelity import LEAST, MOST, measure
from forvalue_index.model.fit import UnfitError, fit_vectoriser
from forvalue_index.pipeline.session import Reader
from forvalue_index.pipeline.workers import Outcome, Workers
from forvalue_index.records import Encoded, Fidelity, Sample
from forvalue_index.search.segment import unstorable
from forvalue_index.store import upkeep
from forvalue_index.store.layout import REJECTS, storing
from forvalue_index.store.store import Store
from forvalue_index.system.prefetch import ahead

CHUNK = 1024
"""Samples that are encoded, written and committed together: the steps at which a build resumes."""

SMALL = 2**32  # parameters: a GPU reads CHUNK samples with a smaller model in no time
LARGEST = 8  # times CHUNK

Progress = Callable[[str, int, int, int], None]
"""Called with a stage ("reading" or "encoding"), rows done, rows in all (0: unknown), tokens."""


@dataclass(frozen=True, slots=True)
class AddReport:
    """What an `add` did."""

    added: int  # updated ones included
    updated: int  # there under the same key, with other content that is gone now
    skipped: int  # there already, with the same content
    repeated: int  # the same as another row of the input, in every field
    rejected: int  # cannot be used, and noted in INDEX/rejects.jsonl
    truncated: int  # added, but cut to the maximum length
    tokens: int  # of the added samples
    samples: int  # in the index now
    retained: float  # share of energy that the added samples' vectors hold (1 if none was added)
    expected: float  # the same share of rows that are like those the projection was learned from
    fidelity: Fidelity | None
    """Of the stored vectors of new rows, or where they are few, of the rows that were kept out when
    the projection was learned; None: these were few, too."""
    expected_fidelity: Fidelity | None  # of the rows that were kept out
    unused: tuple[str, ...] = ()  # fields of the rows that hold something and were not read


FRESH = 32
"""One of so many new rows is read again to measure how true their vectors are."""


def add(
    reader: Reader,
    rows: Rows,
    checked: CheckedRows,
    rejects: Rejects,
    progress: Progress | None,
    update: bool = False,
    devices: Sequence[str] = (),
) -> AddReport:
    """Adds checked rows and returns what was done; see `InfluenceIndex.add`."""
    store = reader.store
    wanted = checked.contents
    with store.lock():
        known = store.catalog.known(list(wanted))
        changed = [key for key in wanted if known.get(key, wanted[key]) != wanted[key]]
        if changed and not update:
            raise KeyConflictError(
                f"key {changed[0]!r} is already in the index, with other content: give "
                "--update to replace it, or change the key"
            )
        old = store.catalog.ids_of(changed)
        missing = {key for key in wanted if key not in known} | set(changed)
        total, before = len(missing), len(rejects)
        added, updated, truncated, tokens, retained = 0, 0, 0, 0, 0.0
        n_fresh, fresh = 0, list[Sample]()  # rows that nothing was fitted to, and some of them

        def report(done: int, done_tokens: int) -> None:
            if progress is not None:
                left = total - (len(rejects) - before)
                progress("encoding", added + done, left, tokens + done_tokens)

        with ExitStack() as stack:
            workers = stack.enter_context(Workers(reader, devices if missing else ()))
            ready = _fit(reader, rows, wanted, missing, rejects, progress) if missing else {}
            chunks = ahead(_prepared(reader, rows, missing, rejects))
            stack.enter_context(closing(chunks))
            commits = stack.enter_context(_Commits(store))
            for made, outcomes in workers.encode(chunks, ready, report):
                samples, encoded = _usable(made, outcomes, rejects, store.bits)
                if not samples:
                    continue
                replaced = [old[sample.key] for sample in samples if sample.key in old]
                commits.add(samples, encoded, replaced)
                updated += len(replaced)
                retained += sum(item.retained for item in encoded)
                added += len(samples)
                new = [sample for sample in samples if sample.key not in ready]
                n_fresh += len(new)
                fresh += new[:: max(1, -(-n_fresh // MOST))]
                truncated += sum(sample.truncated for sample in samples)
                tokens += sum(len(sample.input_ids) for sample in samples)
        if added:
            store.refresh()
            upkeep.extend(store)
        measured = expected = store.fidelity
        n = min(n_fresh // FRESH, MOST)
        if n >= LEAST:
            some = fresh[:: len(fresh) // n][:n]
            measured = measure(reader.lm, reader.vectoriser, some, store.bits)
        gone = total - added - (len(rejects) - before)
        if gone:
            raise InputError(
                f"{gone} rows were missing when the input was read a second time: "
                "it has changed; run the command again"
            )
        if rejects.skip:
            with storing(store.directory):
                rejects.save(store.directory / REJECTS)
    return AddReport(
        added=added,
        updated=updated,
        skipped=len(known) - len(changed),
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


class _Commits:
    """Commits chunks in their order, each in a thread while the next is encoded.

    At the end of the `with` block all that were added are committed, or the error of the first
    that was not is raised, and none after it was tried.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(1, "commit")
        self._last: Future[None] | None = None

    def add(
        self, samples: Sequence[Sample], encoded: Sequence[Encoded], replaced: Sequence[int]
    ) -> None:
        """Begins to commit a chunk, once the one before it is."""
        self._wait()
        self._last = self._pool.submit(self._store.commit, samples, encoded, replaced)

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
    reader: Reader, rows: Rows, missing: set[str], rejects: Rejects
) -> Iterator[list[Sample]]:
    """Yields the samples of the missing rows, a chunk at a time."""
    size = CHUNK
    if missing and reader.lm.device.type == "cuda":  # it is idle between two chunks
        size *= max(1, min(LARGEST, SMALL // max(1, reader.lm.n_parameters)))
    for chunk in chunks_of(rows, missing, reader.config.format, rejects, size):
        if samples := reader.formatter().samples(chunk, rejects.add):
            yield samples


def _fit(
    reader: Reader,
    rows: Rows,
    wanted: dict[str, str],
    missing: set[str],
    rejects: Rejects,
    progress: Progress | None,
) -> dict[str, Encoded]:
    """Fits the vectoriser if it was not yet; returns key -> vector of the fitting samples.

    The fitting samples are those with the smallest content hashes: a random part of the data
    that does not depend on their order.

    Raises:
        InputError: none of the rows can be used.
    """
    if reader.store.fitted:
        return {}
    order, enough = iter(sorted(missing, key=wanted.__getitem__)), reader.config.vector.fit_samples
    samples: list[Sample] = []

    def report(done: int) -> None:
        if progress is not None:
            progress("fitting", done, len(samples), 0)

    while True:
        # Others come for those that are rejected, as if these had never been there.
        while drawn := set(itertools.islice(order, enough - len(samples))):
            for part in chunks_of(rows, drawn, reader.config.format, rejects, CHUNK):
                samples += reader.formatter().samples(part, rejects.add)
        if not samples:
            raise InputError(f"none of the rows can be used; the first: {rejects.first}")
        samples.sort(key=lambda sample: sample.content_hash)
        try:
            fitted = fit_vectoriser(reader.lm, samples, reader.config.vector, report)
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
    reader.store.set_vectoriser(
        fitted.vectoriser.to_bytes(), {"dim": fitted.vectoriser.dim} | figures
    )
    reader.vectoriser = fitted.vectoriser
    return {sample.key: item for sample, item in zip(samples, fitted.encoded, strict=True)}


def _usable(
    samples: list[Sample], outcomes: Sequence[Outcome], rejects: Rejects, bits: int
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

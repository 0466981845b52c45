"""Encoding on several devices: this process uses the first, a process of its own each other one.

Processes get samples and return vectors. They open the index as any reader does and write nothing:
the one writer, with its lock and its order of commits, is the process that began. Token ids are
sent one way, a few KB a sample the other, which is little beside the forward passes.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import TypeAlias

import torch
from transformers.utils.logging import disable_progress_bar

from forvalue_index.config import IndexConfig
from forvalue_index.errors import InputError, RowError, WorkerError
from forvalue_index.model.language_model import find_device
from forvalue_index.pipeline.session import Session
from forvalue_index.records import Encoded, Sample
from forvalue_index.shards.store import open_store

Report = Callable[[int, int], None]
"""Called with the samples and tokens done of a chunk."""

EncodeResult: TypeAlias = Encoded | RowError
"""The vector of a sample, or why it has none."""

STOP = signal.SIGUSR1  # tells a process to give up its chunk
AHEAD = 2  # chunks for each device that are under way


def settle_devices(devices: str | Sequence[str | int]) -> list[str]:
    """Returns names of devices: those of "0,1", "cpu,cpu", "all" (all GPUs), or of a list of such.

    Raises:
        ModelError: one is not there.
        InputError: there is none.
    """
    parts = devices.split(",") if isinstance(devices, str) else devices
    if list(parts) == ["all"]:
        parts = range(torch.cuda.device_count())
        if not parts:
            raise InputError(
                "all GPUs were requested, but torch sees none: name devices, or give none"
            )
    names = [str(part).strip() for part in parts]
    names = [f"cuda:{name}" if name.isdigit() else name for name in names]
    if not names:
        raise InputError("the list of devices is empty: name one, or leave it out")
    for name in names:
        if find_device(name) is None:
            raise InputError("auto is one model on all devices: give it as --device auto")
    return names


class Workers:
    """Encodes the chunks of one `add`; use it in a `with` block.

    One device: this process, in the thread that asks. Several: a thread here for each; that of the
    first encodes with the session's own model, the others each wait for a process.
    """

    def __init__(self, session: Session, devices: Sequence[str] = ()) -> None:
        """Begins to load the model on all `devices` but the first, on which the session has it."""
        self._session = session
        self._stop = threading.Event()
        self._n_threads = torch.get_num_threads()
        self._share = max(1, self._n_threads // max(1, list(devices).count("cpu")))
        self._processes = [_Process(session, name, self._share) for name in devices[1:]]
        self._threads = ThreadPoolExecutor(max(1, len(devices)), "device")
        self._free: SimpleQueue[Callable[[list[Sample]], list[EncodeResult]]] = SimpleQueue()
        for encode in (self._encode_here, *(process.encode for process in self._processes)):
            self._free.put(encode)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for process in self._processes:
            process.end(now=error is not None)
        self._threads.shutdown(cancel_futures=True)
        if self._processes:
            torch.set_num_threads(self._n_threads)

    def encode(
        self, chunks: Iterable[list[Sample]], ready: dict[str, Encoded], report: Report
    ) -> Iterator[tuple[list[Sample], list[EncodeResult]]]:
        """Yields chunks with what came of them, in order; `ready` has some vectors, by key.

        `report` is called from the thread that asks: for each batch, or, of several devices, for
        each chunk.

        Raises:
            WorkerError: a process died.
        """
        if not self._processes:
            for samples in chunks:
                yield samples, _encode(samples, ready, self._read, report)
            return
        pending: deque[tuple[list[Sample], Future[list[EncodeResult]]]] = deque()

        def first() -> tuple[list[Sample], list[EncodeResult]]:
            samples, future = pending.popleft()
            encoded = future.result()
            report(len(samples), sum(len(sample.input_ids) for sample in samples))
            return samples, encoded

        for samples in chunks:
            pending.append((samples, self._threads.submit(self._encode_anywhere, samples, ready)))
            if len(pending) >= AHEAD * (1 + len(self._processes)):
                yield first()
        while pending:
            yield first()

    def _encode_anywhere(
        self, samples: list[Sample], ready: dict[str, Encoded]
    ) -> list[EncodeResult]:
        """Returns what comes of samples, from the first device that is free."""
        encode = self._free.get()
        try:
            return _encode(samples, ready, lambda rest, _: encode(rest), lambda *_: None)
        finally:
            self._free.put(encode)

    def _encode_here(self, samples: list[Sample]) -> list[EncodeResult]:
        torch.set_num_threads(self._share)
        return self._read(samples, _until(self._stop))

    def _read(self, samples: list[Sample], report: Report) -> list[EncodeResult]:
        return _outcomes(self._session, samples, report)


def _outcomes(session: Session, samples: list[Sample], report: Report) -> list[EncodeResult]:
    """Returns the vector of each sample, or why it has none."""
    refused: dict[int, RowError] = {}
    made = iter(session.encode(samples, report, refused))
    return [refused[i] if i in refused else next(made) for i in range(len(samples))]


def _until(stop: threading.Event) -> Report:
    """Returns what ends the encoding of a chunk after the batch in which `stop` is set."""

    def report(*_: int) -> None:
        if stop.is_set():
            raise CancelledError

    return report


def _encode(
    samples: list[Sample],
    ready: dict[str, Encoded],
    encode: Callable[[list[Sample], Report], list[EncodeResult]],
    report: Report,
) -> list[EncodeResult]:
    """Returns what comes of samples; those that are not ready come from `encode`."""
    rest = [sample for sample in samples if sample.key not in ready]
    n_ready = len(samples) - len(rest)
    n_tokens = sum(len(sample.input_ids) for sample in samples if sample.key in ready)
    made = iter(encode(rest, lambda done, tokens: report(n_ready + done, n_tokens + tokens)))
    return [ready[s.key] if s.key in ready else next(made) for s in samples]


class _Process:
    """A process that has the model on a device of its own."""

    def __init__(self, session: Session, device: str, threads: int) -> None:
        self._device = device
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (threads,))
        arguments = session.store.directory, session.config, device
        self._pid = self._pool.submit(_load, *arguments)

    def encode(self, samples: list[Sample]) -> list[EncodeResult]:
        """Returns what comes of samples.

        Raises:
            WorkerError: the process died.
        """
        try:
            self._pid.result()  # what went wrong in loading
            bare = [replace(sample, row={}) for sample in samples]
            return self._pool.submit(_encode_in_process, bare).result()
        except BrokenProcessPool as error:
            raise WorkerError(
                f"the process on {self._device} died (killed, or out of memory): what was "
                "committed stays, and the same command continues; a script that uses several "
                'devices needs `if __name__ == "__main__":` around what it does'
            ) from error

    def end(self, *, now: bool) -> None:
        """Ends the process; `now`: in the middle of its work, after the batch at hand."""
        if now and self._pid.done() and not self._pid.cancelled() and not self._pid.exception():
            with suppress(ProcessLookupError):
                os.kill(self._pid.result(), STOP)
        self._pool.shutdown(cancel_futures=True)


# -- in the process ------------------------------------------------------------------------------

_sessions: list[Session] = []
_stop = threading.Event()


def _begin(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that began decides what it means
    signal.signal(STOP, lambda *_: _stop.set())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    hide_bars: Callable[[], None] = disable_progress_bar
    hide_bars()  # those of the first model are enough


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _load(directory: Path, config: IndexConfig, device: str) -> int:
    """Loads the model, checks that it is the index's, and returns the process's id."""
    session = Session(open_store(directory), config, device)
    assert session.lm
    _sessions.append(session)
    return os.getpid()


def _encode_in_process(samples: list[Sample]) -> list[EncodeResult]:
    return _outcomes(_sessions[0], samples, _until(_stop))

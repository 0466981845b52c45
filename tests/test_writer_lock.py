"""Who may write: one process at a time, and who it is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from forvalue_index.catalog.lock import WriterLock
from forvalue_index.errors import LockedError


def test_the_second_writer_learns_who_the_first_is(tmp_path: Path) -> None:
    with (
        WriterLock(tmp_path, "forvalue add rows.jsonl"),
        pytest.raises(
            LockedError, match=rf"process {os.getpid()} on .*forvalue add rows\.jsonl, since 20"
        ),
    ):
        WriterLock(tmp_path).acquire()
    with WriterLock(tmp_path, "another"), pytest.raises(LockedError, match="another"):
        WriterLock(tmp_path).acquire()
    with pytest.raises(ZeroDivisionError), WriterLock(tmp_path):
        _ = 1 / 0
    WriterLock(tmp_path).acquire()


def test_a_lock_that_cannot_be_written_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(OSError, match="No space"):
            WriterLock(tmp_path).acquire()
    with WriterLock(tmp_path) as lock:
        assert not lock.interrupted


def _hold(folder: Path, ready: multiprocessing.synchronize.Event) -> None:
    WriterLock(folder, "held").acquire()
    ready.set()
    time.sleep(600)


def test_a_killed_writer_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready), daemon=True)
    process.start()
    assert ready.wait(300)  # a busy machine takes a while to start one
    with pytest.raises(LockedError, match=f"process {process.pid} .*held"):
        WriterLock(tmp_path).acquire()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with WriterLock(tmp_path):
        pass

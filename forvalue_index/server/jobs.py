"""Long work that goes on when its request has ended: its state, progress, cancelling and result.

Jobs run one after the other, in a thread of their own. Their forward passes take turns with those
of requests, which go first. Knows no index: work is a function.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any

from forvalue_index.records import Progress
from forvalue_index.server.problem import HttpError

log = logging.getLogger(__name__)

WAITING = 8  # jobs that may wait
KEPT = 20  # jobs that have ended, with their results
ENDED = ("done", "failed", "cancelled")
YIELD = 10.0  # seconds that a job waits at most, between two batches, for requests


class CancelledError(Exception):
    """The job is not wanted any more."""


@dataclass(eq=False)
class Job:
    """One piece of long work."""

    kind: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: str = "waiting"
    stage: str = ""
    done: int = 0
    total: int = 0
    began: float | None = None
    ended: float | None = None
    error: str | None = None
    result: Any = None
    stop: Event = field(default_factory=Event)

    def to_json(self) -> dict[str, Any]:
        """Returns the job without its result."""
        seconds = 0.0 if self.began is None else (self.ended or time.monotonic()) - self.began
        return {
            "id": self.id,
            "kind": self.kind,
            "state": self.state,
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
            "seconds": round(seconds, 3),
            "error": self.error,
        }


class Jobs:
    """The jobs of a server.

    Args:
        problem: returns what a client is told of an error.
        busy: returns whether requests wait for the model.
    """

    def __init__(
        self, problem: Callable[[Exception], HttpError], busy: Callable[[], bool] = lambda: False
    ) -> None:
        self._problem = problem
        self._busy = busy
        self._jobs: dict[str, Job] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="forvalue-job")

    def start(self, kind: str, work: Callable[[Progress], Any]) -> Job:
        """Returns a new job that does `work`, which reports its progress.

        Raises:
            HttpError: too many jobs wait.
        """
        job = Job(kind)
        with self._lock:
            if sum(known.state not in ENDED for known in self._jobs.values()) > WAITING:
                raise HttpError(
                    429, f"{WAITING} jobs wait already: cancel one, or wait until one ends", 10
                )
            self._jobs[job.id] = job
            ended = [known for known in self._jobs.values() if known.state in ENDED]
            for old in ended[: max(0, len(ended) - KEPT)]:
                del self._jobs[old.id]
        self._pool.submit(self._run, job, work)
        return job

    def all(self) -> list[Job]:
        """Returns the jobs, the newest first."""
        with self._lock:
            return [*reversed(self._jobs.values())]

    def get(self, id: str) -> Job:
        """Returns a job.

        Raises:
            HttpError: there is none of this id.
        """
        with self._lock:
            if id not in self._jobs:
                raise HttpError(404, "there is no such job: see /api/jobs for those there are")
            return self._jobs[id]

    def result(self, id: str, *kinds: str) -> Any:
        """Returns the result of a job that is done; `kinds`: of which kinds it may be.

        Raises:
            HttpError: there is no such job, or it has no result.
        """
        job = self.get(id)
        if job.state != "done":
            raise HttpError(
                409, f"the job is {job.state}: a result is there when its state is done"
            )
        if kinds and job.kind not in kinds:
            raise HttpError(409, f"a job of the kind {job.kind} has no rows to write")
        return job.result

    def cancel(self, id: str) -> Job:
        """Asks a job to stop, after its present batch; forgets one that has ended. Returns it.

        Raises:
            HttpError: there is no such job.
        """
        job = self.get(id)
        with self._lock:
            job.stop.set()
            if job.state in ENDED:
                del self._jobs[id]
            elif job.state == "waiting":
                job.state = "cancelled"
        return job

    def close(self) -> None:
        """Asks all jobs to stop, and waits for the one that runs."""
        for job in self.all():
            job.stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, job: Job, work: Callable[[Progress], Any]) -> None:
        with self._lock:
            if job.stop.is_set():
                job.state = "cancelled"
                return
            job.state, job.began = "running", time.monotonic()

        def report(stage: str, done: int, total: int, _: int) -> None:
            job.stage, job.done, job.total = stage, done, total
            until = time.monotonic() + YIELD
            while self._busy() and not job.stop.is_set() and time.monotonic() < until:
                time.sleep(0.005)
            if job.stop.is_set():
                raise CancelledError

        try:
            job.result = work(report)
            state = "done"
        except CancelledError:
            state = "cancelled"
        except Exception as error:
            job.error, state = self._problem(error).sentence, "failed"
        job.ended = time.monotonic()
        job.state = state

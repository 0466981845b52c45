"""What Ray's workers run. Each function can be begun again at any moment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forvalue_index.cluster.spill import FIT, SpilledRows, deal_out
from forvalue_index.data.images import with_images
from forvalue_index.data.parts import Part, open_part
from forvalue_index.data.token_rows import parted
from forvalue_index.errors import LockedError
from forvalue_index.pipeline import shard
from forvalue_index.shards.rows import ShardRows

if TYPE_CHECKING:
    from forvalue_index.cluster.build import Work
    from forvalue_index.pipeline.add import AddReport
    from forvalue_index.records import Progress

_PATIENCE = (
    60.0  # seconds for which another writer, such as one that is about to die, is waited for
)
_EVERY = 0.5  # seconds between two reports of progress

_models: dict[str, Any] = {}  # of this worker, which Ray uses for task after task


class Board:
    """How far each shard is."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[int, int, int]] = {}

    def write(self, number: int, done: int, rows: int, tokens: int) -> None:
        """Notes the rows done, rows in all and tokens of a shard."""
        self._done[number] = done, rows, tokens

    def read(self) -> dict[int, tuple[int, int, int]]:
        """Returns what was noted."""
        return self._done


def deal_out_part(work: Work, part: Part, block: Path, allow_remote: bool) -> None:
    """Deals out the rows of a part of a data file to the shards."""
    rows = open_part(part, allow_remote)
    rows = parted(with_images(rows, work.format), work.format)
    deal_out(rows, work.format, work.shards, work.vector.fit_samples, block)


def learn(work: Work, blocks: Sequence[Path]) -> None:
    """Learns the vectoriser and makes the manifest."""
    assert work.model is not None
    rows = SpilledRows(block / FIT for block in blocks)
    shard.learn(
        work.directory,
        rows,
        work.model,
        work.shards,
        work.format,
        work.vector,
        None,
        work.on_error,
        None,
    )


def build(work: Work, number: int, blocks: Sequence[Path], board: Any) -> AddReport:
    """Adds the rows of one shard to it, and returns what was done."""
    rows = SpilledRows(block / f"{number:04d}.jsonl" for block in blocks)
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return _build(work, number, rows, _progress(board, number))
        except LockedError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def _build(work: Work, number: int, rows: SpilledRows, progress: Progress) -> AddReport:
    with closing(shard.open_shard_session(work.directory, number, work.model, None)) as session:
        name = repr(session.config.model)
        if name in _models:
            session.use(_models[name])
        _models.clear()
        _models[name] = session.lm
        own = ShardRows(rows, session.config.format, number, work.shards)
        return shard.fill_shard(session, own, work.on_error, progress, work.update)


def _progress(board: Any, number: int) -> Progress:
    """Returns what notes progress on the board now and then."""
    last = 0.0

    def report(stage: str, done: int, rows: int, tokens: int) -> None:
        nonlocal last
        if stage == "encoding" and (done == rows or time.monotonic() - last > _EVERY):
            last = time.monotonic()
            board.write.remote(number, done, rows, tokens)

    return report

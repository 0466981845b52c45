"""Rows dealt out to shards: a file for each shard, beside the index, until it is built.

    part of a data file -> block/0003.jsonl for each shard, and block/fit.jsonl
    all blocks -> the vectoriser is learned from the smallest content hashes of all
    0003.jsonl of all blocks -> shard 3

A block is complete once its folder has its name, so that a build that is run again reads no data
file twice. Each line has the place of a row, for messages.
"""

from __future__ import annotations

import heapq
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from forvalue_index.config import FormatConfig, named
from forvalue_index.data.identity import content_hash
from forvalue_index.data.parts import Part
from forvalue_index.data.rows import Outcome, Rows
from forvalue_index.errors import RowError
from forvalue_index.shards.rows import shard_at
from forvalue_index.store.layout import storing
from forvalue_index.store.vectoriser import digest
from forvalue_index.system.files import open_own, sync_folder

FIT = "fit.jsonl"
COUNTS = "counts.json"
_UNFINISHED = ".unfinished"


def folder_of(directory: Path) -> Path:
    """Returns where the rows for the index in `directory` are dealt out: beside it."""
    return directory.with_name(f"{directory.name}.incoming")


def block_of(part: Part, format: FormatConfig, shards: int, fit: int) -> str:
    """Returns the name of the block of a part of a data file as it is now."""
    found = part.file.stat()
    state = [str(part.file), found.st_size, found.st_mtime_ns, shards, fit]
    state += [] if part.whole else [part.start, part.end]
    return digest({"state": state, "format": named(format)})


def deal_out(rows: Rows, format: FormatConfig, shards: int, fit: int, block: Path) -> None:
    """Writes each row to the file of its shard, and those that may be learned from to FIT.

    Args:
        rows: of the block, with their images settled.
        format: how a row has a key.
        shards: how many there are.
        fit: rows that the vectoriser is learned from, of all blocks.
        block: the folder to make; one that is there stays as it is.

    Raises:
        StorageError: the disk is full.
    """
    if block.exists():
        return
    folder = block.with_name(f"{block.name}{_UNFINISHED}")
    shutil.rmtree(folder, ignore_errors=True)
    with storing(block.parent), ExitStack() as opened:
        folder.mkdir(parents=True)
        counts = [0] * shards
        files: dict[int, IO[str]] = {}

        def dealt() -> Iterator[tuple[str, str]]:
            for place, row in rows.outcomes():
                number = shard_at(place, row, format, shards)
                if number not in files:
                    path = folder / f"{number:04d}.jsonl"
                    files[number] = opened.enter_context(path.open("w"))
                line = _line(place, row)
                files[number].write(line)
                counts[number] += 1
                if isinstance(row, dict) and (content := _content(place, row, format)):
                    yield content, line

        # Twice as many: some may turn out to be unusable.
        chosen = heapq.nsmallest(2 * fit, dealt())
        (folder / FIT).write_text("".join(line for _, line in chosen))
        (folder / COUNTS).write_text(json.dumps(counts))
        opened.close()
        sync_folder(folder)
        folder.rename(block)


def counts_of(blocks: Sequence[Path], shards: int) -> list[int]:
    """Returns how many rows each shard has in all blocks."""
    counts = [json.loads((block / COUNTS).read_text()) for block in blocks]
    return [sum(own[number] for own in counts) for number in range(shards)]


class SpilledRows(Rows):
    """The rows in files of blocks; a file that is not there has none."""

    settled = True

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = list(files)

    def outcomes(self) -> Iterator[Outcome]:
        """Yields the rows under the places where they stood first."""
        for file in self._files:
            if not file.exists():
                continue
            with open_own(file) as lines:
                for line in lines:
                    found = json.loads(line)
                    place = found["place"]
                    if "reason" in found:
                        yield place, RowError(place, found["reason"])
                    else:
                        yield place, found["row"]


def _line(place: str, row: dict[str, Any] | RowError) -> str:
    value = {"reason": row.reason} if isinstance(row, RowError) else {"row": row}
    return json.dumps({"place": place} | value) + "\n"


def _content(place: str, row: dict[str, Any], format: FormatConfig) -> str | None:
    try:
        return content_hash(row, place, format)
    except RowError:  # which its shard says
        return None

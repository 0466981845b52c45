"""Shards, servers, clusters and the commands that use them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from error_cases.case import Case, python
from error_cases.settings import ASK, ROW

from forvalue_index import InfluenceIndex
from forvalue_index.store.manifest import read_manifest, write_manifest

LIST = "list --index my.shards"
OPENED = "InfluenceIndex.open('my.shards')"


def _shard(number: int) -> str:
    return f"my.shards/shards/{number:04d}"


def _without(*numbers: int) -> Callable[[Path], None]:
    """Deletes shards."""

    def delete(folder: Path) -> None:
        for number in numbers:
            shutil.rmtree(folder / _shard(number))

    return delete


def _unattached(folder: Path) -> None:
    own = read_manifest(folder / "my.shards")
    write_manifest(folder / "my.shards", replace(own, attached=(0,)))


def _swapped(folder: Path) -> None:
    first, second = folder / _shard(0), folder / _shard(1)
    first.rename(folder / "kept")
    second.rename(first)
    (folder / "kept").rename(second)


def _linked(folder: Path) -> None:
    (folder / _shard(1)).rename(folder / "kept")
    (folder / _shard(1)).symlink_to(folder / "kept")


def _piped(folder: Path) -> None:
    path = folder / "my.shards" / "write.lock"
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _copied(folder: Path) -> None:
    shutil.copytree(folder / "my.shards", folder / "copy")


def _copied_and_dealt(folder: Path) -> None:
    _copied(folder)
    InfluenceIndex.reshard(folder / "copy", 3)


SHARDS = [
    Case("list --index my.shards", {"my.shards/shards.json": "{}"}, told="shards.json was changed"),
    Case("build rows.jsonl --index my.shards --model model --shard 5", {"rows.jsonl": ROW}),
    Case(LIST, before=_unattached, told="shard 1 was never built"),
    Case(LIST, before=_swapped, told="the folders of the shards were exchanged"),
    Case(LIST, before=_linked, told="the folder of a shard is a link"),
    Case(f"{LIST} --partial", before=_without(0, 1), told="all shards were deleted"),
    Case(f"add rows.jsonl --index {_shard(0)}", {"rows.jsonl": ROW}),
    Case("attach --index my.index"),
    Case("attach --index my.shards", before=_piped, told="write.lock is a pipe"),
    Case("attach --index my.shards copy", before=_copied, told="copy is a copy of my.shards"),
    Case("attach --index my.shards copy", before=_copied_and_dealt,
         told="copy is a copy of my.shards that was dealt out to three shards"),
    python("type(index.store).open('my.shards')"),
    python("InfluenceIndex.build('new', [row], 'model', shards=0)"),
    python("InfluenceIndex.reshard('my.shards', 0)"),
    python("InfluenceIndex.open('my.shards', partial=True).get('1')",
           before=_without(0), told="a shard was deleted"),
    python(f"(old := {OPENED}) and InfluenceIndex.reshard('my.shards', 3) and old.get('1')"),
    python(f"(old := {OPENED}) and __import__('os').rename('my.shards', 'new') or old.get('1')"),
]  # fmt: skip

CLUSTERS = [
    Case("build rows.jsonl --index new --model model --shards 2 --ray local", {"rows.jsonl": ROW},
         lacking="ray"),
    Case("build rows.jsonl --index new --model model --shards 2 --ray 127.0.0.1:9",
         {"rows.jsonl": ROW}, hide=r"(?<=9 \().*?(?=\):)"),
    Case(f"query --index my.index {ASK} --ray local"),
    python("InfluenceIndex.build_on_ray('new', [row], None, None)"),
    python("InfluenceIndex.build_on_ray('new', [row], ModelConfig('model'), 0)"),
]  # fmt: skip

COMMANDS = [
    Case("shell --index my.index", typed=":fast\n"),
    Case("shell --index my.index", typed=":part Ada\n"),
    Case("shell --index my.index", typed=":k many\n"),
    Case("serve --index my.index --port 0", {"my.index/review/decisions.jsonl": "keep all\n"},
         hide=r"(?<=decisions \().*?(?=\):)"),
    Case('pull "my index" new'),
    Case("build rows.jsonl --index rows.jsonl/new --model model", {"rows.jsonl": ROW}),
    Case("build rows.jsonl --index new --model model", {"rows.jsonl": ROW}, full=True,
         told="the disk is full"),
]  # fmt: skip

CASES = [*SHARDS, *CLUSTERS, *COMMANDS]

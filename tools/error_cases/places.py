"""Shards, servers, clusters and the commands that use them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from error_cases.case import Case, python
from error_cases.settings import ASK, ROW

from forvalue_index import InfluenceIndex
from forvalue_index.store.manifest import read_manifest, write_manifest
from forvalue_index.system.runtime import socket_name

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


def _taken(folder: Path) -> None:
    (folder / "forvalue").mkdir(0o700)
    (folder / "forvalue" / socket_name(folder / "my.index")).mkdir()


def _settings(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Changes the settings of the sharded index."""

    def write(folder: Path) -> None:
        own = read_manifest(folder / "my.shards")
        change(own.config)
        write_manifest(folder / "my.shards", own)

    return write


LATER = "it was made by a newer version, with other settings"
RUNTIME = "__import__('forvalue_index.system.runtime', fromlist=['runtime'])"
LONG = json.dumps({"text": "many words " * 1000}) + "\n"
SHARDS = [
    Case("list --index my.shards", {"my.shards/shards.json": "{}"}, told="shards.json was changed"),
    Case("build rows.jsonl --index my.shards --model model --shard 5", {"rows.jsonl": ROW}),
    Case(LIST, before=_unattached, told="shard 1 was never built"),
    Case(LIST, before=_swapped, told="the folders of the shards were exchanged"),
    Case(LIST, before=_linked, told="the folder of a shard is a link"),
    Case(f"query --index my.shards {ASK} --partial", before=_without(0, 1),
         told="all shards were deleted"),
    Case(f"add rows.jsonl --index {_shard(1)}",
         {"rows.jsonl": '{"id": "1", "prompt": "Who?", "response": " Eve."}'}),
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

SETTINGS = [
    Case(LIST, before=_settings(lambda own: own.update(colours={})), told=LATER),
    Case(LIST, before=_settings(lambda own: own.update(format="chat")), told=LATER),
    Case(LIST, before=_settings(lambda own: own["format"].update(colour="red")), told=LATER),
    Case(LIST, before=_settings(lambda own: own["format"].update(max_length="all")), told=LATER),
    Case(LIST, before=_settings(lambda own: own["format"].update(score="prompt")), told=LATER),
]  # fmt: skip

COMMANDS = [
    Case(f"query --server here {ASK}"),
    Case(f"query --server http://127.0.0.1:9 {ASK}", hide=r"(?<=answer \().*?(?=\):)"),
    Case("shell --index my.index", typed=":fast\n"),
    Case("shell --index my.index", typed=":part Ada\n"),
    Case("shell --index my.index", typed=":k many\n"),
    Case("serve --index my.index --port 0", {"my.index/review/decisions.jsonl": "keep all\n"},
         hide=r"(?<=decisions \().*?(?=\):)"),
    Case('pull "my index" new'),
    Case("build rows.jsonl --index rows.jsonl/new --model model", {"rows.jsonl": ROW}),
    Case("add rows.jsonl --index my.index --on-error skip", {"rows.jsonl": LONG}, full=True,
         told="the disk is full", hide=r"(?<=stored in ).*?(?=: set)"),
    python(f"{RUNTIME}.listen('my.index')", files={"forvalue": ""},
           environment={"XDG_RUNTIME_DIR": "."}),
    python(f"{RUNTIME}.listen('my.index')", files={"forvalue/a": ""},
           environment={"XDG_RUNTIME_DIR": "."}, told="others may enter the folder forvalue"),
    python(f"{RUNTIME}.listen('my.index')", files={f"{'long' * 22}/a": ""},
           environment={"XDG_RUNTIME_DIR": "long" * 22}),
    python(f"{RUNTIME}.listen('my.index')", environment={"XDG_RUNTIME_DIR": "."}, before=_taken,
           told="a folder has the name of the socket", hide=r"(?<=at \().*?(?=\):)"),
]  # fmt: skip

CASES = [*SHARDS, *CLUSTERS, *SETTINGS, *COMMANDS]

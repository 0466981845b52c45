"""Indexes, models and folders that are not as they were made, and what is missing."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from error_cases.case import Case
from error_cases.settings import ASK, ROW
from safetensors.numpy import load, save

from forvalue_index import InfluenceIndex
from forvalue_index.catalog.lock import WriterLock
from forvalue_index.store.copy import copy

QUERY = f"query --index my.index {ASK}"
BUILD = "build rows.jsonl --index new --model model"


def sql(*statements: str) -> Callable[[Path], None]:
    """Changes the database of the index."""

    def change(folder: Path) -> None:
        with closing(sqlite3.connect(folder / "my.index" / "catalog.db")) as raw:
            for statement in statements:
                raw.execute(statement)
            raw.commit()

    return change


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Changes a file."""

    def edit(folder: Path) -> None:
        path = next(folder.glob(name))
        path.write_bytes(change(path.read_bytes()))

    return edit


def _gone(name: str) -> Callable[[Path], None]:
    return lambda folder: next(folder.glob(name)).unlink()


def _linked(folder: Path) -> None:
    path = folder / "my.index" / "write.lock"
    path.unlink(missing_ok=True)
    path.symlink_to("elsewhere")


def model_with(**settings: object) -> Callable[[Path], None]:
    """Makes the folder `model` one of its own, with other settings."""

    def change(folder: Path) -> None:
        own = folder / "model"
        shutil.copytree(own.resolve(), folder / "copy")
        own.unlink()
        (folder / "copy").rename(own)
        path = own / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def _other_weights(folder: Path) -> None:
    model_with()(folder)
    path = folder / "model" / "model.safetensors"
    path.write_bytes(save({name: -value for name, value in load(path.read_bytes()).items()}))


def _bare(folder: Path) -> None:
    with InfluenceIndex.open(folder / "my.index") as index:
        copy(index.store, folder / "bare.index", rows=False)


def _bare_alone(folder: Path) -> None:
    _bare(folder)
    (folder / "model").unlink()


def _derived(name: str, change: Callable[[bytes], bytes] | None) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with InfluenceIndex.open(folder / "my.index") as index:
            index.optimize("SQ8")
        path = next((folder / "my.index" / "derived").glob(name))
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(path.read_bytes()))

    return damage


def _locked(folder: Path) -> None:
    _HELD.append(WriterLock(folder / "my.index"))
    _HELD[-1].acquire()


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder / "my.index" / "segments")
    (folder / "my.index" / "segments").write_text("")


_HELD: list[WriterLock] = []


def _without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        model_with()(folder)
        (folder / "model" / name).unlink()

    return change


CASES = [
    Case(QUERY, before=edit("my.index/segments/*", lambda data: data[:-1] + b"?"),
         told="a byte of a segment was changed"),
    Case(QUERY, before=edit("my.index/segments/*", lambda data: data[:-9]),
         told="a segment was cut"),
    Case(QUERY, before=_gone("my.index/segments/*"), told="a segment was deleted"),
    Case(QUERY, before=edit("my.index/vectoriser*", lambda data: data[:-1] + b"?"),
         told="a byte of the vectoriser was changed"),
    Case(QUERY, before=_gone("my.index/vectoriser*"), told="the vectoriser was deleted"),
    Case("list --index my.index", before=edit("my.index/catalog.db", lambda _: b"no database"),
         told="catalog.db was replaced by a text"),
    Case("show --index my.index 1", before=sql("UPDATE samples SET n_tokens = 3 WHERE key = '1'"),
         told="a number of a row was changed"),
    Case(QUERY, before=sql("UPDATE samples SET norm = 3"), told="numbers of rows were changed"),
    Case(QUERY, before=sql("UPDATE samples SET loss = 'x'"), told="numbers became texts"),
    Case(QUERY, before=sql("UPDATE samples SET removed_at = 'now' WHERE key = '1'"),
         told="a row was marked as removed"),
    Case(QUERY, before=sql("DELETE FROM samples WHERE key = '1'"), told="a row was deleted"),
    Case("info --index my.index", before=sql("UPDATE index_info SET config = '{}'"),
         told="the settings were changed", hide=r"(?<=is )\w{32}|(?<=but )\w{32}"),
    Case("list --index my.index", before=sql("UPDATE index_info SET live = 3"),
         told="a count was changed", hide=r"(?<=is )\w{32}|(?<=but )\w{32}"),
    Case("list --index my.index", before=sql("DELETE FROM index_info"),
         told="the settings were deleted"),
    Case("list --index my.index", before=sql("UPDATE segments SET bytes = 3"),
         told="a size was changed"),
    Case("list --index my.index", before=sql("DELETE FROM segments"),
         told="segments were deleted from the catalogue"),
    Case("list --index my.index", before=sql("UPDATE alembic_version SET version_num = '0001'"),
         told="it was made by an older version"),
    Case("list --index my.index", before=sql("UPDATE alembic_version SET version_num = '9999'"),
         told="it was made by a newer version"),
    Case("list --index my.index", before=sql("UPDATE index_info SET format = 9"),
         told="it was made by a newer version, with another form of vectors"),
    Case("list --index my.index", before=sql("DROP TABLE alembic_version"),
         told="the table of versions was deleted"),
    Case("list --index my.index", before=_linked, told="write.lock is a link"),
    Case("list --index my.index", {"my.index/catalog.db-journal": "x"},
         told="a journal lies there"),
    Case("list --index my.index", {"my.index/catalog.url": "postgresql+psycopg://host/name"},
         told="catalog.url names a server that this user has not named"),
    Case("list --index my.index", {"my.index/catalog.url": "mysql://host/name"},
         told="catalog.url names another kind of database"),
    Case("migrate --index folder", {"folder/a": ""}),
    Case(f"{QUERY} --model model", before=_other_weights, told="the model has other weights",
         hide=r"(?<=differs \().*?(?=\);)"),
    Case(f"query --index bare.index {ASK}", before=_bare_alone,
         told="bare.index was pulled, and its model is not here"),
    Case("search --index bare.index word", before=_bare,
         told="bare.index was pushed with --no-rows"),
    Case(f"query --index bare.index {ASK} --exact", before=_bare,
         told="bare.index was pushed with --no-rows"),
    Case("verify --index my.index --repair", before=_locked, told="another process is writing",
         hide=r"(?<=by ).*?(?=: wait)"),
    Case(QUERY, before=_no_folder, told="a file is where the folder of segments was"),
    Case(QUERY, before=_derived("dot.json", lambda _: b"no JSON"),
         told="the note of a derived index was replaced", hide=r"(?<=damaged \().*?(?=\):)"),
    Case(QUERY, before=_derived("*.faiss", lambda data: data[:-9]), told="a derived index was cut"),
    Case(QUERY, before=_derived("*.faiss", None), told="a derived index was deleted"),
    Case(BUILD, {"rows.jsonl": ROW}, before=model_with(model_type="t5"),
         told="the model is an encoder-decoder"),
    Case(BUILD, {"rows.jsonl": ROW}, before=_without("model.safetensors"),
         told="the model has no weights", hide=r"(?<=model: ).*?(?=;)"),
    Case(BUILD, {"rows.jsonl": ROW}, before=_without("tokenizer.json"),
         told="the model has no tokenizer", hide=r"(?<=model: ).*?(?=;)"),
    Case(BUILD, {"rows.jsonl": ROW}, before=model_with(num_hidden_layers=9),
         told="the model has fewer layers than it says"),
    Case("build rows.jsonl --index new --model adapter",
         {"rows.jsonl": ROW, "adapter/adapter_config.json": "{}"}),
    Case("build rows.jsonl --index new --model adapter",
         {"rows.jsonl": ROW, "adapter/adapter_config.json": "no JSON"},
         hide=r"(?<=read \().*?(?=\):)"),
    Case("build rows.jsonl --index new --model adapter",
         {"rows.jsonl": ROW,
          "adapter/adapter_config.json": '{"base_model_name_or_path": "some/model"}'}),
    Case("build rows.jsonl --index new --model adapter --adapter adapter",
         {"rows.jsonl": ROW, "adapter/adapter_config.json": "{}"}),
    Case("build rows.jsonl --index new --model gguf",
         {"rows.jsonl": ROW, "gguf/a.gguf": "", "gguf/b.gguf": ""}),
]  # fmt: skip

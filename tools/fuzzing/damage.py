"""What may befall an index: flipped bits, edits of its catalogue and its JSON, and odd paths."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

LARGE = 2**31, 2**63 - 1, -(2**63), 10**18
NUMBERS: tuple[Any, ...] = (0, -1, 1, 2, 7, 64, *LARGE, 0.0, 1.5, -1e-30, 1e308, float("inf"))
TEXTS = (
    "",
    "x",
    "1",
    "a\0b",
    "\x1b[31m",
    "line\nline",
    "null",
    "[]",
    "{}",
    '{"a":',
    '{"image_blake2b":1}',
    "../outside/file.txt",
    "../../outside/index/segments/000000000000.faiss",
    "/etc/passwd",
    "x" * 5000,
    "é数😀",
)
BYTES = b"", b"\xff\xfe", b"\xc3", b"\0" * 100
VALUES: tuple[Any, ...] = (None, True, False, *NUMBERS, *TEXTS, *map(bytes, BYTES))
JSON_VALUES: tuple[Any, ...] = (None, True, [], {}, [1], {"a": 1}, 10**40, *NUMBERS, *TEXTS)
URLS = (
    "postgresql+psycopg://user@127.0.0.1:{port}/name?connect_timeout=2",
    "postgresql+psycopg://127.0.0.1:{port}/name?connect_timeout=2&password=secret",
    "postgresql+psycopg://user:secret@127.0.0.1:bad/name",
    "sqlite:///{outside}/index/catalog.db",
    "sqlite:///../outside/index/catalog.db",
    "sqlite:////etc/passwd",
    "mysql://127.0.0.1/name",
    "sqlite:///a\nb",
    "",
    "\0",
    "x",
)


def flip(index: Path, rng: random.Random) -> str:
    """Flips a bit of a file, of the catalogue's in half of all cases; says which."""
    files = sorted(path for path in index.rglob("*") if path.is_file())
    catalog = [path for path in files if path.name.startswith("catalog.db")]
    path = rng.choice(catalog if rng.random() < 0.5 else files)
    data = bytearray(path.read_bytes())
    place, bit = rng.randrange(max(1, len(data))), rng.randrange(8)
    if data:
        data[place] ^= 1 << bit
    else:
        data.append(1 << bit)
    path.write_bytes(data)
    return f"{path.relative_to(index)}: bit {bit} of byte {place} of {len(data)}"


# -- edits -------------------------------------------------------------------------------------


def edit(index: Path, rng: random.Random) -> str:
    """Edits the catalogue, or a JSON file in a sixth of all cases; says how."""
    files = [index / "checked.json", *(index / "derived").glob("*.json")]
    if rng.random() < 1 / 6:
        path = rng.choice(sorted(files))
        value, what = edited(json.loads(path.read_bytes()), rng)
        path.write_text(json.dumps(value))
        return f"{path.relative_to(index)}: {what}"
    with closing(sqlite3.connect(index / "catalog.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        while True:
            try:
                return _statement(connection, rng)
            except (sqlite3.Error, OverflowError):  # the tables refuse it: another one
                continue


def _statement(connection: sqlite3.Connection, rng: random.Random) -> str:
    names = connection.execute("SELECT type, name FROM sqlite_master ORDER BY name").fetchall()
    tables = sorted(name for kind, name in names if kind == "table")
    if rng.random() < 0.05:
        kinds = [(kind, name) for kind, name in names if not name.startswith("sqlite_")]
        kind, name = rng.choice(kinds)
        connection.execute(f'DROP {kind} "{name}"')
        return f"drop {kind} {name}"
    table = rng.choice(tables)
    columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
    rows = [row[0] for row in connection.execute(f'SELECT rowid FROM "{table}" ORDER BY 1')]
    row, other, way = rng.choice(rows), rng.choice(rows), rng.random()
    if way < 0.06:
        connection.execute(f'DELETE FROM "{table}" WHERE rowid = ?', (row,))
        return f"delete {table} {row}"
    names_of = ", ".join(f'"{name}"' for name in columns)
    if way < 0.12:  # a row twice, under another number and key where these must be so
        found = connection.execute(f'SELECT {names_of} FROM "{table}" WHERE rowid = ?', (row,))
        values = found.fetchone()
        changed = [
            rng.choice((1000, f"{value}'"))
            if name in ("id", "key", "name", "version_num") and rng.random() < 0.9
            else value
            for name, value in zip(columns, values, strict=True)
        ]
        marks = ", ".join("?" * len(columns))
        connection.execute(f'INSERT INTO "{table}" ({names_of}) VALUES ({marks})', changed)
        return f"a second {table} {row}"
    column = rng.choice(columns)
    found = connection.execute(f'SELECT "{column}" FROM "{table}" WHERE rowid = ?', (row,))
    value, what = _other_value(found.fetchone()[0], rng)
    if way < 0.2:
        found = connection.execute(f'SELECT "{column}" FROM "{table}" WHERE rowid = ?', (other,))
        value, what = found.fetchone()[0], f"that of {other}"
    cast = "CAST(? AS TEXT)" if isinstance(value, bytes) and rng.random() < 0.7 else "?"
    connection.execute(f'UPDATE "{table}" SET "{column}" = {cast} WHERE rowid = ?', (value, row))
    return f"{table} {row}: {column} = {what}{' as text' if cast != '?' else ''}"


def _other_value(value: Any, rng: random.Random) -> tuple[Any, str]:
    """Another value for a column: near the one that is there, or any."""
    way = rng.random()
    if isinstance(value, int | float) and way < 0.4:
        value = rng.choice((value + 1, value - 1, -value, 0, value * 2, value * 1.01))
    elif isinstance(value, str) and value[:1] in "{[" and way < 0.6:
        try:
            made, what = edited(json.loads(value), rng)
            return json.dumps(made, ensure_ascii=False, separators=(",", ":")), f"JSON with {what}"
        except ValueError:
            value += " "
    elif isinstance(value, str) and value and way < 0.5:
        place = rng.randrange(len(value))
        value = value[:place] + rng.choice("0a\"' ") + value[place + 1 :]
    else:
        value = rng.choice(VALUES)
    return value, repr(value)[:80]


def edited(value: Any, rng: random.Random, place: str = "") -> tuple[Any, str]:
    """A JSON value with one change somewhere, and the change in words."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        name = rng.choice(sorted(value) if isinstance(value, dict) else list(range(len(value))))
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        if rng.random() < 0.1:
            del copy[name]
            return copy, f"no {place}/{name}"
        copy[name], what = edited(value[name], rng, f"{place}/{name}")
        return copy, what
    if isinstance(value, dict) and rng.random() < 0.5:
        return value | {"another": 1}, f"{place}/another"
    made = rng.choice(JSON_VALUES)
    if type(value) in (int, float) and rng.random() < 0.4:
        made = rng.choice((value + 1, -value, 0, value * 2))
    return made, f"{place} = {repr(made)[:60]}"


# -- paths -------------------------------------------------------------------------------------


def odd_path(index: Path, rng: random.Random) -> str:
    """Puts a link, a pipe or a folder in the place of a file, or a URL there; says which."""
    outside = index.parent / "outside"
    items = [*index.iterdir(), *(index / "segments").iterdir(), *(index / "derived").iterdir()]
    path = rng.choice(sorted(items))
    name, way = path.relative_to(index), rng.random()
    if way < 0.25:
        url = rng.choice(URLS).format(outside=outside, port=(outside / "port").read_text())
        (index / "catalog.url").write_text(url)
        if rng.random() < 0.5:
            (index / "catalog.db").unlink()
        return f"catalog.url {url!r}, catalog.db {(index / 'catalog.db').exists()}"
    if way < 0.35:  # a file that is not there yet
        path = index / rng.choice(("rejects.jsonl.tmp", "checked.json.tmp", "catalog.db-wal"))
        path.symlink_to(outside / "file.txt")
        return f"{path.name} is a link to a file outside"
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if way < 0.75:
        path.symlink_to(outside / "index" / name)
        return f"{name} is a link to the same of another index"
    if way < 0.85:
        path.symlink_to(rng.choice((outside / "file.txt", outside / "no such", path)))
        return f"{name} is a link to {path.readlink().name}"
    if way < 0.92:
        os.mkfifo(path)
        return f"{name} is a pipe"
    path.mkdir()
    return f"{name} is a folder"

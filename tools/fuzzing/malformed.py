"""Rows and files that nobody meant to write, and what an index makes of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_index_asset as asset
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
from click.testing import CliRunner
from fuzzing.world import audited, differing, hits, listed, same, scored, told

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.cli import main
from forvalue_index.errors import ForvalueError, RowError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row

GOOD = 6  # rows of a file that anybody may add
BAD = 4  # that are damaged
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
PATHS = "../outside/file.txt", "file:///etc/passwd", "http://127.0.0.1:9/a.png", "/etc/passwd"
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\x1b[31mred",
    "=1+1",
    "\r\n",
    "é数😀" * 50,
    "x" * 20000,
    [],
    {},
    [None],
    [[[[]]]],
    {"": {}},
    {"image_blake2b": 1},
    {"image_blake2b": "0" * 32, "size": [1, 1]},
    [{"image_blake2b": None}],
    {"bytes": -1},
    {"bytes": 1.5},
    {"bytes": [300]},
    {"bytes": 10**12},
    {"bytes": PIXEL, "path": None},
    {"bytes": None, "path": "../outside/file.txt"},
    {"path": "/etc/passwd"},
    f"data:image/png;base64,{PIXEL}",
    "data:image/png;base64,!!",
    *PATHS,
    CHAT,
    [{"role": "user"}],
    [{"role": "assistant", "content": None}],
    [{"role": "system", "content": [{"type": "image"}]}, *CHAT],
    [{"role": "user", "content": [{"type": "text", "text": 1}]}, *CHAT],
    [{"role": 5, "content": {}}],
    [*CHAT, *CHAT],
    [CHAT[1]],
    '[{"role": "user", "content": "as text"}]',
)
NAMES = "prompt", "response", "id", "messages", "text", "image", "more", "\x1b[31m", "", "a\nb"
FORMATS = (
    FormatConfig(key_field="id"),
    FormatConfig(),
    FormatConfig(key_field="id", text_field="prompt"),
    FormatConfig(key_field="id", messages_field="messages", chat_template=TEMPLATE),
    FormatConfig(key_field="id", chat=True, chat_template=TEMPLATE),
    FormatConfig(key_field="id", template="{{ prompt }} {{ more.share * 2 }}"),
    FormatConfig(key_field="id", image_field="image"),
    FormatConfig(key_field="more"),
)


def good_rows() -> list[Row]:
    """Rows that can be used under each format."""
    rows = asset.training_rows()[:GOOD]
    return [row | {"id": f"good{row['n']}", "source": "file", "messages": CHAT} for row in rows]


def spoiled(row: Row, rng: random.Random) -> Any:
    """A row with something amiss."""
    row, way = {**row, "id": f"bad{rng.randrange(10**6)}"}, rng.random()
    if way < 0.06:
        return rng.choice(ODD)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice((*NAMES[:5], *row)) if rng.random() < 0.8 else rng.choice(NAMES)
        if rng.random() < 0.15:
            row.pop(name, None)
        elif rng.random() < 0.1:
            row[name] = nested(rng)
        else:
            row[name] = rng.choice(ODD)
    return row


def nested(rng: random.Random) -> Any:
    """A value that is many lists or objects deep."""
    value: Any = 1
    for _ in range(rng.choice((50, 400, 3000))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


# -- files -------------------------------------------------------------------------------------


def json_text(value: Any) -> str:
    """A value as JSON, however deep it is."""
    opening, closing = "", ""
    while isinstance(value, list | dict) and len(value) == 1:
        if isinstance(value, list):
            (value,), opening, closing = value, opening + "[", "]" + closing
        else:
            ((name, value),) = value.items()
            opening, closing = f"{opening}{{{json.dumps(name)}:", "}" + closing
    if isinstance(value, dict):
        items = (f"{json.dumps(name)}:{json_text(item)}" for name, item in value.items())
        return opening + "{" + ",".join(items) + "}" + closing
    return opening + json.dumps(value) + closing


def write(rows: list[Any], path: Path) -> list[Any]:
    """Writes rows in the form that the file's name says; returns those that it can hold."""
    suffix = path.suffixes[0]
    if suffix == ".jsonl":
        text = "\n".join(map(json_text, rows)) + "\n"
    elif suffix == ".json":
        text = "[" + ",".join(map(json_text, rows)) + "]"
    elif suffix == ".csv":
        out = io.StringIO()
        names = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
        writer = csv.writer(out)
        writer.writerow(names)
        for row in rows:
            if isinstance(row, dict):
                cells = (row.get(name, "") for name in names)
                writer.writerow(x if isinstance(x, str) else json_text(x) for x in cells)
        text = out.getvalue()
    else:
        return write_table(rows, path)
    data = text.encode(errors="surrogatepass")
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return rows


def depth_signs(value: Any) -> int:
    """How many lists and objects begin in a value."""
    return sum(map(json_text(value).count, "[{"))


def write_table(rows: list[Any], path: Path) -> list[Any]:
    """Writes those rows as a table that are of the same types as the ones before them."""
    kept: list[Row] = []
    for row in rows:
        if not isinstance(row, dict) or depth_signs(row) > 40:
            continue  # pyarrow takes minutes for what is very deep
        try:
            table_of([*kept, row], path)
        except (pa.ArrowException, OverflowError, UnicodeError, TypeError):
            continue
        kept.append(row)
    table_of(kept, path)  # the last that was refused may have left a part of it
    return kept


def table_of(rows: list[Row], path: Path) -> None:
    """Writes rows as a table."""
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        pyarrow.feather.write_feather(table, path, "uncompressed")


def damaged(path: Path, rng: random.Random) -> str:
    """Flips bits of a file, cuts it off or writes zeros into it; says what."""
    data, way = bytearray(path.read_bytes()), rng.random()
    if way < 0.2:
        del data[rng.randrange(len(data)) :]
    elif way < 0.3:
        place = rng.randrange(len(data))
        data[place : place + 16] = bytes(len(data[place : place + 16]))
    else:
        for _ in range(rng.choice((1, 1, 3, 20))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"{path.name} damaged"


# -- the trial ---------------------------------------------------------------------------------


def prepare(
    folder: Path, rng: random.Random
) -> tuple[str, Callable[[LanguageModel], tuple[list[str], bool]]]:
    """Returns what rows are to be added, in words, and what tries it in the folder's index."""
    good, rows = good_rows(), [*good_rows()]
    for row in rng.sample(good, BAD):
        rows.insert(rng.randrange(len(rows) + 1), spoiled(row, rng))
    kinds = ".jsonl", ".jsonl", ".json", ".csv", ".jsonl.gz", ".parquet", ".arrow"
    path = folder / "data" / f"rows{rng.choice(kinds)}"
    broken = rng.random() < (0.6 if path.suffix in (".parquet", ".arrow", ".gz") else 0.15)
    in_memory = not broken and rng.random() < 0.15
    format = rng.choice(FORMATS)
    what = f"{'rows in memory' if in_memory else path.name}, {format_words(format)}"
    if not in_memory:
        written = write(rows, path)
        good = [row for row in good if row in written]
        if broken:
            what += f", {damaged(path, rng)}"
    data: Any = rows if in_memory else path
    return what, lambda lm: tried(folder, lm, data, None if broken else good, format)


def format_words(format: FormatConfig) -> str:
    """What is special about a format."""
    plain = FormatConfig()
    names = ("key_field", "text_field", "messages_field", "chat", "template", "image_field")
    return ", ".join(
        f"{name}={getattr(format, name)}"
        for name in names
        if getattr(format, name) != getattr(plain, name)
    )


def tried(
    folder: Path, lm: LanguageModel, data: Any, good: list[Row] | None, format: FormatConfig
) -> tuple[list[str], bool]:
    """Adds rows to an index and makes one of them, stopping and skipping.

    Returns what may not be, and whether there was an error.
    """
    found: list[str] = []
    failed = False

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        nonlocal failed
        try:
            return work()
        except ForvalueError as error:
            failed = True
            if "\n" in str(error).strip():
                found.append(f"error of several lines: {name}: {str(error)!r}")
            return error
        except Exception as error:
            found.append(told(error, name))
            return error

    index = InfluenceIndex.open(folder / "index", model=lm)
    before, there = listed(index.rows()), len(index)
    attempt("add, stop", lambda: index.add(data))
    skipped = attempt("add, skip", lambda: index.add(data, on_error="skip"))
    if isinstance(skipped, RowError):
        found.append(f"a row is not skipped: add, skip: {skipped}")
    keys = {sample.key for sample in index.rows()}
    if good is not None and not isinstance(skipped, Exception):
        lost = sorted({row["id"] for row in good} - keys)
        found += [f"lost rows: add, skip: {lost} of a file"] if lost else []
    look(index, attempt, found)
    now = listed(index.rows())[:there]
    if not same(now, before):
        found.append(f"wrong answer: list after add: {differing(now, before)}")
    index.close()

    for on_error in ("stop", "skip"):
        new = folder / "new" / on_error

        def build(new: Path = new, on_error: str = on_error) -> InfluenceIndex:
            vector = VectorConfig(dim=16, sketch_dim=64)
            settings: dict[str, Any] = {"format": format, "vector": vector, "on_error": on_error}
            return InfluenceIndex.build(new, data, lm, **settings)[0]

        built = attempt(f"build, {on_error}", build)
        if isinstance(built, RowError) and on_error == "skip":
            found.append(f"a row is not skipped: build, skip: {built}")
        if isinstance(built, InfluenceIndex):
            look(built, attempt, found, format)
            built.close()
        elif new.exists() and any(new.iterdir()):
            found.append(f"left behind: build, {on_error}: {[p.name for p in new.iterdir()]}")
    return found, failed


def printed(directory: Path) -> None:
    """Lists an index for a person.

    Raises:
        ForvalueError: the command ended with an error.
    """
    done = CliRunner().invoke(main, ["list", "--index", str(directory), "--limit", "1000"])
    if done.exit_code == 1 and isinstance(done.exception, SystemExit):
        raise ForvalueError(done.output)
    if done.exception is not None:
        raise done.exception


def look(
    index: InfluenceIndex,
    attempt: Callable[[str, Callable[[], Any]], Any],
    found: list[str],
    format: FormatConfig | None = None,
) -> None:
    """Asks an index, whatever its rows are, and lets it verify itself."""
    which = "of the rows" if format else "after add"
    attempt(f"list {which}", lambda: listed(index.rows()))
    attempt(f"list by command {which}", lambda: printed(index.directory))
    where = attempt(f"where {which}", lambda: listed(index.rows("n<3")))
    keys = {row[1] for row in where} if isinstance(where, list) else None
    if format is None and keys is not None and not keys >= {"k0", "k1", "k2"}:
        found.append(f"wrong answer: where {which}: {sorted(keys)}")
    if format is None or not (format.messages_field or format.text_field or format.template):
        plain = FormatConfig()
        asked = asset.questions()
        attempt(f"query {which}", lambda: index.query(asked, 1000, flat=True, format=plain))
    attempt(f"audit {which}", lambda: audited(index) if len(index) > 2 else None)
    if format is None:
        attempt(f"score {which}", lambda: scored(index))
        attempt(f"query where {which}", lambda: hits(index, where="source=math"))
    problems = attempt(f"verify {which}", index.verify)
    if isinstance(problems, list) and problems:
        found.append(f"verify {which}: {problems[:3]}")

"""Index directories from somebody else: nothing outside of them is read, written or reached."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.faults import no_hang
from helpers.indexes import NEW, SETTINGS, every
from sqlalchemy import Connection
from sqlalchemy.engine import make_url

from forvalue_index import InfluenceIndex
from forvalue_index.catalog.address import name_catalog, require_named, shown
from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.digests import NO_SEGMENTS, seal_info, seal_segment, seal_state, xor
from forvalue_index.catalog.engine import make_engine, reading
from forvalue_index.catalog.lock import WriterLock
from forvalue_index.cli import main
from forvalue_index.errors import (
    CorruptIndexError,
    ForvalueError,
    InputError,
    LockedError,
    StorageError,
)
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Segment
from forvalue_index.search import backend
from forvalue_index.search.ann_files import read_info, write_info
from forvalue_index.search.backend import read_index

SECRET = "hunter2"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> Path:
    """An index with every file that an index can have."""
    path = tmp_path_factory.mktemp("pristine") / "index"
    rows = [{"id": f"row-{i}", "prompt": f"what {i}", "response": f" it {i}"} for i in range(30)]
    index, _ = InfluenceIndex.build(path, rows[:20], lm, **SETTINGS)
    with index:
        index.add([*rows[20:], {"id": "bad"}], on_error="skip")
        index.optimize("SQ8")
        index.query(rows[0])
        index.remove(["row-3"])
    for name in ("checked.json", "rejects.jsonl", "write.lock", "derived/dot.json"):
        assert (path / name).is_file()
    return path


@pytest.fixture
def received(tmp_path: Path, pristine: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "index"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody's, with names that an index's clean-up would take for its own."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("victim.faiss", "victim.tmp", "victim.json", "checked.json.1.tmp"):
        (folder / name).write_text(json.dumps({"pid": 1, "kept": "x" * 100}))
    return folder


def state(folder: Path) -> dict[str, Any]:
    """All that can be seen of a tree."""
    found: dict[str, Any] = {"": folder.stat().st_mtime_ns}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        data = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (stat.st_mtime_ns, stat.st_mode, stat.st_ino, data)
    return found


VERBS: dict[str, Callable[[InfluenceIndex], Any]] = {
    "query": lambda index: index.query(NEW, k=5),
    "list": lambda index: list(index.rows()),
    "info": lambda index: index.info(),
    "verify": lambda index: index.verify(),
    "remove": lambda index: index.remove(["row-5"]),
    "add": lambda index: index.add([NEW, {"id": "bad"}], on_error="skip"),
    "optimize": lambda index: index.optimize("SQ8"),
    "repair": lambda index: index.repair(),
    "compact": lambda index: index.compact(),
}


def edit(directory: Path, column: str, values: dict[str, Any]) -> None:
    """Changes what an index says of itself, under a checksum that fits."""
    columns = "config", "fingerprint", "created_at"
    with closing(sqlite3.connect(directory / "catalog.db")) as raw:
        found = raw.execute(f"SELECT {', '.join(columns)} FROM index_info").fetchone()
        texts = dict(zip(columns, found, strict=True))
        texts[column] = json.dumps(json.loads(texts[column]) | values)
        sealed = seal_info(*texts.values())
        raw.execute(f"UPDATE index_info SET {column} = ?, checksum = ?", [texts[column], sealed])
        raw.commit()


# -- links and special files -------------------------------------------------------------------

NAMES = (
    "write.lock", "catalog.db", "catalog.db-wal", "catalog.db-shm", "catalog.db-journal",
    "catalog.url", "checked.json", "rejects.jsonl", "rejects.jsonl.tmp", "vectoriser-*",
    "segments", "segments/000000000000.faiss", "segments/x.tmp",
    "derived", "derived/dot.json", "derived/dot-*.faiss", "derived/x.tmp",
)  # fmt: skip


def plant(directory: Path, name: str, kind: str, outside: Path) -> Path:
    """Puts a link or a pipe in the place of something in an index."""
    path = next(directory.glob(name), directory / name)
    target = outside / "target"
    if path.exists():
        shutil.move(path, target)
    else:
        target.write_text("kept")
    if target.is_dir():
        (target / "victim.faiss").write_text("kept")
        (target / "victim.tmp").write_text("kept")
    if kind == "link":
        path.symlink_to(target)
    elif kind == "dangling link":
        path.symlink_to(outside / "nothing")
    else:
        os.mkfifo(path)
    return path


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
@pytest.mark.parametrize("name", NAMES)
def test_an_index_with_a_link_or_a_special_file_is_refused(
    received: Path, outside: Path, lm: LanguageModel, name: str, kind: str
) -> None:
    path = plant(received, name, kind, outside)
    before, inside = state(outside), sorted(received.rglob("*"))

    def opened(verb: Callable[[InfluenceIndex], Any]) -> None:
        with InfluenceIndex.open(received, model=lm) as index:
            verb(index)

    ways: list[Callable[[], Any]] = [lambda verb=verb: opened(verb) for verb in VERBS.values()]
    ways += [
        lambda: InfluenceIndex.migrate(received),
        lambda: InfluenceIndex.build(received, [NEW], lm, **SETTINGS),
        lambda: InfluenceIndex.create(received, lm, **SETTINGS),
    ]
    with no_hang():
        for way in ways:
            with pytest.raises(ForvalueError) as error:
                way()
            # Where there is no catalogue, there is no index to refuse.
            missing = name == "catalog.db" and "index" in str(error.value)
            assert missing or "not empty" in str(error.value) or str(path) in str(error.value)
            assert state(outside) == before
    assert sorted(received.rglob("*")) == inside


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("catalog.db")])
def test_nothing_is_followed_that_is_put_into_an_open_index(
    received: Path, outside: Path, lm: LanguageModel, name: str, kind: str
) -> None:
    with InfluenceIndex.open(received, model=lm) as index, no_hang():
        plant(received, name, kind, outside)
        before = state(outside)
        for verb in VERBS.values():
            with suppress(ForvalueError):
                verb(index)
            assert state(outside) == before
        assert len(index) == 29  # no writer got as far as to change it


def test_an_index_may_itself_be_linked_to(
    received: Path, tmp_path: Path, lm: LanguageModel
) -> None:
    (tmp_path / "link").symlink_to(received)
    with InfluenceIndex.open(tmp_path / "link", model=lm) as index:
        for verb in VERBS.values():
            verb(index)
        assert index.verify() == []


def test_a_folder_in_the_place_of_a_file_is_an_error_or_passed_over(
    received: Path, lm: LanguageModel
) -> None:
    for name in ("x.tmp", "segments/x.tmp", "derived/x.tmp", "derived/x.json"):
        (received / name).mkdir()
    with InfluenceIndex.open(received, model=lm) as index:
        for verb in VERBS.values():
            with suppress(ForvalueError):
                verb(index)
    assert (received / "segments" / "x.tmp").is_dir()


# -- names in the catalogue and in what is derived ----------------------------------------------

BAD_NAMES = (
    "../../outside/victim.faiss", "/{outside}/victim.faiss", "victim\0.faiss", "victim.tmp", "..",
    "", ".faiss/../../outside/victim.faiss",
)  # fmt: skip


def sealed_anew(raw: sqlite3.Connection) -> None:
    """Makes the digests of segments those of what stands there, as one who forges them would."""
    seals = [NO_SEGMENTS]
    columns = "name, ntotal, bytes, sha256, created_at, retained_energy, figures, texts, removed"
    for id, *values in raw.execute(f"SELECT id, {columns} FROM segments").fetchall():
        seals.append(seal_segment(Segment(*values[:4]), *values[4:]))
        raw.execute("UPDATE segments SET checksum = ? WHERE id = ?", [seals[-1], id])
    [counted] = raw.execute("SELECT next_id, generation, live FROM index_info").fetchall()
    state = seal_state(*counted, xor(*seals))
    raw.execute("UPDATE index_info SET segments = ?, state = ?", [xor(*seals), state])


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_in_the_catalogue_leads_out_of_the_index(
    received: Path, outside: Path, lm: LanguageModel, name: str
) -> None:
    with closing(sqlite3.connect(received / "catalog.db")) as raw:
        bad = name.replace("/{outside}", str(outside))
        raw.execute("UPDATE segments SET name = ? WHERE id = 1", [bad])
        sealed_anew(raw)
        raw.commit()
    before = state(outside)
    with InfluenceIndex.open(received, model=lm) as index:
        for verb in ("query", "compact", "optimize"):
            with pytest.raises(CorruptIndexError, match=r"as a file in .*segments") as error:
                VERBS[verb](index)
            assert "\n" not in str(error.value)
        with suppress(CorruptIndexError):
            assert "as a file in" in " ".join(index.verify())
        with suppress(CorruptIndexError):
            index.repair()
    assert state(outside) == before


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_in_what_is_derived_leads_out_of_the_index(
    received: Path, outside: Path, lm: LanguageModel, name: str
) -> None:
    with InfluenceIndex.open(received, model=lm) as index:
        expected = every(index, NEW)
        index.add([NEW])  # so that it may be extended
    path = received / "derived" / "dot.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"file": name.replace("/{outside}", str(outside))}))
    before = state(outside)
    with InfluenceIndex.open(received, model=lm) as index:
        wrong = r"as a file in .*derived|dot.json is damaged"
        with pytest.raises(CorruptIndexError, match=wrong):
            index.query(NEW)
        assert re.search(wrong, " ".join(index.verify()))
        index.repair()
        assert state(outside) == before
        assert index.verify() == []
        assert len(every(index, NEW)) == len(expected) + 1


def test_a_derived_index_that_has_anothers_name_is_refused(received: Path) -> None:
    path = received / "derived" / "dot.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "cosine"}))
    with pytest.raises(CorruptIndexError, match=r"is damaged .name 'cosine'"):
        read_info(received / "derived", "dot")


def test_the_name_of_the_vectoriser_leads_nowhere_else(
    received: Path, outside: Path, lm: LanguageModel
) -> None:
    (received / "vectoriser-..").mkdir()
    shutil.copy(next(received.glob("vectoriser-*.safetensors")), outside / "v.safetensors")
    edit(received, "fingerprint", {"vectoriser": "../../outside/v"})
    with (
        InfluenceIndex.open(received, model=lm) as index,
        pytest.raises(CorruptIndexError, match="as a file in"),
    ):
        index.query(NEW)


def test_lists_that_a_faiss_file_has_elsewhere_are_not_opened(
    received: Path, outside: Path, lm: LanguageModel
) -> None:
    """FAISS would map the file that is named in its own, and write to it."""
    faiss, folder = backend.faiss(), received / "derived"
    info = read_info(folder, "dot")
    vectors = np.random.default_rng(0).normal(size=(info.ntotal, info.dim)).astype(np.float32)
    coarse = faiss.IndexFlatIP(info.dim)
    index = faiss.IndexIVFFlat(coarse, info.dim, 2, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    lists = faiss.OnDiskInvertedLists(2, index.code_size, str(outside / "lists"))
    index.replace_invlists(lists)
    index.add(vectors)
    file = folder / info.file
    faiss.write_index(index, str(file))
    shutil.copy(outside / "lists", folder / "lists")
    before = state(outside)
    maps = Path("/proc/self/maps")
    del index, lists
    for mapped in (True, False):
        with pytest.raises(RuntimeError):
            read_index(file, mapped=mapped)
        assert not maps.exists() or str(folder / "lists") not in maps.read_text()
    data = file.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    write_info(folder, replace(info, bytes=len(data), sha256=sha256))
    with InfluenceIndex.open(received, model=lm) as opened:
        with pytest.raises(CorruptIndexError, match="cannot be read"):
            opened.query(NEW)
        opened.repair()
        assert opened.verify() == []
    assert state(outside) == before


# -- the catalogue's server --------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A stranger's server."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        yield listening


def was_reached(listening: socket.socket) -> bool:
    try:
        listening.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def leads_to(directory: Path, url: str) -> None:
    for file in directory.glob("catalog.db*"):
        file.unlink()
    (directory / "catalog.url").write_text(url)


@pytest.mark.parametrize("empty", [False, True])
def test_no_directory_causes_a_connection(
    received: Path, server: socket.socket, lm: LanguageModel, empty: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PGPASSWORD", SECRET)
    port = server.getsockname()[1]
    url = f"postgresql+psycopg://u:{SECRET}@127.0.0.1:{port}/d?connect_timeout=2"
    leads_to(received, url)
    if empty:  # as what a killed build leaves
        for path in received.iterdir():
            if path.name != "catalog.url":
                path.unlink() if path.is_file() else shutil.rmtree(path)
        (received / "segments").mkdir()
    commands: list[tuple[str, ...]] = [
        ("info",), ("list",), ("verify",), ("verify", "--repair"), ("remove", "--key", "x"),
        ("compact",), ("migrate",), ("optimize",), ("query", "--text", "x"),
        ("export", "--vectors", str(received / "v"), "--rows", str(received / "r")),
    ]  # fmt: skip
    for command in commands:
        done = CliRunner().invoke(main, [*command, "--index", str(received)])
        assert done.exit_code == 1 and done.output.count("\n") == 1, done.output
        assert "you have not named on this machine" in done.output
        assert "set FORVALUE_CATALOG to this URL" in done.output and SECRET not in done.output
    for make in (InfluenceIndex.build, InfluenceIndex.create):
        arguments = ([NEW], lm) if make == InfluenceIndex.build else (lm,)
        with pytest.raises(ForvalueError):
            make(received, *arguments, **SETTINGS)
    assert not was_reached(server)


def test_a_server_that_was_named_is_reached(
    received: Path, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the test above could not fail."""
    pytest.importorskip("psycopg")
    url = f"postgresql+psycopg://u@127.0.0.1:{server.getsockname()[1]}/d?connect_timeout=2"
    leads_to(received, url)
    monkeypatch.setenv("FORVALUE_CATALOG", f"postgresql://other/d {url}")
    with pytest.raises(ForvalueError, match="cannot open the catalogue"):
        InfluenceIndex.open(received)
    assert was_reached(server)


FETCHING = """
import sys
from click.testing import CliRunner
from forvalue_index.cli import main
index, data, other = sys.argv[1:]
query = ["query", "--prompt", "a", "--response", "b", "--index"]
for command in (
    [*query, index], ["add", data, "--index", index], ["preview", data, "--index", index],
    [*query, other],
):
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1, done.output
    assert "the index names it, and it is not on this machine" in done.stderr, done.stderr
print("nothing was fetched", flush=True)
CliRunner().invoke(main, [*query, index, "--model", "stranger/model"])
"""


def test_no_directory_causes_a_model_to_be_fetched(
    received: Path, server: socket.socket, tmp_path: Path
) -> None:
    hub = f"http://127.0.0.1:{server.getsockname()[1]}"
    data, other = tmp_path / "rows.jsonl", tmp_path / "other"
    data.write_text(json.dumps(NEW) + "\n")
    shutil.copytree(received, other)
    with InfluenceIndex.open(received) as index:
        known = index.config.to_json()["model"]
    edit(received, "config", {"model": known | {"name": "stranger/model"}})
    edit(other, "config", {"model": known | {"adapters": ["stranger/adapter"]}})
    process = subprocess.Popen(
        [sys.executable, "-c", FETCHING, str(received), str(data), str(other)],
        env=os.environ | {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_TOKEN": SECRET},
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"nothing was fetched\n"
        assert not was_reached(server)
        server.settimeout(60)  # what the user named is asked for
        server.accept()[0].close()
        process.kill()


NAMED = "postgresql+psycopg://me@db.example:5432/rows?sslmode=verify-full"


@pytest.mark.parametrize(
    "url",
    [
        NAMED.replace("db.example", "evil.example"),
        NAMED.replace("5432", "5433"),
        NAMED.replace("/rows", "/other"),
        NAMED.replace("me@", "postgres@"),
        NAMED.replace("verify-full", "disable"),
        NAMED.replace("?sslmode=verify-full", ""),
        *(
            f"{NAMED}&{more}"
            for more in (
                "host=evil.example", "hostaddr=127.0.0.1", "service=evil", "port=1", "dbname=x",
                "passfile=/etc/passwd", "sslkey=/etc/passwd", "options=-c%20x", "user=postgres",
            )
        ),
    ],
)  # fmt: skip
def test_all_of_a_url_must_be_what_was_named(tmp_path: Path, url: str) -> None:
    name_catalog(NAMED)
    assert shown(require_named(NAMED, tmp_path)) == NAMED
    assert require_named(NAMED.replace("me@", "me:pw@"), tmp_path).password == "pw"
    with pytest.raises(InputError, match="have not named on this machine"):
        require_named(url, tmp_path)


def test_what_was_named_is_for_its_user_alone_and_has_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for host in ("one", "two", "one"):
        name_catalog(f"postgresql://me:{SECRET}@{host}/d?password={SECRET}")
    file = tmp_path / "forvalue" / "catalogs"
    assert file.read_text() == "postgresql://me@one/d\npostgresql://me@two/d\n"
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("url", ["sqlite:///{}/other.db", "mysql://u@h/d", "no URL", ""])
def test_the_file_of_a_url_names_postgresql(
    received: Path, outside: Path, lm: LanguageModel, url: str, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(received / "catalog.db")) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")
    shutil.copy(received / "catalog.db", outside / "other.db")
    leads_to(received, url.format(outside))
    before = state(outside)
    for way in (InfluenceIndex.open, InfluenceIndex.migrate):
        with pytest.raises(InputError, match="write postgresql"):
            way(received)
    with pytest.raises(InputError, match="write postgresql"):
        InfluenceIndex.create(tmp_path / "new", lm, catalog=url.format(outside))
    assert state(outside) == before and not (tmp_path / "new").exists()


def test_a_postgresql_index_is_opened_by_who_names_its_server(
    tmp_path: Path, lm: LanguageModel, postgres_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers import postgres

    with postgres.database(postgres_server) as plain:
        url = plain.replace("tester@", f"tester:{SECRET}@")
        path = tmp_path / "index"
        index, _ = InfluenceIndex.build(path, [NEW], lm, catalog=url, **SETTINGS)
        index.close()
        with pytest.raises(
            ForvalueError, match=r"keeps its rows in .*, not in postgresql://other/d"
        ):
            InfluenceIndex.build(path, [NEW], lm, catalog="postgresql://other/d", **SETTINGS)
        shown_texts = []
        for command in ("info", "list", "verify", "compact"):
            shown_texts.append(CliRunner().invoke(main, [command, "--index", str(path)]).output)
        assert SECRET not in "".join(shown_texts) and "tester@" in shown_texts[0]
        for file in path.rglob("*"):
            if file.is_file() and file.name != "catalog.url":
                assert SECRET.encode() not in file.read_bytes()
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another machine"))
        with pytest.raises(InputError, match="have not named") as error:
            InfluenceIndex.open(path)
        told = str(error.value).split(" leads to ")[1].split(",")[0]
        monkeypatch.setenv("FORVALUE_CATALOG", told)
        with InfluenceIndex.open(path, model=lm) as index:
            assert len(index) == 1


# -- SQLite ------------------------------------------------------------------------------------


def test_reading_changes_nothing_of_a_catalogue(received: Path, lm: LanguageModel) -> None:
    file = received / "catalog.db"
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")
    before = file.read_bytes()
    with InfluenceIndex.open(received, model=lm) as index:
        for verb in ("query", "list", "info", "verify"):
            VERBS[verb](index)
    assert file.read_bytes() == before
    with InfluenceIndex.open(received, model=lm) as index:
        index.remove(["row-5"])
    assert file.read_bytes()[18:20] == b"\2\2"  # a write-ahead log from now on


def test_a_catalogue_never_has_a_journal(tmp_path: Path) -> None:
    """One from somebody else is refused: SQLite deletes the file that it names."""
    file = tmp_path / "catalog.db"
    seen: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        execute = Connection.exec_driver_sql

        def looking(connection: Connection, statement: str, *rest: Any) -> Any:
            result = execute(connection, statement, *rest)
            seen.append(Path(f"{file}-journal").exists())
            return result

        patch.setattr(Connection, "exec_driver_sql", looking)
        with Catalog.create(f"sqlite:///{file}", {}, {}) as catalog:
            catalog.set_fingerprint({"a": 1})
    assert seen and not any(seen)
    engine = make_engine(f"sqlite:///{file}")
    with reading(engine) as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA trusted_schema").scalar() == 0
    engine.dispose()


def test_a_journal_that_names_a_file_elsewhere_is_not_followed(
    received: Path, outside: Path, lm: LanguageModel
) -> None:
    with closing(sqlite3.connect(received / "catalog.db")) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")
    victim = str(outside / "victim.json").encode()
    magic = bytes.fromhex("d9d505f920a163d7")
    size = (received / "catalog.db").stat().st_size
    header = magic + struct.pack(">IIIII", 0, 0, size // 4096, 512, 4096)
    tail = struct.pack(">I", 1) + victim + struct.pack(">II", len(victim), sum(victim)) + magic
    (received / "catalog.db-journal").write_bytes(header.ljust(512, b"\0") + tail)
    before = state(outside)
    shutil.copytree(received, received.with_name("copy"))
    for way in (InfluenceIndex.open, InfluenceIndex.migrate):
        with pytest.raises(CorruptIndexError, match="which an index never has"):
            way(received)
    assert state(outside) == before
    with closing(sqlite3.connect(received.with_name("copy") / "catalog.db")) as raw:
        raw.execute("SELECT * FROM segments").fetchall()
    assert not (outside / "victim.json").exists()  # which is what SQLite does


# -- passwords ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"u:{SECRET}@host/d",
        f"mysql://u:{SECRET}@host/d",
        f"postgresql://u:{SECRET}@host:port/d",
        f"postgresql://u:a/{SECRET}@host/d",
        f"postgresql+psycopg://u@127.0.0.1:1/d?password={SECRET}",
        f"postgresql+psycopg://u:{SECRET}@127.0.0.1:1/d?no_such_option=1",
        f"postgresql+none://u:{SECRET}@host/d",
        f"host=127.0.0.1 password={SECRET}",
        f"postgresql+psycopg://u:{SECRET}@127.0.0.1:1/d\n?x=y",
    ],
)
def test_no_error_shows_a_password(
    tmp_path: Path, model_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(NEW) + "\n")
    command = ["build", str(data), "--index", str(tmp_path / "i"), "--model", str(model_dir)]
    done = CliRunner().invoke(main, [*command, "--catalog", url])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert done.output.splitlines()[-1].startswith("Error: ") and SECRET not in done.output
    assert not (tmp_path / "i").exists()
    for file in (tmp_path / "config").rglob("*"):
        assert not file.is_file() or SECRET not in file.read_text()


def test_the_lock_tells_the_next_writer_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["build", "rows.jsonl", "--catalog", f"postgresql://u:{SECRET}@h/d"]
    monkeypatch.setattr("sys.argv", ["/usr/bin/forvalue", *arguments])
    with WriterLock(tmp_path):
        file = tmp_path / "write.lock"
        assert SECRET not in file.read_text()
        with pytest.raises(LockedError, match=r"\(forvalue build, since"):
            WriterLock(tmp_path).acquire()
    monkeypatch.setattr("sys.argv", ["/home/me/train.py", SECRET])
    with WriterLock(tmp_path), pytest.raises(LockedError, match=r"\(train\.py, since"):
        WriterLock(tmp_path).acquire()


def test_a_group_may_write_where_the_umask_says_so(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with WriterLock(tmp_path):
            assert (tmp_path / "write.lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


def test_a_user_without_a_home_has_named_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(InputError, match="have not named on this machine"):
        require_named(NAMED, tmp_path)
    with pytest.raises(StorageError, match=r"no home directory\): set FORVALUE_CATALOG"):
        name_catalog(NAMED)


def test_a_url_as_people_see_it_has_no_password() -> None:
    url = make_url(
        f"postgresql://u:{SECRET}@h/d?sslpassword={SECRET}&Password=x&passwd=x&sslmode=require"
    )
    assert shown(url) == "postgresql://u@h/d?sslmode=require"


# -- errors on one line ------------------------------------------------------------------------


def test_an_error_is_one_line_that_commands_no_terminal() -> None:
    error = InputError("a \n\n b\r\nc \x1b[31md \x9b e\t\u2028f \u202e\udc80")
    assert str(error) == r"a b c \x1b[31md \x9b e\t f \u202e\udc80".replace(r"e\t f", "e f")
    assert str(InputError(f"postgresql://u:{SECRET}@h/d and http://x:1/y")) == (
        "postgresql://u:***@h/d and http://x:1/y"
    )


def test_control_characters_of_names_do_not_reach_the_terminal(
    received: Path, tmp_path: Path
) -> None:
    data = tmp_path / "a\x1b[31m\nb.jsonl"
    for command in (
        ["build", str(data), "--index", str(tmp_path / "i"), "--model", "m"],
        ["build", "x", "--index", str(data), "--model", "m", f"\x1b]0;{data}\x07.jsonl"],
        ["list", "--index", str(received), "--where", "a\x1b[2J\nb=1"],
        ["info", "--index", str(tmp_path / "n\x1b[2J\nx")],
        ["info\x1b[2J"],
        ["info", "--index", str(received), "x\x1b[2J\nb"],
    ):
        done = CliRunner().invoke(main, command)
        assert done.exit_code in (1, 2)
        assert "\x1b" not in done.output and "\x07" not in done.output
        assert re.fullmatch(r"(Usage: .*\nTry .*\n\n)?Error: .*\n", done.output), done.output


def test_control_characters_in_what_verify_finds_do_not_reach_the_terminal(received: Path) -> None:
    (received / "x\x1b[2J\ny.tmp").touch()
    for options in ([], ["--repair"]):
        done = CliRunner().invoke(main, ["verify", "--index", str(received), *options])
        assert r"x\x1b[2J" in done.output and "\x1b" not in done.output


def test_warnings_are_shown_once_and_command_no_terminal(
    received: Path, lm: LanguageModel, model_dir: Path
) -> None:
    path = received / "derived" / "dot.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"segments": {"\x1b[2J\n.faiss": "x"}}))
    for _ in range(2):
        command = ["query", "--index", str(received), "--model", str(model_dir)]
        done = CliRunner().invoke(main, [*command, "--prompt", "a", "--response", "b"])
        assert done.exit_code == 0, done.output
        assert done.stderr.count(r"segment \x1b[2J .faiss, which no longer exists") == 1
        assert "\x1b" not in done.output

"""Data files by URL: with fsspec's own memory, and from a server on this machine."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from forvalue_index.data.sources import open_rows
from forvalue_index.errors import DependencyError, InputError
from forvalue_index.records import Row

ROWS: list[Row] = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture
def memory() -> Iterator[None]:
    files = fsspec.filesystem("memory")
    files.pipe({"/data/a.jsonl": LINES, "/data/b.jsonl.gz": gzip.compress(LINES)})
    yield
    files.rm("/data", recursive=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "rows.jsonl").write_bytes(LINES)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


def rows_of(*urls: str, allow_remote: bool = False) -> list[Row]:
    return [row for _, row in open_rows(list(urls), allow_remote=allow_remote)]


def test_urls_and_patterns_are_read_twice_alike(memory: None) -> None:
    assert rows_of("memory://data/a.jsonl") == ROWS
    opened = open_rows("memory://data/*")
    assert [row for _, row in opened] == [row for _, row in opened] == ROWS * 2
    assert {place.rpartition(":")[0] for place, _ in opened} == {
        "memory:///data/a.jsonl",
        "memory:///data/b.jsonl.gz",
    }


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert rows_of(f"file://{tmp_path}/a.jsonl") == ROWS


def test_nothing_is_connected_unasked(server: str) -> None:
    for url in (f"{server}/rows.jsonl", "s3://bucket/a.jsonl", "hf://datasets/a/b/*.parquet"):
        with pytest.raises(InputError, match=r"not on this machine: give --allow-remote"):
            open_rows(url)


def test_a_server_s_file_is_read(server: str) -> None:
    assert rows_of(f"{server}/rows.jsonl?token=1", allow_remote=True) == ROWS
    with pytest.raises(InputError, match=r"nothing\.jsonl cannot be read .*404"):
        rows_of(f"{server}/nothing.jsonl", allow_remote=True)


def test_what_cannot_be_read_is_named(memory: None) -> None:
    with pytest.raises(InputError, match=r"memory://data/c\.jsonl cannot be read .*FileNotFound"):
        rows_of("memory://data/c.jsonl")
    with pytest.raises(InputError, match="no file matches"):
        rows_of("memory://data/x*.jsonl")
    with pytest.raises(InputError, match=r"data/a\.bin: unknown kind of file"):
        rows_of("memory://data/a.bin")
    with pytest.raises((InputError, DependencyError), match="nosuch"):
        rows_of("nosuch://a/b.jsonl", allow_remote=True)

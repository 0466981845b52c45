"""The server while the index, the decisions or its clients change under what it works on."""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import extract_stack
from typing import Any

import pytest
from helpers.browser import served as listening
from helpers.indexes import SMALL
from starlette.testclient import TestClient
from test_ask import CHAT
from test_serve import ASKED, OURS, assert_error, wait_until
from test_serve_api import TARGETS, ended
from uvicorn.protocols.http.h11_impl import H11Protocol

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.errors import ModelError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.server import review, tables
from forvalue_index.server.app import create_app
from forvalue_index.server.lane import GoneError, Stop
from forvalue_index.server.serve import http_server


@pytest.fixture
def served(index: InfluenceIndex) -> Iterator[TestClient]:
    with TestClient(create_app(index, OURS, allow_write=True)) as client:
        yield client


def left(address: str, path: str, after: Callable[[], bool], body: bytes = b"") -> None:
    """Asks for a path, and goes away without an answer when something has happened."""
    method = "POST" if body else "GET"
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head.encode() + body)
        wait_until(after)


def test_a_file_that_nobody_waits_for_is_removed(
    index: InfluenceIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    written: list[Path] = []
    write_rows = tables.write_rows

    def slow(file: Path, rows: Any) -> None:
        write_rows(file, rows)
        written.append(file)
        time.sleep(1)  # longer than it takes to see that the client has gone

    monkeypatch.setattr(tables, "write_rows", slow)
    with listening(index) as address:
        left(address, "/api/export?format=csv", lambda: bool(written))
        wait_until(lambda: not any(folder.iterdir()))
    assert written[0].is_relative_to(folder)


@pytest.mark.parametrize("more", [{"exact": True}, {"highlight": True}])
def test_who_leaves_a_long_run_of_the_model_ends_it(
    index: InfluenceIndex, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[str] = []
    check = Stop.check

    def slow(stop: Stop) -> None:
        inside = any(frame.name in ("scores", "contributions") for frame in extract_stack())
        if inside:
            batches.append("one")
            time.sleep(0.5)  # as a batch of a large model takes
        try:
            check(stop)
        except GoneError:
            if inside:
                batches.append("ended")
            raise

    monkeypatch.setattr(Stop, "check", slow)
    body = json.dumps(ASKED | more).encode()
    with listening(index) as address:
        left(address, "/api/query", lambda: bool(batches), body)
        wait_until(lambda: "ended" in batches)


def test_a_result_whose_rows_are_gone_says_so(served: TestClient, index: InfluenceIndex) -> None:
    job = ended(served, served.post("/api/score", json={"targets": TARGETS, "k": 3}))
    place = f"/api/jobs/{job['id']}"
    index.remove(where="n<5")
    index.compact()
    assert served.get(f"{place}/result").json()["samples"] == 30
    assert_error(served.get(f"{place}/rows"), 409, "removed from the index since")


def test_decisions_of_two_servers_are_kept_together(
    served: TestClient, index: InfluenceIndex
) -> None:
    with TestClient(create_app(index, OURS, allow_write=True)) as other:
        for client, key in ((served, "row-1"), (other, "row-2"), (served, "row-3")):
            answer = client.put("/api/decisions", json={"key": key, "decision": "drop"})
        assert answer.json()["counts"]["drop"] == 3
        assert other.get("/api/decisions/drop.txt").text.split() == ["row-1", "row-2", "row-3"]
    folder = index.directory / "review"
    assert (folder / "drop.txt").read_text() == "row-1\nrow-2\nrow-3\n"
    (folder / "decisions.jsonl").rename(folder / "done.jsonl")
    assert served.get("/api/decisions").json()["decisions"] == []


def test_decisions_are_no_more_than_can_be_read_again(
    served: TestClient, index: InfluenceIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = {"key": "row-1", "decision": "drop", "note": "n" * 500}
    monkeypatch.setattr(review, "LARGEST", 1000)
    assert served.put("/api/decisions", json=decision).status_code == 200
    answer = served.put("/api/decisions", json=decision | {"key": "row-2"})
    assert_error(answer, 413, "act on them first")
    assert served.get("/api/decisions").json()["counts"]["drop"] == 1
    review.Review(index.directory, None, writable=True)


def test_a_model_that_is_there_later_is_told_as_ready(
    index: InfluenceIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lm(_: InfluenceIndex) -> LanguageModel:
        raise ModelError("its folder is not there yet")

    with monkeypatch.context() as patched:
        patched.setattr(InfluenceIndex, "lm", property(lm))
        client = TestClient(create_app(index, OURS))
        client.__enter__()
        wait_until(lambda: client.get("/api/health").json()["model"] == "failed")
    assert client.post("/api/query", json=ASKED).status_code == 200
    assert client.get("/api/health").json()["model"] == "ready"
    client.__exit__(None, None, None)


def test_headers_without_an_end_are_refused(index: InfluenceIndex) -> None:
    """Also where httptools is installed, which reads all that comes."""
    server = http_server(create_app(index, OURS))
    server.config.load()
    assert server.config.http_protocol_class is H11Protocol


def test_characters_of_the_answer_of_a_conversation(tmp_path: Path, lm: LanguageModel) -> None:
    rows = [{"id": str(n), "prompt": f"q {n}", "response": f"a {n}"} for n in range(6)]
    format = FormatConfig(key_field="id", chat=True, chat_template=CHAT)
    said = "user one user"
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "so"}]
    prompt = [*turns, {"role": "user", "content": said}]
    with (
        InfluenceIndex.build(tmp_path / "i", rows, lm, format=format, vector=SMALL)[0] as index,
        TestClient(create_app(index, OURS)) as client,
    ):
        row = {"prompt": prompt, "response": said}
        whole = client.post("/api/query", json={"row": row, "highlight": True}).json()
        parts = {}
        for start, stop in ((0, 4), (5, 8), (9, 13)):
            asked = {"row": row, "characters": [start, stop]}
            answer = client.post("/api/query", json=asked)
            by_tokens = client.post("/api/query", json={"row": row, "tokens": [start, stop]})
            parts[start] = answer.json()
            assert answer.json() == by_tokens.json()
        assert parts[0] != parts[9] != whole


def test_characters_are_not_looked_for_in_special_tokens(tmp_path: Path, lm: LanguageModel) -> None:
    """The end token, which is scored, has letters, too."""
    end = lm.tokenizer.eos_token
    response = end.strip("<>/|")
    assert len(response) > 0
    rows = [{"id": str(n), "prompt": f"q {n}", "response": f" a {n}"} for n in range(6)]
    format = FormatConfig(key_field="id", eos=True)
    with (
        InfluenceIndex.build(tmp_path / "i", rows, lm, format=format, vector=SMALL)[0] as index,
        TestClient(create_app(index, OURS)) as client,
    ):
        asked = {"prompt": "q", "response": response}
        by_characters = client.post("/api/query", json=asked | {"characters": [0, 1]})
        by_tokens = client.post("/api/query", json=asked | {"tokens": [0, 1]})
        assert by_characters.json() == by_tokens.json()

"""The server: what it answers, whom it lets in, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import pytest
import uvicorn
from helpers.cli import assert_one_line, run, run_well, write
from helpers.indexes import NEW, SETTINGS, SMALL
from helpers.tiny_vision import index_of, png, save
from starlette.testclient import TestClient

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row
from forvalue_index.server import guard, replies
from forvalue_index.server.app import create_app
from forvalue_index.server.guard import Admission
from forvalue_index.server.lane import Lane, Stop
from forvalue_index.server.serve import is_loopback, token_for

OURS = Admission({"testserver"})
TOKEN = "a-token-of-24-characters"
ASKED = {"prompt": "a b", "response": " c"}
HOSTILE: list[Row] = [
    {
        "id": "<script>alert(1)</script>",
        "prompt": "<img src=x onerror=alert(1)>",
        "response": "</b>",
    },
    {"id": "control", "prompt": "\x00\x1b[31m\u202e", "response": "\x07 bell \ufeff"},
    {"id": "long", "prompt": "a", "response": "b" * 1_000_000},
    {"id": "a/../b?c#d&e", "prompt": "nan", "response": " x", "n": float("nan")},
]


@pytest.fixture
def served(index: InfluenceIndex) -> Iterator[TestClient]:
    with TestClient(create_app(index, OURS)) as client:
        yield client


def printed(index: InfluenceIndex, *arguments: Any) -> list[Any]:
    command, *others = arguments
    out = run_well(command, *others, "--index", index.directory, "--json")
    return [json.loads(line) for line in out.splitlines()]


def events_of(text: str) -> list[tuple[str, Any]]:
    found = []
    for part in text.split("\n\n")[:-1]:
        event, data = part.split("\n")
        found.append((event.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def assert_error(response: httpx.Response, status: int, words: str) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    assert words in response.json()["error"] and "\n" not in response.json()["error"]


# -- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ([], {}),
        (["-k", "3", "--opponents"], {"k": 3, "opponents": True}),
        (["--metric", "hybrid"], {"metric": "hybrid"}),
        (["--metric", "cosine", "--exact"], {"metric": "cosine", "exact": True}),
        (["--where", "n<5", "--where", "n!=3"], {"where": ["n<5", "n!=3"]}),
        (["--highlight"], {"highlight": True}),
        (["--tokens", "0:1"], {"tokens": [0, 1]}),
        (["--span", "c"], {"span": "c"}),
    ],
)
def test_query_answers_what_the_command_prints(
    served: TestClient, index: InfluenceIndex, options: list[str], more: dict[str, Any]
) -> None:
    expected = printed(index, "query", "--prompt", "a b", "--response", " c", *options)
    answer = served.post("/api/query", json=ASKED | more)
    assert len(expected) > 0
    assert answer.json()["hits"] == approximate(expected)
    replies.HitsAnswer.model_validate_json(answer.content)


def approximate(value: Any) -> Any:
    """JSON values whose numbers may differ as those of two processes do."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-4, abs=1e-5)
    if isinstance(value, dict):
        return {name: approximate(item) for name, item in value.items()}
    return [approximate(item) for item in value] if isinstance(value, list) else value


def test_the_other_verbs_answer_what_their_commands_print(
    served: TestClient, index: InfluenceIndex, rows: list[Row]
) -> None:
    word = rows[4]["prompt"].split()[0]
    answer = served.get("/api/search", params={"words": word, "k": 3})
    assert answer.json()["hits"] == printed(index, "search", word, "-k", 3)
    assert answer.json()["hits"][0]["key"] == "row-4"

    answer = served.get("/api/rows", params={"after": 3, "limit": 4, "where": ["n<8"]})
    expected = printed(index, "list", "--after", 3, "--limit", 4, "--where", "n<8")
    assert answer.json() == {"rows": expected, "more": False, "total": 8}
    assert served.get("/api/rows", params={"limit": 29}).json()["more"] is True
    replies.RowsAnswer.model_validate_json(answer.content)

    answer = served.get("/api/row", params={"key": "row-7"})
    assert [answer.json()] == printed(index, "show", "row-7")

    answer = served.post("/api/explain", json=ASKED | {"key": "row-7"})
    command = ("explain", "--prompt", "a b", "--response", " c", "--key", "row-7")
    assert [answer.json()] == [approximate(value) for value in printed(index, *command)]
    replies.ExplainAnswer.model_validate_json(answer.content)
    short = served.post("/api/explain", json=ASKED | {"key": "row-7", "terms": False}).json()
    assert short == {name: v for name, v in answer.json().items() if name != "terms"}


def test_ask_streams_what_the_command_prints(served: TestClient, index: InfluenceIndex) -> None:
    [expected] = printed(index, "ask", "--prompt", "a b", "--max-new-tokens", 6, "-k", 3)
    asked = {"prompt": "a b", "max_new_tokens": 6, "k": 3}
    answer = served.post("/api/ask", json=asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *tokens, whole, hits = events_of(answer.text)
    assert hits[0] == "hits" and hits[1] == approximate(expected)
    assert whole[0] == "answer" and whole[1]["row"] == expected["row"]
    assert {name for name, _ in tokens} == {"token"}
    assert "".join(data["text"] for _, data in tokens) == whole[1]["response"]


def test_characters_name_the_tokens_that_hold_them(served: TestClient) -> None:
    """Of bytes as tokens, the characters of a response are its tokens, one for one."""
    asked = {"prompt": "q", "response": " one two one"}
    for start, stop in ((1, 4), (9, 12), (0, 12)):
        by_characters = served.post("/api/query", json=asked | {"characters": [start, stop]})
        by_tokens = served.post("/api/query", json=asked | {"tokens": [start, stop]})
        assert by_characters.json() == by_tokens.json()
    first, last = (
        served.post("/api/query", json=asked | {"characters": part}).json()
        for part in ([1, 4], [9, 12])
    )
    assert first != last
    for part in ([12, 12], [5, 3], [40, 50], [-9, 0]):
        answer = served.post("/api/query", json=asked | {"characters": part})
        assert_error(answer, 422, "are not among the tokens that are scored")


def test_readers_see_what_another_writer_adds(
    served: TestClient, index: InfluenceIndex, lm: LanguageModel
) -> None:
    assert_error(served.get("/api/row", params={"key": "new"}), 404, "no row has this key")
    with InfluenceIndex.open(index.directory, model=lm) as other:
        other.add([NEW])
    assert served.get("/api/row", params={"key": "new"}).json()["row"] == NEW
    hits = served.post("/api/query", json={"prompt": "a", "response": "b", "k": 200}).json()["hits"]
    assert "new" in {hit["key"] for hit in hits} and len(hits) == 31
    assert served.get("/api/info").json()["samples"] == 31


def test_no_answer_names_a_place_of_the_machine(served: TestClient, index: InfluenceIndex) -> None:
    info = served.get("/api/info").json()
    assert info["samples"] == 30 and info["fields"] == ["id", "prompt", "response", "n"]
    answers = [
        json.dumps(info),
        served.get("/api/row", params={"key": "no"}).text,
        served.get("/api/rows", params={"where": "none=1"}).text,
        served.post("/api/query", json=ASKED | {"span": "none"}).text,
    ]
    place = str(index.directory.parent)
    model = index.config.model.name
    assert place.startswith("/") and not any(place in answer for answer in answers)
    assert not model.startswith("/") or not any(model in answer for answer in answers)


def test_a_fault_of_the_index_is_told_without_its_place(
    served: TestClient, index: InfluenceIndex
) -> None:
    for segment in (index.directory / "segments").iterdir():
        segment.write_bytes(b"damaged")
    answer = served.post("/api/query", json=ASKED)
    assert_error(answer, 500, "CorruptIndexError")
    assert str(index.directory) not in answer.text


@pytest.fixture
def hostile(tmp_path: Path, lm: LanguageModel) -> Iterator[TestClient]:
    with (
        InfluenceIndex.build(tmp_path / "hostile", HOSTILE, lm, **SETTINGS)[0] as index,
        TestClient(create_app(index, OURS)) as client,
    ):
        yield client


def test_hostile_rows_are_data(hostile: TestClient) -> None:
    stored = hostile.get("/api/rows").json()["rows"]
    assert [row["key"] for row in stored] == [row["id"] for row in HOSTILE]
    assert [row["row"] for row in stored[:3]] == HOSTILE[:3]
    assert stored[3]["row"]["n"] is None  # NaN, which JSON does not have
    for row in HOSTILE:
        answer = hostile.get("/api/row", params={"key": row["id"]})
        assert answer.json()["key"] == row["id"]
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
    hits = hostile.post("/api/query", json=ASKED | {"highlight": True}).json()["hits"]
    assert len(hits) == 4


def test_pictures_are_told_by_hash_and_size_alone(tmp_path: Path) -> None:
    rows = []
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        rows.append({"id": f"r{number}", "prompt": "a", "response": "bc", "image": f"{number}.png"})
    rows[5]["image"] = base64.b64encode(png(5)).decode()
    data, model = write(tmp_path / "rows.jsonl", rows), save(tmp_path / "model", "llava")
    with (
        index_of(tmp_path / "index", data, model) as index,
        TestClient(create_app(index, OURS)) as client,
    ):
        answers = [
            client.get("/api/rows"),
            client.get("/api/search", params={"words": "bc"}),
            client.post("/api/query", json={"prompt": "a", "response": "b", "highlight": True}),
        ]
        pictures = [each["row"]["image"] for each in answers[0].json()["rows"]]
        assert [sorted(picture) for picture in pictures] == [["image_blake2b", "size"]] * 6
        assert len(answers[1].json()["hits"]) == len(answers[2].json()["hits"]) == 6
        assert not any(str(tmp_path) in answer.text for answer in answers)
        assert not any(rows[5]["image"] in answer.text for answer in answers)


def test_plain_text_is_asked_about(tmp_path: Path, lm: LanguageModel, rows: list[Row]) -> None:
    texts = [{"text": row["prompt"]} for row in rows]
    format = FormatConfig(text_field="text")
    with (
        InfluenceIndex.build(tmp_path / "i", texts, lm, format=format, vector=SMALL)[0] as index,
        TestClient(create_app(index, OURS)) as client,
    ):
        for given in ({"text": "a b c"}, {"prompt": "a", "response": " b"}):
            options = [part for name, text in given.items() for part in (f"--{name}", text)]
            answer = client.post("/api/query", json=given | {"k": 3})
            expected = printed(index, "query", *options, "-k", 3)
            assert answer.json()["hits"] == approximate(expected)
        part = {"text": "a b c", "characters": [2, 3]}
        by_span = client.post("/api/query", json={"text": "a b c", "span": "b"})
        assert client.post("/api/query", json=part).json() == by_span.json()
        [expected] = printed(index, "ask", "--prompt", "a", "--max-new-tokens", 3, "-k", 2)
        answer = client.post("/api/ask", json={"prompt": "a", "max_new_tokens": 3, "k": 2})
        assert events_of(answer.text)[-1] == ("hits", approximate(expected))


def test_a_hit_says_where_its_rejected_text_begins(tmp_path: Path, lm: LanguageModel) -> None:
    pairs = [{"prompt": "a", "chosen": f" b{n}", "rejected": f" c{n}"} for n in "defghijk"]
    format = FormatConfig(response_field="chosen", rejected_field="rejected", eos=False)
    with (
        InfluenceIndex.build(tmp_path / "i", pairs, lm, format=format, vector=SMALL)[0] as index,
        TestClient(create_app(index, OURS)) as client,
    ):
        answer = client.post("/api/query", json=ASKED | {"k": 3, "highlight": True})
        expected = printed(
            index, "query", "--prompt", "a b", "--response", " c", "-k", 3, "--highlight"
        )
        assert answer.json()["hits"] == approximate(expected)
        assert all(type(hit["rejected"]) is int for hit in answer.json()["hits"])
        replies.HitsAnswer.model_validate_json(answer.content)
        key = expected[0]["key"]
        explained = client.post("/api/explain", json=ASKED | {"key": key})
        assert explained.json()["sample"]["rejected"] == expected[0]["rejected"]
        replies.ExplainAnswer.model_validate_json(explained.content)


def test_the_schema_says_what_errors_look_like(served: TestClient) -> None:
    paths = served.get("/api/openapi.json").json()["paths"]
    assert len(paths) == 22
    for methods in paths.values():
        for method in methods.values():
            for status in ("422", "4XX", "5XX"):
                body = method["responses"][status]["content"]["application/json"]["schema"]
                assert body == {"$ref": "#/components/schemas/Error"}


# -- who may come in -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "testserver.evil.example", "10.0.0.1", "", "[", "x@testserver:1x"]
)
def test_another_host_is_refused(served: TestClient, host: str) -> None:
    for path in ("/", "/api/info", "/api/health"):
        assert_error(served.get(path, headers={"host": host}), 421, "--allow-host")


def test_addresses_are_hosts_where_the_server_listens_at_all_of_them(index: InfluenceIndex) -> None:
    client = TestClient(create_app(index, Admission({"testserver"}, addresses=True)))
    for host in ("10.0.0.1:8765", "[fe80::1]:8765", "TESTSERVER"):
        assert client.get("/api/rows", headers={"host": host}).status_code == 200
    assert client.get("/api/rows", headers={"host": "evil.example"}).status_code == 421


def test_pages_of_other_sites_are_refused(served: TestClient) -> None:
    for origin in ("http://evil.example", "null", "http://testserver:81"):
        answer = served.post("/api/query", json=ASKED, headers={"origin": origin})
        assert_error(answer, 403, "other sites")
    own = {"origin": "http://testserver"}
    assert served.post("/api/query", json=ASKED, headers=own).status_code == 200
    assert "access-control-allow-origin" not in served.get("/api/info").headers


def test_a_token_is_asked_for_by_everything_but_the_page(index: InfluenceIndex) -> None:
    with TestClient(create_app(index, Admission({"testserver"}, token=TOKEN))) as client:
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
            answer = client.get("/api/info", headers=given)
            assert_error(answer, 401, "token is missing or wrong")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.post("/api/query", json=ASKED).status_code == 401
        assert client.get("/api/openapi.json").status_code == 401
        assert client.get("/metrics").status_code == 401
        told = client.get("/metrics/", follow_redirects=True)
        assert told.status_code in (401, 404) and "forvalue_" not in told.text
        assert client.get("/").status_code == 200
        assert client.get("/metrics.js").status_code == 404  # a file of the page, if there were one
        right = {"authorization": f"Bearer {TOKEN}"}
        assert client.get("/api/info", headers=right).json()["samples"] == 30


def test_beyond_loopback_there_is_a_token() -> None:
    assert [*map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.9.9.9"))] == [True] * 4
    assert [*map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org"))] == [False] * 4
    assert token_for("127.0.0.1", None) is None
    made = token_for("0.0.0.0", None), token_for("0.0.0.0", None)
    assert made[0] != made[1] and all(token and len(token) >= 32 for token in made)
    assert token_for("127.0.0.1", TOKEN) == TOKEN


CHANGES: list[tuple[str, str, Any]] = [
    ("POST", "/api/rows", {"rows": [NEW]}),
    ("POST", "/api/remove", {"keys": ["row-1"]}),
    ("PUT", "/api/decisions", {"key": "row-1", "decision": "drop"}),
]


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_nothing_can_be_written_unless_it_is_allowed(
    served: TestClient, index: InfluenceIndex, method: str, path: str, body: Any
) -> None:
    for sent in (body, {}, "no"):
        assert_error(served.request(method, path, json=sent), 403, "--allow-write")
    assert len(index) == 30 and not (index.directory / "review").exists()


def test_all_that_changes_something_was_tried(served: TestClient) -> None:
    """Another path that changes something must be among the ones above."""
    reading = {"/api/query", "/api/explain", "/api/ask", "/api/score", "/api/audit"}
    others = {("DELETE", "/api/jobs/{id}")}
    paths = served.get("/api/openapi.json").json()["paths"]
    found = {
        (method.upper(), path)
        for path, methods in paths.items()
        for method in methods
        if method != "get" and path not in reading
    }
    assert found - others == {(method, path) for method, path, _ in CHANGES}


# -- limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ({"colour": "red"}, 422, "no field 'colour'"),
        ({"k": 0}, 422, "'k'"),
        ({"k": 10**9}, 422, "'k'"),
        ({"k": "5"}, 422, "'k'"),
        ({"metric": "nearest"}, 422, "'metric'"),
        ({"metric": "hybrid", "opponents": True}, 422, "hybrid"),
        ({"where": ["n"]}, 422, "cannot be read"),
        ({"where": ["n=1"] * 21}, 422, "'where'"),
        ({"where": "n=1"}, 422, "'where'"),
        ({"response": None}, 422, '"response"'),
        ({"text": "also"}, 422, '"text"'),
        ({"label": "a"}, 422, "classifier"),
        ({"span": "c", "tokens": [0, 1]}, 422, "one of"),
        ({"k": 21, "exact": True}, 422, '"candidates"'),
        ({"tokens": [0]}, 422, "'tokens'"),
        ({"prompt": ["/etc/passwd"]}, 422, "'prompt'"),
        ({"image": "/etc/passwd"}, 422, "no field 'image'"),
        ({"prompt": "x" * 60_000}, 413, "60,002 characters"),
        ({"prompt": "x" * 300_000}, 413, "300,002 characters"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(
    served: TestClient, more: dict[str, Any], status: int, words: str
) -> None:
    assert_error(served.post("/api/query", json=ASKED | more), status, words)


def test_other_things_that_cannot_be_answered(served: TestClient) -> None:
    assert_error(served.post("/api/query", content=b"{"), 422, "not a JSON object")
    as_json = {"content-type": "application/json"}
    assert_error(served.post("/api/query", content=b"{", headers=as_json), 422, "not JSON")
    assert_error(
        served.post("/api/query", content=b"[1]", headers=as_json), 422, "not a JSON object"
    )
    assert_error(served.get("/api/nothing"), 404, "nothing at this address: see /api/openapi.json")
    assert_error(served.get("/api/query"), 405, "does not take this method")
    mistyped = served.get("/api/rows", params={"were": "n=1"})
    assert_error(mistyped, 422, "no parameter 'were': it takes where, after, limit")
    assert_error(served.get("/api/info", params={"all": 1}), 422, "'all': it takes none")
    in_address = served.post("/api/query", params={"k": 3}, json=ASKED)
    assert_error(in_address, 422, "no parameter 'k'")
    for name in ("../app.py", "%2e%2e/app.py", "..%2fapp.py", "/etc/passwd", "app.py"):
        assert_error(served.get(f"/{name}"), 404, "nothing at this address")
    assert_error(served.get("/api/rows", params={"limit": 0}), 422, "'limit'")
    assert_error(served.get("/api/row"), 422, "'key'")
    asked = {"prompt": "a", "max_new_tokens": 10**6}
    assert_error(served.post("/api/ask", json=asked), 422, "'max_new_tokens'")
    assert_error(served.post("/api/ask", json={"prompt": "a" * 100}), 422, "shorten it")
    assert_error(
        served.post("/api/explain", json=ASKED | {"key": "no"}), 404, "no row has this key"
    )


def test_a_body_without_a_length_is_bounded(
    served: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "LARGEST_UPLOAD", 100)
    chunks = iter([b"x" * 60, b"y" * 60])
    assert_error(served.post("/api/query", content=chunks), 413, "100 bytes")


def test_too_many_pairs_of_tokens_are_refused(
    served: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_index.server.attribution.MOST_PAIRS", 3)
    asked = ASKED | {"key": "row-1"}
    assert_error(served.post("/api/explain", json=asked), 413, '"terms": false')
    assert served.post("/api/explain", json=asked | {"terms": False}).status_code == 200


class Caller:
    """Stands for a request whose client stays."""

    def __init__(self, host: str = "one") -> None:
        self.client = SimpleNamespace(host=host)

    async def is_disconnected(self) -> bool:
        return False


def run_two(busy: Lane, until: Callable[[Stop], object], first: str, second: str) -> Any:
    """What the second of two requests gets whose work lasts until `until` returns or raises."""

    async def both() -> list[Any]:
        requests: Any = Caller(first), Caller(second)
        work = [asyncio.create_task(busy.run(request, until)) for request in requests]
        return await asyncio.gather(*work, return_exceptions=True)

    try:
        return asyncio.run(both())
    finally:
        busy.close()


def test_a_full_queue_and_a_long_wait_are_503() -> None:
    one, other = run_two(Lane("t", 1, waiting=0), lambda _: time.sleep(0.5), "a", "b")
    assert one is None and (other.status, other.headers) == (503, {"retry-after": "5"})
    lane = Lane("t", 1, patience=0.1)
    one, other = run_two(lane, lambda _: time.sleep(1), "a", "b")
    assert one is None and other.status == 503 and "try again" in other.sentence
    one, other = run_two(Lane("t", 1), lambda _: time.sleep(0.1), "a", "b")
    assert (one, other) == (None, None)
    one, other = run_two(Lane("t", 1, each=1), lambda _: time.sleep(0.1), "a", "a")
    assert one is None and other.status == 429


def test_work_that_takes_too_long_is_stopped() -> None:
    def work(stop: Stop) -> None:
        while True:
            stop.check()
            time.sleep(0.01)

    for error in run_two(Lane("t", 2, seconds=0.1), work, "a", "b"):
        assert error.status == 503 and "stopped after 0.1 s" in error.sentence


# -- over a socket ---------------------------------------------------------------------------


@pytest.fixture
def listening(index: InfluenceIndex) -> Iterator[str]:
    """The address of a real server, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(index, Admission({"127.0.0.1"}))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


class Slow:
    """Stands for the model: says a word each time it is let, and knows why it ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.ends: list[str] = []
        self.free = threading.Event()
        monkeypatch.setattr(InfluenceIndex, "respond", self._respond)

    def _respond(self, *_: Any, report: Callable[[str], None], **__: Any) -> None:
        self.begun += 1
        try:
            while not self.free.is_set():
                report("word ")
                time.sleep(0.01)
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise
        raise ValueError("it was let go")


def test_a_client_that_goes_away_stops_its_work(
    listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    with httpx.stream("POST", f"{listening}/api/ask", json={"prompt": "a"}) as answer:
        texts = answer.iter_text()  # which closes the connection when it is let go
        assert next(texts).startswith("event: token")
        assert httpx.get(f"{listening}/api/health").json()["pending"] == 1
        # The model is busy, but rows are read.
        assert httpx.get(f"{listening}/api/row", params={"key": "row-1"}).status_code == 200
    wait_until(lambda: slow.ends == ["GoneError"])
    wait_until(lambda: httpx.get(f"{listening}/api/health").json()["pending"] == 0)


def test_who_waits_and_goes_away_is_never_worked_for(
    listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    with httpx.stream("POST", f"{listening}/api/ask", json={"prompt": "a"}) as answer:
        texts = answer.iter_text()
        next(texts)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{listening}/api/ask", json={"prompt": "b"}, timeout=0.5)
        wait_until(lambda: httpx.get(f"{listening}/api/health").json()["pending"] == 1)
    wait_until(lambda: slow.ends == ["GoneError"])
    assert slow.begun == 1


def test_one_client_may_not_fill_the_queue(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    asked = {"prompt": "a"}
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(httpx.post(f"{listening}/api/ask", json=asked, timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(64)]
    for thread in threads:
        thread.start()
    wait_until(lambda: httpx.get(f"{listening}/api/health").json()["pending"] == 64)
    refused = httpx.post(f"{listening}/api/ask", json=asked)
    assert_error(refused, 429, "64 requests")
    assert refused.headers["retry-after"] == "1"
    slow.free.set()
    for thread in threads:
        thread.join()
    assert len(statuses) == 64 and statuses.count(200) == 1  # the others fail before any word
    assert httpx.post(f"{listening}/api/query", json=ASKED).status_code == 200


def test_the_command_says_what_is_wrong(index: InfluenceIndex, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--index", index.directory, "--port", port)
        assert_one_line(result, f"cannot listen at 127.0.0.1 port {port}")
    assert_one_line(run("serve", "--index", tmp_path / "none"), "does not exist")
    result = run("serve", "--index", index.directory, "--token", "short")
    assert_one_line(result, "16 or more")


def test_the_page_holds_no_code_of_its_own_and_loads_nothing_from_elsewhere(
    served: TestClient,
) -> None:
    page = served.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    folder = Path(guard.__file__).parent / "page"
    names = sorted(path.name for path in folder.iterdir())
    assert {"index.html", "app.js", "base.css"} <= set(names)
    for name in names:
        answer = served.get(f"/{name}")
        assert answer.status_code == 200 and answer.text == (folder / name).read_text()
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in answer.text
        assert not any(way in answer.text for way in ("innerHTML", "insertAdjacentHTML", "eval("))
    assert "<script>" not in page.text and "style=" not in page.text

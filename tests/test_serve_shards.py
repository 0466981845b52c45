"""A server of several shards answers as one of one index with the same rows does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import served as page_of
from helpers.browser import tab
from helpers.cli import run, run_well
from helpers.indexes import NEW, SETTINGS
from helpers.serving import served
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from test_serve import ASKED, OURS, approximate, assert_error, events_of, printed
from test_serve_api import TARGETS, ended

from forvalue_index import InfluenceIndex
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row
from forvalue_index.server.app import create_app

pytestmark = pytest.mark.usefixtures("small_chunks")
Clients = tuple[TestClient, TestClient]


@pytest.fixture
def rows() -> list[Row]:
    """Thirty rows, each with words of its own; some lack a field."""
    return [
        {"id": f"row-{n}", "prompt": f"{'xyz'[n % 3]} {n * n}", "response": f" {'abcde'[n % 5]}{n}"}
        | ({"kind": "uv"[n % 2]} if n < 20 else {})
        for n in range(30)
    ]


@pytest.fixture
def clients(tmp_path: Path, rows: list[Row], lm: LanguageModel) -> Iterator[Clients]:
    """Clients of three shards, and of one index with the same rows."""
    build = InfluenceIndex.build
    three, _ = build(tmp_path / "three", rows, lm, shards=3, **SETTINGS)
    one, _ = build(tmp_path / "one", rows, lm, **SETTINGS)
    with (
        three,
        one,
        TestClient(create_app(three, OURS, allow_write=True)) as shards,
        TestClient(create_app(one, OURS, allow_write=True)) as whole,
    ):
        yield shards, whole


def plain(value: Any) -> Any:
    """JSON values without ids, which shards count in their own way."""
    if isinstance(value, dict):
        return {name: plain(own) for name, own in value.items() if name != "id"}
    return [plain(own) for own in value] if isinstance(value, list) else value


def same(clients: Clients, method: str, path: str, **asked: Any) -> Any:
    """What both answer."""
    found, expected = (client.request(method, path, **asked) for client in clients)
    assert expected.status_code == found.status_code == 200, found.text
    assert plain(found.json()) == approximate(plain(expected.json()))
    return found.json()


def same_job(clients: Clients, path: str, asked: Row) -> Any:
    """The result of a job of both, whose rows are the same as a file."""
    results, files = [], []
    for client in clients:
        job = ended(client, client.post(path, json=asked))
        assert job["state"] == "done", job
        results.append(client.get(f"/api/jobs/{job['id']}/result").json())
        files.append(client.get(f"/api/jobs/{job['id']}/rows").text)
    lines, expected = ([plain(json.loads(row)) for row in file.splitlines()] for file in files)
    assert len(lines) > 0 and lines == approximate(expected)
    for result in results:
        result.pop("verdict", None)  # of an audit: by rows that are drawn by their ids
    assert plain(results[0]) == approximate(plain(results[1]))
    return results[0]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"k": 30, "opponents": True},
        {"metric": "hybrid"},
        {"metric": "decorrelated", "flat": True},
        {"metric": "cosine", "exact": True, "k": 3},
        {"where": ["kind=u"], "highlight": True},
        {"span": "c"},
        {"instead": " d"},
    ],
)
def test_queries(clients: Clients, more: Row) -> None:
    assert len(same(clients, "POST", "/api/query", json=ASKED | more)["hits"]) >= 3


def test_what_is_said_of_rows(clients: Clients) -> None:
    assert same(clients, "GET", "/api/row", params={"key": "row-7"})["row"]["id"] == "row-7"
    found = same(clients, "GET", "/api/search", params={"words": "x 81", "k": 4})["hits"]
    assert found[0]["key"] == "row-9" and len(found) == 4
    assert same(clients, "POST", "/api/explain", json=ASKED | {"key": "row-7"})["terms"]
    assert_error(clients[0].get("/api/row", params={"key": "none"}), 404, "no row has this key")
    for where in ([], ["kind!=u"], ["kind=v", "id!=row-3"]):
        fields = same(clients, "GET", "/api/fields", params={"where": where})
        assert fields["rows"] == {0: 30, 1: 20, 2: 9}[len(where)]


def test_rows_page_by_page(clients: Clients, rows: list[Row]) -> None:
    for where, n in (([], 30), (["kind=u"], 10)):
        keys, after, more = [], -1, True
        while more:
            params = {"after": after, "limit": 4, "where": where}
            page = clients[0].get("/api/rows", params=params).json()
            assert page["total"] == n
            keys += [row["key"] for row in page["rows"]]
            after, more = page["rows"][-1]["id"], page["more"]
        assert len(keys) == n
        assert set(keys) == {row["id"] for row in rows if n == 30 or row.get("kind") == "u"}
    for format in ("jsonl", "csv", "parquet"):
        answers = [
            client.get("/api/export", params={"format": format, "where": "kind=v"})
            for client in clients
        ]
        if format != "parquet":
            found, expected = (sorted(answer.text.splitlines()) for answer in answers)
            assert found == expected and len(found) >= 10
        else:
            assert all(answer.content.startswith(b"PAR1") for answer in answers)


def test_answers_of_the_model(clients: Clients) -> None:
    asked = {"prompt": "a b", "max_new_tokens": 6, "k": 3}
    found, expected = (events_of(client.post("/api/ask", json=asked).text) for client in clients)
    assert [name for name, _ in found][-2:] == ["answer", "hits"]
    assert plain(found[-1][1]) == approximate(plain(expected[-1][1]))


def test_jobs(clients: Clients) -> None:
    asked = {"targets": TARGETS, "k": 3, "group_by": "kind", "target_group": "prompt"}
    result = same_job(clients, "/api/score", asked | {"exact": True})
    assert {group["name"] for group in result["groups"]} == {"u", "v", "(none)"}
    same_job(clients, "/api/score", asked | {"combine": "max", "metric": "cosine"})
    result = same_job(clients, "/api/audit", {"top": 5, "trusted": TARGETS})
    assert result["samples"] == 30


def test_what_the_index_holds(clients: Clients) -> None:
    found, expected = (client.get("/api/info").json() for client in clients)
    assert (found["shards"], found["missing_shards"]) == (3, [])
    for name in ("samples", "removed", "dim", "model", "fields", "writable", "images", "config"):
        assert found[name] == expected[name], name
    assert clients[0].get("/api/health").json()["status"] == "ok"
    families = text_string_to_metric_families(clients[0].get("/metrics").text)
    [samples] = next(f for f in families if f.name == "forvalue_samples").samples
    assert samples.value == 30


def test_changes_and_decisions(clients: Clients, rows: list[Row]) -> None:
    for client in clients:
        job = ended(client, client.post("/api/rows", json={"rows": [NEW, rows[0]]}))
        result = client.get(f"/api/jobs/{job['id']}/result").json()
        assert (result["added"], result["skipped"], result["samples"]) == (1, 1, 31)
        changed = [NEW | {"response": " other"}, rows[2] | {"response": " better"}]
        job = ended(client, client.post("/api/rows", json={"rows": changed}))
        assert job["state"] == "failed" and "is already in the index" in job["error"]
        job = ended(client, client.post("/api/rows", json={"rows": changed, "update": True}))
        assert job["state"] == "done"
        answer = client.post("/api/remove", json={"keys": ["row-5", "none"]})
        assert answer.json() == {"removed": 1, "samples": 30}
        answer = client.post("/api/remove", json={"where": ["kind=u", "prompt=x 324"]})
        assert answer.json() == {"removed": 1, "samples": 29}
        for key, decision in (("row-7", "drop"), ("row-8", "keep")):
            asked = {"key": key, "decision": decision}
            assert client.put("/api/decisions", json=asked).status_code == 200
        fix = {"key": "row-9", "decision": "fix", "row": rows[9] | {"response": " new"}}
        assert client.put("/api/decisions", json=fix).json()["counts"]["fix"] == 1
        assert client.get("/api/decisions/drop.txt").text == "row-7\n"
        assert json.loads(client.get("/api/decisions/fix.jsonl").text) == fix["row"]
    same(clients, "POST", "/api/query", json=ASKED | {"k": 30})
    same(clients, "GET", "/api/search", params={"words": "better other"})


def test_commands_use_the_files_of_decisions(tmp_path: Path, clients: Clients) -> None:
    asked = {"key": "row-7", "decision": "drop"}
    clients[0].put("/api/decisions", json=asked)
    drop = tmp_path / "three" / "review" / "drop.txt"
    run_well("remove", "--index", tmp_path / "three", "--keys-file", drop)
    assert_error(clients[0].get("/api/row", params={"key": "row-7"}), 404, "no row has this key")
    hits = clients[0].post("/api/query", json=ASKED | {"k": 100}).json()["hits"]
    assert len(hits) == 29
    with InfluenceIndex.open(tmp_path / "three") as index:
        assert index.verify() == []
        assert printed(index, "list", "--where", "id=row-7") == []


@pytest.mark.parametrize("asked_before", [False, True])
def test_rows_that_were_dealt_out_anew_are_no_longer_served(
    tmp_path: Path, clients: Clients, asked_before: bool
) -> None:
    shards = clients[0]
    if asked_before:
        assert shards.post("/api/query", json=ASKED).status_code == 200
    InfluenceIndex.reshard(tmp_path / "three", 4)
    for _ in range(2):
        for answer in (
            shards.post("/api/query", json=ASKED),
            shards.get("/api/rows"),
            shards.get("/api/row", params={"key": "row-7"}),
            shards.get("/api/info"),
            shards.post("/api/remove", json={"keys": ["row-7"]}),
        ):
            assert_error(answer, 503, "the index has 4 shards now: open it again")
    job = ended(shards, shards.post("/api/rows", json={"rows": [NEW]}))
    assert job["state"] == "failed" and "the index has 4 shards now" in job["error"]
    with InfluenceIndex.open(tmp_path / "three") as index:
        assert index.verify() == [] and len(index) == 30


def test_readers_see_what_another_writer_adds(
    tmp_path: Path, clients: Clients, lm: LanguageModel
) -> None:
    shards = clients[0]
    assert shards.post("/api/query", json=ASKED).status_code == 200
    with InfluenceIndex.open(tmp_path / "three", model=lm) as other:
        other.add([NEW])
        other.optimize("IVF1,Flat")
    hits = shards.post("/api/query", json={"prompt": "a", "response": "b", "k": 100}).json()["hits"]
    assert "new" in {hit["key"] for hit in hits} and len(hits) == 31
    info = shards.get("/api/info").json()
    assert info["samples"] == 31 and len(info["derived"]) == 1


def test_a_damaged_shard_is_told_without_its_place(tmp_path: Path, clients: Clients) -> None:
    for path in (tmp_path / "three" / "shards" / "0001" / "segments").iterdir():
        path.write_bytes(b"damaged")
    answer = clients[0].post("/api/query", json=ASKED)
    assert_error(answer, 500, "CorruptIndexError")
    assert str(tmp_path) not in answer.text


def test_commands_find_the_server(tmp_path: Path, clients: Clients, lm: LanguageModel) -> None:
    asked = ("query", "--index", tmp_path / "three", "--prompt", "a b", "--response", " c")
    expected = run_well(*asked, "--json")
    with InfluenceIndex.open(tmp_path / "three", model=lm) as index, served(index):
        result = run(*asked, "--json")
    assert result.exit_code == 0 and "server" in result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert found == approximate([json.loads(line) for line in expected.splitlines()])


@pytest.mark.usefixtures("clients")
def test_the_page(tmp_path: Path, browser: Any, lm: LanguageModel, rows: list[Row]) -> None:
    more = [{"id": f"more-{n}", "prompt": "p", "response": f" {n}"} for n in range(70)]
    with InfluenceIndex.open(tmp_path / "three", model=lm) as index:
        index.add(more)
        with page_of(index, allow_write=True) as address, tab(browser, address, tmp_path) as page:
            page.go("#/rows")
            expected = [sample.key for sample in index.rows()]
            page.page.wait_for_selector(".rows > li >> nth=49")
            assert page.texts(".rows .head a") == expected[:50]
            page.page.click("button:text-is('More rows')")
            page.page.wait_for_selector(".rows > li >> nth=99")
            assert page.texts(".rows .head a") == expected
            page.go("#/row?key=row-7")
            page.page.click("text=Which rows drove this response?")
            page.page.wait_for_selector(".hits .hit")
            found = index.query({name: rows[7][name] for name in ("prompt", "response")}, k=10)
            keys = page.texts(".hits section >> nth=0 >> .key")
            assert keys == [hit.key for hit in found][: len(keys)] and len(keys) >= 5

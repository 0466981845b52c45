"""The server's long work, changes, exports and counts, held to what the commands print."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import run_well, write
from helpers.indexes import NEW, SMALL
from helpers.tiny_vision import index_of, png, save
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from test_ask import CHAT
from test_serve import ASKED, OURS, approximate, assert_error, events_of, printed, wait_until

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.picture import HASH
from forvalue_index.records import Row
from forvalue_index.server import field_counts, replies
from forvalue_index.server.app import create_app

TARGETS = [{"prompt": "a b", "response": " c"}, {"prompt": "x", "response": " y"}]


@pytest.fixture
def served(index: InfluenceIndex) -> Iterator[TestClient]:
    with TestClient(create_app(index, OURS, allow_write=True)) as client:
        yield client


def ended(client: TestClient, started: Any) -> Any:
    """A job once it has ended."""
    assert started.status_code == 202, started.text
    replies.Job.model_validate_json(started.content)
    place = started.headers["location"]
    wait_until(
        lambda: client.get(place).json()["state"] in ("done", "failed", "cancelled"), seconds=60
    )
    return client.get(place).json()


# -- jobs ------------------------------------------------------------------------------------


def test_a_score_is_what_the_command_prints(
    served: TestClient, index: InfluenceIndex, tmp_path: Path
) -> None:
    asked = {"targets": TARGETS, "k": 3, "group_by": "n", "where": ["n<20"], "exact": True}
    job = ended(served, served.post("/api/score", json=asked))
    assert (job["kind"], job["state"], job["error"]) == ("score", "done", None)
    found = served.get(f"/api/jobs/{job['id']}/result")
    replies.ScoreResult.model_validate_json(found.content)
    data, out = write(tmp_path / "targets.jsonl", TARGETS), tmp_path / "values.jsonl"
    options = ("-k", 3, "--group-by", "n", "--where", "n<20", "--exact", "--output", out)
    [expected] = printed(index, "score", "--data", data, *options)
    assert found.json() == approximate(expected)
    lines = served.get(f"/api/jobs/{job['id']}/rows").text.splitlines()
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [json.loads(line) for line in lines] == approximate(written) and len(written) == 20
    table = served.get(f"/api/jobs/{job['id']}/rows", params={"format": "csv"})
    assert table.text.splitlines()[0].startswith("id,key,value,exact,")
    assert 'filename="score.csv"' in table.headers["content-disposition"]
    assert served.get("/api/jobs").json()["jobs"] == [job]


def test_an_audit_is_what_the_command_prints(
    served: TestClient, index: InfluenceIndex, tmp_path: Path
) -> None:
    job = ended(served, served.post("/api/audit", json={"top": 5, "trusted": TARGETS}))
    assert job["state"] == "done" and job["done"] > 0
    found = served.get(f"/api/jobs/{job['id']}/result")
    replies.AuditResult.model_validate_json(found.content)
    trusted = write(tmp_path / "trusted.jsonl", TARGETS)
    expected = printed(index, "audit", "--top", 5, "--trusted", trusted)
    assert found.json()["rows"] == approximate(expected) and len(expected) > 0
    assert found.json()["samples"] == 30 and "wrong" in found.json()["verdict"]


def test_a_job_that_fails_says_why(served: TestClient) -> None:
    job = ended(served, served.post("/api/score", json={"targets": [{"prompt": "a"}]}))
    assert job["state"] == "failed" and "row 1" in job["error"]
    assert_error(served.get(f"/api/jobs/{job['id']}/result"), 409, "the job is failed")
    assert_error(served.get("/api/jobs/none"), 404, "no such job")
    assert_error(served.get("/api/jobs/none/result"), 404, "no such job")
    forgotten = served.delete(f"/api/jobs/{job['id']}")
    assert forgotten.json()["state"] == "failed"
    assert_error(served.get(f"/api/jobs/{job['id']}"), 404, "no such job")


def test_a_job_is_cancelled_at_its_next_batch_and_queries_are_answered_meanwhile(
    served: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def slow(*_: Any, progress: Any, **__: Any) -> None:
        for number in range(10_000):
            batches.append(number)
            progress("encoding", number, 10_000, 0)
            time.sleep(0.01)

    monkeypatch.setattr(InfluenceIndex, "audit", slow)
    first = served.post("/api/audit", json={}).json()
    second = served.post("/api/audit", json={}).json()
    wait_until(lambda: len(batches) > 3)
    assert served.post("/api/query", json=ASKED).status_code == 200
    running = served.get(f"/api/jobs/{first['id']}").json()
    assert running["state"] == "running" and 0 < running["done"] < running["total"] == 10_000
    assert_error(served.get(f"/api/jobs/{first['id']}/result"), 409, "the job is running")
    assert served.delete(f"/api/jobs/{second['id']}").json()["state"] == "cancelled"
    served.delete(f"/api/jobs/{first['id']}")
    wait_until(lambda: served.get(f"/api/jobs/{first['id']}").json()["state"] == "cancelled")
    assert len(batches) < 10_000


def test_too_many_jobs_are_refused(served: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr(InfluenceIndex, "audit", lambda *_, **__: free.wait())
    for _ in range(9):
        assert served.post("/api/audit", json={}).status_code == 202
    refused = served.post("/api/audit", json={})
    assert_error(refused, 429, "jobs wait already")
    assert refused.headers["retry-after"] == "10"
    free.set()


# -- changes ---------------------------------------------------------------------------------


def test_rows_are_added_and_removed(served: TestClient, index: InfluenceIndex) -> None:
    job = ended(served, served.post("/api/rows", json={"rows": [NEW]}))
    assert job["state"] == "done"
    result = served.get(f"/api/jobs/{job['id']}/result")
    replies.AddResult.model_validate_json(result.content)
    assert (result.json()["added"], result.json()["samples"]) == (1, 31)
    assert served.get("/api/row", params={"key": "new"}).json()["row"] == NEW
    changed = NEW | {"response": " other"}
    job = ended(served, served.post("/api/rows", json={"rows": [changed]}))
    assert job["state"] == "failed" and "new" in job["error"]
    job = ended(served, served.post("/api/rows", json={"rows": [changed], "update": True}))
    assert served.get("/api/row", params={"key": "new"}).json()["row"] == changed
    answer = served.post("/api/remove", json={"keys": ["new", "none"]})
    assert answer.json() == {"removed": 1, "samples": 30}
    answer = served.post("/api/remove", json={"where": ["n<5"]})
    assert answer.json() == {"removed": 5, "samples": 25} and len(index) == 25
    for asked in ({}, {"keys": ["a"], "where": ["n=1"]}):
        assert_error(served.post("/api/remove", json=asked), 422, '"keys" or "where"')


def test_decisions_are_kept_in_files_that_the_commands_take(
    served: TestClient, index: InfluenceIndex, rows: list[Row]
) -> None:
    def decide(**asked: Any) -> Any:
        return served.put("/api/decisions", json=asked)

    fixed = rows[2] | {"response": " better"}
    assert decide(key="row-1", decision="drop", note="noise").status_code == 200
    assert decide(key="row-2", decision="fix", row=fixed).status_code == 200
    assert decide(key="row-3", decision="keep").status_code == 200
    answer = decide(key="row-4", decision="drop").json()
    assert answer["counts"] == {"keep": 1, "drop": 2, "fix": 1}
    answer = decide(key="row-4", decision=None)  # undone
    replies.DecisionsAnswer.model_validate_json(answer.content)
    assert [row["key"] for row in answer.json()["decisions"]] == ["row-1", "row-2", "row-3"]
    assert_error(decide(key="none", decision="drop"), 404, "no row has this key")
    assert_error(decide(key="row-2", decision="fix"), 422, '"row"')
    assert_error(decide(key="row-2", decision="fix", row={"id": "row-9"}), 422, "must stay")

    with TestClient(create_app(index, OURS)) as later:  # which reads them from the files
        assert later.get("/api/decisions").json() == answer.json() | {"writable": False}
    folder = index.directory / "review"
    assert served.get("/api/decisions/drop.txt").text == (folder / "drop.txt").read_text()
    assert served.get("/api/decisions/fix.jsonl").text == (folder / "fix.jsonl").read_text()
    run_well("remove", "--index", index.directory, "--keys-file", folder / "drop.txt")
    assert index.verify() == []
    job = ended(
        served,
        served.post(
            "/api/rows",
            json={
                "rows": [
                    json.loads(line) for line in (folder / "fix.jsonl").read_text().splitlines()
                ],
                "update": True,
            },
        ),
    )
    assert job["state"] == "done" and len(index) == 29
    assert index.get("row-2").row == fixed


# -- reading ---------------------------------------------------------------------------------


def test_fields_are_counted(served: TestClient, index: InfluenceIndex) -> None:
    index.add([NEW | {"id": f"s{n}", "source": f"web{n % 2}", "n": n % 3} for n in range(9)])
    answer = served.get("/api/fields", params={"where": ["n<3"]})
    replies.FieldsAnswer.model_validate_json(answer.content)
    found = answer.json()
    assert found["rows"] == 12
    counts = {field["name"]: field for field in found["fields"]}
    values = {value["value"]: value["count"] for value in counts["source"]["values"]}
    assert values == Counter({"web0": 5, "web1": 4}) and counts["source"]["missing"] == 3
    for value, count in values.items():  # what a filter by it then shows
        page = served.get("/api/rows", params={"where": ["n<3", f"source={value}"]})
        assert page.json()["total"] == count == len(page.json()["rows"])
    assert "id" in found["others"]
    index.remove(["s0"])
    assert served.get("/api/fields", params={"where": ["n<3"]}).json()["rows"] == 11


@pytest.mark.parametrize("first", [3, 10_000])
def test_counts_are_those_of_all_rows(
    served: TestClient, index: InfluenceIndex, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    kinds: list[Any] = ["a", "b", None, True, 7, 7.5, "7"]
    rows = [
        NEW | {"id": f"s{n}", "kind": kinds[n % 7], "long": "x" * n, "in": {"n": n % 2}, "n": n % 3}
        | ({"late": "yes"} if n > 20 else {})
        for n in range(90)
    ]  # fmt: skip
    index.add(rows)
    index.remove(["s3", "s50"])
    monkeypatch.setattr(field_counts, "FIRST", first)
    for where in ([], ["n<3"], ["kind in a,b", "n!=1"], ["late=yes"]):
        found = served.get("/api/fields", params={"where": where}).json()
        stored = [sample.row for sample in index.rows(where)]
        assert found["rows"] == len(stored) > 10
        for field in found["fields"]:
            values = [row[field["name"]] for row in stored if field["name"] in row]
            texts = Counter(
                value if isinstance(value, str) else json.dumps(value) for value in values
            )
            assert {own["value"]: own["count"] for own in field["values"]} == texts
            assert field["missing"] == len(stored) - len(values)
        names = {field["name"] for field in found["fields"]}
        assert {"kind", "late"} <= names or "late" not in {name for row in stored for name in row}
        assert {"id", "long", "in"} <= set(found["others"])
        assert names | set(found["others"]) == {name for row in stored for name in row}


def test_rows_are_exported(served: TestClient, index: InfluenceIndex, rows: list[Row]) -> None:
    text = served.get("/api/export", params={"where": ["n<12"]}).text
    assert [json.loads(line) for line in text.splitlines()] == rows[:12]
    table = served.get("/api/export", params={"format": "csv"})
    assert len(table.text.splitlines()) == 31
    assert served.get("/api/export", params={"format": "xlsx"}).status_code == 422


def test_metrics_are_prometheus_text(served: TestClient) -> None:
    for _ in range(3):
        served.post("/api/query", json=ASKED)
    served.get("/api/row", params={"key": "none"})
    text = served.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    counts = {
        (sample.labels["path"], sample.labels["status"]): sample.value
        for sample in families["forvalue_requests"].samples
        if sample.name.endswith("_total")
    }
    assert counts["/api/query", "200"] == 3 and counts["/api/row", "404"] == 1
    [samples] = families["forvalue_samples"].samples
    assert samples.value == 30
    assert families["process_resident_memory_bytes"].samples[0].value > 0


# -- queries ---------------------------------------------------------------------------------


def test_an_answer_is_compared_with_another_one(served: TestClient, index: InfluenceIndex) -> None:
    options = ("--prompt", "a b", "--response", " c", "--instead", " d")
    expected = printed(index, "query", *options)
    answer = served.post("/api/query", json=ASKED | {"instead": " d"})
    assert answer.json()["hits"] == approximate(expected) and len(expected) == 10
    same = served.post("/api/query", json={"row": ASKED, "instead": " d"})
    assert same.json()["hits"] == approximate(expected)
    plain = served.post("/api/query", json=ASKED).json()["hits"]
    assert plain != same.json()["hits"]
    assert plain == served.post("/api/query", json={"row": ASKED}).json()["hits"]


def test_a_conversation_is_asked_about_and_answered(tmp_path: Path, lm: LanguageModel) -> None:
    def said(*texts: str) -> Row:
        roles = ("user", "assistant") * len(texts)
        pairs = zip(roles, texts, strict=False)
        return {"messages": [{"role": role, "content": text} for role, text in pairs]}

    rows = [said("a" * n, "b" * n, "c", "d" * n) for n in range(1, 9)]
    format = FormatConfig(messages_field="messages", chat_template=CHAT)
    built, _ = InfluenceIndex.build(tmp_path / "i", rows, lm, format=format, vector=SMALL)
    with built as index, TestClient(create_app(index, OURS)) as client:
        query, open = said("a", "b", "e", "f"), said("a", "b", "e")
        expected = printed(index, "query", "--data", write(tmp_path / "q.jsonl", [query]))
        answer = client.post("/api/query", json={"row": query})
        assert answer.json()["hits"] == approximate(expected) and len(expected) == 8
        options = ("--max-new-tokens", 4, "-k", 3)
        data = write(tmp_path / "p.jsonl", [open])
        [expected] = printed(index, "ask", "--data", data, *options)
        asked = {"row": open, "max_new_tokens": 4, "k": 3}
        *_, whole, hits = events_of(client.post("/api/ask", json=asked).text)
        assert hits[1] == approximate(expected)
        assert whole[1]["response"] == expected["row"]["messages"][-1]["content"]
        instead = client.post("/api/ask", json=asked | {"instead": "zz"})
        [expected] = printed(index, "ask", "--data", data, *options, "--instead", "zz")
        assert events_of(instead.text)[-1][1] == approximate(expected)


def test_images_come_with_the_request_and_from_no_file(tmp_path: Path) -> None:
    rows = []
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        rows.append({"id": f"r{number}", "prompt": "a", "response": "bc", "image": f"{number}.png"})
    data, model = write(tmp_path / "rows.jsonl", rows), save(tmp_path / "model", "llava")
    image = base64.b64encode(png(3)).decode()
    typed = {"prompt": "a", "response": "b"}
    with (
        index_of(tmp_path / "index", data, model) as index,
        TestClient(create_app(index, OURS)) as client,
    ):
        expected = printed(
            index, "query", "--prompt", "a", "--response", "b", "--image", tmp_path / "3.png"
        )
        scores = {hit["key"]: hit["score"] for hit in expected}
        for asked in (
            typed | {"images": [image]},
            typed | {"images": [f"data:image/png;base64,{image}"]},
            {"row": typed | {"image": image}},
            {"row": typed | {"image": [{"bytes": image}]}},
        ):
            hits = client.post("/api/query", json=asked).json()["hits"]
            assert {hit["key"]: hit["score"] for hit in hits} == approximate(scores)
        without = client.post("/api/query", json=typed).json()
        assert without.get("hits") != hits
        place = str(tmp_path / "3.png")
        for value in (place, f"file://{place}", "https://localhost/3.png", {"path": place}, 7):
            for row in (
                typed | {"image": value},
                {
                    "messages": [
                        {"role": "user", "content": [{"type": "image", "image": value}]},
                        {"role": "assistant", "content": "b"},
                    ]
                },
            ):
                answer = client.post("/api/query", json={"row": row})
                assert_error(answer, 422, "is not in the request")
        answer = client.post("/api/query", json=typed | {"images": ["aGVsbG8="]})
        assert_error(answer, 422, "cannot be decoded")
        answer = client.post("/api/query", json=typed | {"images": [image] * 17})
        assert answer.status_code in (413, 422)
        shown = client.get("/api/picture", params={"key": "r3"})
        assert shown.headers["content-type"] == "image/png" and shown.content.startswith(b"\x89PNG")
        assert_error(client.get("/api/picture", params={"key": "r3", "n": 1}), 404, "1 pictures")


def test_a_decision_names_no_file(tmp_path: Path) -> None:
    """What is fixed is read by the owner's `forvalue add`: no path of a client may be in it."""
    rows = [{"id": f"r{n}", "prompt": "a", "response": "bc", "image": f"{n}.png"} for n in range(6)]
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    data, model = write(tmp_path / "rows.jsonl", rows), save(tmp_path / "model", "llava")
    with (
        index_of(tmp_path / "index", data, model) as index,
        TestClient(create_app(index, OURS, allow_write=True)) as client,
    ):
        shown = client.get("/api/row", params={"key": "r1"}).json()["row"]
        asked = {"key": "r1", "decision": "fix"}
        for value in (str(tmp_path / "6.png"), {"path": str(tmp_path / "6.png")}, {HASH: "0" * 64}):
            for image in (value, [shown["image"], value]):
                row = shown | {"image": image}
                answer = client.put("/api/decisions", json=asked | {"row": row})
                assert_error(answer, 422, "is not in the request")
        sent = base64.b64encode(png(6)).decode()
        for image in (shown["image"], sent):
            row = shown | {"response": "better", "image": image}
            assert client.put("/api/decisions", json=asked | {"row": row}).status_code == 200
        index.add(tmp_path / "index" / "review" / "fix.jsonl", update=True)
        assert index.get("r1").row["response"] == "better"

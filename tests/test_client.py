"""An index behind a server: from Python, and for the commands of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli import assert_one_line, run, run_well
from helpers.indexes import NEW
from helpers.serving import served
from test_serve import approximate

from forvalue_index import InfluenceClient, InfluenceIndex
from forvalue_index.errors import InputError, ServerError, StorageError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.system import runtime

ASKED = {"prompt": "a b", "response": " c"}
TOKEN = "a-token-of-24-characters"
NOTE = "Answered by the server"


@pytest.fixture(autouse=True)
def runtime_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a short name, as the paths of sockets are limited."""
    with tempfile.TemporaryDirectory(prefix="run") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def address(index: InfluenceIndex) -> Iterator[str]:
    with served(index, allow_write=True) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[InfluenceClient]:
    with InfluenceClient(address) as client:
        yield client


# -- from Python -----------------------------------------------------------------------------


def test_a_client_answers_as_the_index(client: InfluenceClient, index: InfluenceIndex) -> None:
    assert len(client) == 30 and client.health()["status"] == "ok"
    assert client.get("row-3") == index.get("row-3")
    assert [*client.rows(["n<20"], after=2, limit=9)] == [*index.rows("n<20", after=2, limit=9)]
    word = index.get("row-4").row["prompt"].split()[0]
    assert client.search(word, 3) == index.search(word, 3)
    for options in (
        {},
        {"opponents": True},
        {"metric": "hybrid"},
        {"where": "n<9"},
        {"exact": True},
    ):
        expected, found = index.query(ASKED, 5, **options), client.query(ASKED, 5, **options)
        scores = [hit.score for hit in expected]
        assert [hit.score for hit in found] == pytest.approx(scores, rel=1e-5, abs=1e-7)
        assert [(hit.key, hit.sample, hit.exact, hit.shared) for hit in found] == [
            (hit.key, hit.sample, hit.exact, hit.shared) for hit in expected
        ]
    part = index.part(ASKED, tokens=slice(0, 1))
    found = client.query(ASKED, 5, tokens=slice(0, 1))
    assert [hit.key for hit in found] == [hit.key for hit in index.query(part, 5)]
    two = client.query([ASKED, NEW], 2)
    assert [hit.query for hit in two] == [0, 0, 1, 1]


def test_a_client_gets_tokens_and_terms(client: InfluenceClient, index: InfluenceIndex) -> None:
    expected = index.explain(ASKED, "row-7")
    found = client.explain(ASKED, "row-7")
    np.testing.assert_allclose(found.terms, expected.terms, rtol=1e-5)
    assert (found.key, found.query.texts) == ("row-7", expected.query.texts)
    assert found.score == pytest.approx(expected.score)
    hits = index.query(ASKED, 3)
    passages = index.contributions(ASKED, hits)
    for (hit, passage), own, texts in zip(
        client.query(ASKED, 3, highlight=True), hits, passages, strict=True
    ):
        assert hit.key == own.key and passage.texts == texts.texts
        assert passage.scored.tolist() == texts.scored.tolist()
        np.testing.assert_allclose(passage.values, texts.values, rtol=1e-4)


def test_a_client_asks_the_model(client: InfluenceClient, index: InfluenceIndex) -> None:
    words: list[str] = []
    ends: list[bool] = []
    answer = client.ask("a b", 3, max_new_tokens=6, report=words.append, answered=ends.append)
    sample = index.respond("a b", None)
    assert answer.response == "".join(words) and sample.row["response"].startswith(answer.response)
    assert ends == [answer.cut_off] == [True]
    assert len(answer.hits) == len(answer.passages) == 3


def test_a_client_starts_long_work_and_changes_the_index(client: InfluenceClient) -> None:
    stages: list[str] = []
    found = client.score([ASKED], k=2, progress=lambda stage, *_: stages.append(stage))
    assert (found["targets"], found["samples"], len(found["best"])) == (1, 30, 2)
    assert client.audit(top=3)["samples"] == 30
    assert client.add([NEW])["added"] == 1 and len(client) == 31
    assert client.remove("new") == 1 and len(client) == 30
    with pytest.raises(InputError, match="row 1"):
        client.score([{"prompt": "a"}])


def test_what_a_server_refuses_and_where_there_is_none(
    client: InfluenceClient, address: str
) -> None:
    with pytest.raises(InputError, match="no row has this key"):
        client.get("none")
    with pytest.raises(InputError, match="'k'"):
        client.query(ASKED, 10**6)
    with pytest.raises(InputError, match="no exact form"):
        client.query(ASKED, metric="hybrid", exact=True)
    assert client.get("row-1").key == "row-1"  # the connection is still of use
    for wrong in ("localhost:80", "ftp://localhost", "http://localhost:99999999"):
        with pytest.raises(InputError, match="write http"):
            InfluenceClient(wrong)
    with pytest.raises(ServerError, match="is forvalue serve running there"):
        InfluenceClient("http://127.0.0.1:9").info()
    assert_one_line(run("query", "--server", "http://127.0.0.1:9", *QUERY), "does not answer")
    assert "give --index" in run("query", *QUERY).stderr


def test_a_token_comes_with_the_address(index: InfluenceIndex) -> None:
    with served(index, token=TOKEN) as address:
        with InfluenceClient(f"{address}/#token={TOKEN}") as good:
            assert len(good) == 30
        with InfluenceClient(address, token=TOKEN) as good:
            assert len(good) == 30
        with (
            InfluenceClient(address) as bad,
            pytest.raises(InputError, match="token is missing or wrong"),
        ):
            bad.info()
        assert run("query", "--server", f"{address}/#token={TOKEN}", *QUERY).exit_code == 0
        assert_one_line(run("query", "--server", address, *QUERY), "token is missing or wrong")
        own = runtime.running_socket(index.directory)
        assert own is not None
        with InfluenceClient(f"unix:{own}") as through:  # whose folder only its user may enter
            assert len(through) == 30


# -- commands --------------------------------------------------------------------------------

QUERY = ("--prompt", "a b", "--response", " c")
COMMANDS: list[tuple[str, ...]] = [
    ("query", *QUERY, "-k", "4", "--json"),
    ("query", *QUERY, "-k", "4"),
    ("query", *QUERY, "--highlight", "--metric", "cosine", "--where", "n<9", "--opponents"),
    ("query", *QUERY, "--tokens", "0:", "--instead", " d", "--exact", "--json"),
    ("query", "--text", "some plain text", "--metric", "hybrid", "--json"),
    ("explain", *QUERY, "--key", "row-7"),
    ("explain", *QUERY, "--hit", "2", "--json"),
    ("ask", "--prompt", "a b", "--max-new-tokens", "5", "-k", "3"),
    ("ask", "--prompt", "a b", "--max-new-tokens", "5", "--instead", "zz", "--json"),
    ("search", "a", "-k", "3"),
    ("search", "a", "--json"),
]


def outcome(result: Any) -> Any:
    assert result.exit_code == 0, result.stderr
    try:
        return approximate([json.loads(line) for line in result.stdout.splitlines()])
    except ValueError:
        return result.stdout


def test_commands_print_the_same_through_a_server(index: InfluenceIndex) -> None:
    before = [outcome(run(*command, "--index", index.directory)) for command in COMMANDS]
    with served(index) as address:
        for command, expected in zip(COMMANDS, before, strict=True):
            through = run(*command, "--index", index.directory)
            assert through.stderr.count(NOTE) == 1, through.stderr
            assert outcome(through) == expected
            remote = run(*command, "--server", address)
            assert outcome(remote) == expected and NOTE not in remote.stderr
            alone = run(*command, "--index", index.directory, "--no-server")
            assert outcome(alone) == expected and NOTE not in alone.stderr
    after = run(*COMMANDS[0], "--index", index.directory)
    assert NOTE not in after.stderr and outcome(after) == before[0]


def test_what_a_server_cannot_do_is_done_or_said_here(
    index: InfluenceIndex, address: str, tmp_path: Path
) -> None:
    place = ("--index", index.directory)
    many = run("query", *QUERY, "-k", 1500, "--json", *place)  # more than a server gives
    assert len(many.stdout.splitlines()) == 30 and NOTE not in many.stderr
    for wrong in (("--span", "none"), ("--where", "none=1")):
        served, alone = (
            run("query", *QUERY, *wrong, *place, *more) for more in ((), ("--no-server",))
        )
        assert (served.exit_code, served.stderr) == (1, alone.stderr)
    for more in (("--device", "cpu"), ("--prompt-field", "prompt")):
        assert NOTE not in run("query", *QUERY, *more, *place).stderr
    other = tmp_path / "other"
    index.directory.rename(other)
    try:
        assert NOTE not in run("query", *QUERY, "--index", other).stderr
    finally:
        other.rename(index.directory)


def test_only_a_socket_of_this_user_is_used(
    index: InfluenceIndex, runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, path = runtime.listen(index.directory)
    with listener:
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert runtime.running_socket(index.directory) == path
        with pytest.raises(StorageError, match="another server of this index"):
            runtime.listen(index.directory)
        path.parent.chmod(0o750)
        assert runtime.running_socket(index.directory) is None
        with pytest.raises(StorageError, match="only you may enter"):
            runtime.make_runtime_folder()
        path.parent.chmod(0o700)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: 12345)  # somebody else asks
            assert runtime.running_socket(index.directory) is None
    again, _ = runtime.listen(index.directory)  # the first was left behind
    again.close()
    path.parent.rename(runtime_folder / "real")
    path.parent.symlink_to(runtime_folder / "real")
    assert runtime.running_socket(index.directory) is None
    with pytest.raises(StorageError, match="only you may enter"):
        runtime.listen(index.directory)


def test_a_server_that_is_ended_takes_its_socket_away(index: InfluenceIndex) -> None:
    command = [sys.executable, "-m", "forvalue_index", "serve", "--port", "0", "--index"]
    with subprocess.Popen(
        [*command, str(index.directory)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None and process.stdout.readline().startswith(b"http://")
        path = runtime.running_socket(index.directory)
        assert path is not None
        with InfluenceClient(f"unix:{path}") as client:
            assert len(client) == 30
        process.terminate()
        assert process.wait(60) == 143
    assert not path.exists()


def test_an_index_that_is_built_anew_is_another_one(
    index: InfluenceIndex, tmp_path: Path, lm: LanguageModel
) -> None:
    name = runtime.socket_name(index.directory)
    link = tmp_path / "link"
    link.symlink_to(index.directory)
    assert runtime.socket_name(link) == name
    index.directory.rename(tmp_path / "old")
    with InfluenceIndex.build(index.directory, [NEW], lm)[0]:
        assert runtime.socket_name(index.directory) != name
    with pytest.raises(FileNotFoundError):
        runtime.socket_name(tmp_path)


# -- many at once ----------------------------------------------------------------------------


def test_many_threads_ask_beside_a_writer_and_are_answered_as_the_command_answers(
    index: InfluenceIndex, address: str, lm: LanguageModel
) -> None:
    """Rows that a query cannot reach are added meanwhile, so that its answer must not change."""
    prompts = [f"{letter} b" for letter in "abcdefgh"]
    options = ("--where", "n<30", "--json", "--no-server", "--index", index.directory)
    expected = {
        prompt: outcome_lines("query", "--prompt", prompt, "--response", " c", *options)
        for prompt in prompts
    }
    wrong: list[Any] = []
    ready = threading.Barrier(9)

    def ask(prompt: str) -> None:
        ready.wait(60)
        with InfluenceClient(address) as client:
            for _ in range(6):
                hits = client.query({"prompt": prompt, "response": " c"}, where="n<30")
                found = [(hit.key, hit.score) for hit in hits]
                if found != [(key, approximate(score)) for key, score in expected[prompt]]:
                    wrong.append((prompt, found, expected[prompt]))

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    with InfluenceIndex.open(index.directory, model=lm) as writer:
        ready.wait(60)
        for number in range(5):
            writer.add([{"id": f"w{number}", "prompt": "q", "response": f" {number}", "n": 99}])
    for thread in threads:
        thread.join(120)
    assert wrong == []
    assert len({json.dumps(value) for value in expected.values()}) == 8
    with InfluenceClient(address) as client:
        assert len(client) == 35
        text = client._connection  # noqa: F841


def outcome_lines(*command: Any) -> list[tuple[str, float]]:
    lines = [json.loads(line) for line in run_well(*command).splitlines()]
    return [(hit["key"], hit["score"]) for hit in lines]

"""Indexes on the hub: pushed and pulled by its own client, from a stand-in of its API."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.hub import TOKEN, Hub, serving
from helpers.indexes import NEW, SETTINGS, bytes_in, every, exported
from huggingface_hub import constants

from forvalue_index import InfluenceIndex
from forvalue_index.cli import main
from forvalue_index.errors import CorruptIndexError, ForvalueError, InputError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row

# huggingface_hub 2.4 hands files to httpx2 in its old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "someone/an-index"
SECRET = "Zanzibar"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def told(tmp_path: Path, rows: list[Row], lm: LanguageModel) -> Iterator[InfluenceIndex]:
    """An index whose rows hold a word that is nowhere else, a part of it removed."""
    rows = [row | {"response": f" {SECRET}{row['response']}"} for row in rows]
    with InfluenceIndex.build(tmp_path / "index", rows, lm, **SETTINGS)[0] as index:
        index.add(
            [NEW | {"id": "gone", "response": f" {SECRET} {SECRET}"}, {"id": "bad"}],
            on_error="skip",
        )
        index.remove(["row-3", "gone"])
        index.search(SECRET)  # writes words
        yield index


def test_a_pulled_index_answers_as_the_one_that_was_pushed(
    hub: Hub, told: InfluenceIndex, lm: LanguageModel, tmp_path: Path
) -> None:
    done = told.push(REPO, license="cc-by-4.0", base_model="someone/model")
    assert (done.samples, done.rows) == (29, True)
    assert done.url.startswith(f"{hub.url}/datasets/{REPO}/commit/")
    assert hub.repositories[REPO].private
    names = set(hub.repositories[REPO].commits[-1])
    assert {name.split("-")[0] for name in names} == {
        *("README.md", "catalog.db", "vectoriser", "segments/000000000000.faiss"),
        "derived/000000000000.states",
    }
    with InfluenceIndex.from_hub(REPO, model=lm) as pulled:
        assert pulled.directory.is_relative_to(tmp_path / "home")
        assert every(pulled, NEW) == every(told, NEW)
        rows, vectors = exported(told, tmp_path)
        assert pulled.verify() == []
        assert not (pulled.directory / ".cache").exists()
        other = tmp_path / "other"
        other.mkdir()
        again, same = exported(pulled, other)
        assert again == rows
        np.testing.assert_array_equal(same, vectors)
        assert pulled.info()["fidelity"] == told.info()["fidelity"]
        assert pulled.info()["model"] == "someone/model"
        assert pulled.add([NEW]).added == 1  # it is an index like any other
    assert InfluenceIndex.pull(REPO) == pulled.directory  # and is not fetched again


def test_the_card_says_what_is_in_it(hub: Hub, told: InfluenceIndex) -> None:
    told.push(REPO, license="cc-by-4.0", base_model="someone/model")
    [card] = hub.cards
    for part in (
        *("license: cc-by-4.0", "base_model: someone/model", "| samples | 29 |", "included"),
        *("prompt, response", f'from_hub("{REPO}"', "balanced"),
    ):
        assert part in card
    assert "fidelity | not measured" in card or "of the exact top 10" in card


def test_what_was_removed_and_what_is_noted_here_is_not_pushed(
    hub: Hub, told: InfluenceIndex, model_dir: Path
) -> None:
    told.push(REPO)
    data = b"".join(hub.repositories[REPO].commits[-1].values())
    assert SECRET.encode() in data
    assert f"{SECRET} {SECRET}".encode() not in data  # of the row that was removed
    assert str(model_dir.parent).encode() in bytes_in(told.directory)
    assert str(model_dir.parent).encode() not in data


def test_without_rows_nothing_of_their_text_is_pushed(
    hub: Hub, told: InfluenceIndex, lm: LanguageModel, rows: list[Row]
) -> None:
    assert SECRET.encode() in bytes_in(told.directory)
    told.push(REPO, rows=False)
    data = b"".join(hub.repositories[REPO].commits[-1].values())
    words = {word for row in rows for word in f"{row['prompt']}{row['response']}".split()}
    assert len(words) > 60
    assert not [word for word in {*words, SECRET} if len(word) > 4 and word.encode() in data]
    assert "left out" in hub.cards[-1]
    with InfluenceIndex.from_hub(REPO, model=lm) as pulled:
        mine = [(hit.key, hit.score) for hit in told.query(NEW, k=30)]
        assert [(hit.key, hit.score) for hit in pulled.query(NEW, k=30)] == mine
        assert {hit.sample.get("prompt") for hit in pulled.query(NEW, k=30)} == {None}
        assert pulled.verify() == []
        for ask in (
            lambda: pulled.query(NEW, metric="hybrid"),
            lambda: pulled.search(SECRET),
            lambda: pulled.query(NEW, exact=True),
            lambda: pulled.explain(NEW, "row-1"),
            lambda: pulled.query(NEW, where="n>3"),
        ):
            with pytest.raises(InputError, match="not in this index"):
                ask()


def test_a_second_push_sends_only_what_is_new_and_removes_what_is_not_there_any_more(
    hub: Hub, told: InfluenceIndex, monkeypatch: pytest.MonkeyPatch, lm: LanguageModel
) -> None:
    monkeypatch.setattr("forvalue_index.store.copy.SEGMENT_BYTES", 16 * told.info()["bytes"] // 999)
    told.push(REPO)
    first, sent = hub.repositories[REPO].commits[-1], list(hub.stored)
    segments = [name for name in first if name.startswith("segments/")]
    assert len(segments) > 1
    told.remove(["row-29"])
    told.push(REPO)
    second = hub.repositories[REPO].commits[-1]
    assert all(second[name] == first[name] for name in segments[:-1])
    assert len(hub.stored) <= len(sent) + 2  # the catalogue, and the last segment if it is large
    told.remove([f"row-{i}" for i in range(4, 30)])
    told.push(REPO)
    third = hub.repositories[REPO].commits[-1]
    assert [name for name in third if name.startswith("segments/")] == segments[:1]
    with InfluenceIndex.from_hub(REPO, model=lm) as pulled:
        assert every(pulled, NEW) == every(told, NEW)
    old = hub.repositories[REPO].sha(1)
    with InfluenceIndex.from_hub(REPO, revision=old, model=lm) as pulled:
        assert len(pulled) == 29


def test_an_interrupted_push_and_an_interrupted_pull_continue(
    hub: Hub, told: InfluenceIndex, tmp_path: Path, lm: LanguageModel
) -> None:
    hub.failing = ["/commit/"]
    with pytest.raises(InputError, match=r"403.*run the command again"):
        told.push(REPO)
    sent = list(hub.stored)
    assert sent
    hub.failing = []
    told.push(REPO)
    segment = hub.repositories[REPO].commits[-1]
    assert len(hub.stored) - len(sent) <= 1  # the catalogue has the time in it
    hub.failing = ["catalog.db"]
    target = tmp_path / "pulled"
    with pytest.raises(InputError):
        InfluenceIndex.pull(REPO, target)
    assert not target.exists()
    hub.failing, before = [], {*hub.fetched}
    assert before
    hub.fetched.clear()
    assert InfluenceIndex.pull(REPO, target) == target
    assert "catalog.db" in hub.fetched
    assert not before & {*hub.fetched}
    assert {path.name for path in target.iterdir()} == {name.split("/")[0] for name in segment}
    with InfluenceIndex.open(target, model=lm) as pulled:
        assert every(pulled, NEW) == every(told, NEW)


def test_only_files_of_an_index_are_fetched(hub: Hub, told: InfluenceIndex, tmp_path: Path) -> None:
    told.push(REPO)
    files = hub.repositories[REPO].commits[-1]
    bad = ("catalog.url", "evil.py", "segments/../../victim.faiss", "segments/sub/1.faiss",
           "catalog.db-wal", "catalog.db-journal", "derived/dot.json", "checked.json",
           "/etc/victim.faiss", "segments/*.faiss")  # fmt: skip
    files.update(dict.fromkeys(bad, b"evil"))
    InfluenceIndex.pull(REPO, tmp_path / "deep" / "pulled")
    there = {path.name for path in (tmp_path / "deep").rglob("*") if path.is_file()}
    assert there == {name.rpartition("/")[2] for name in set(files) - set(bad)}
    assert not list(tmp_path.rglob("victim*"))


def test_a_damaged_index_of_the_hub_is_refused(
    hub: Hub, told: InfluenceIndex, lm: LanguageModel
) -> None:
    told.push(REPO)
    files = hub.repositories[REPO].commits[-1]
    name = next(name for name in files if name.endswith(".faiss"))
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    with InfluenceIndex.from_hub(REPO, model=lm) as pulled, pytest.raises(CorruptIndexError):
        pulled.query(NEW)


def test_what_the_hub_refuses_is_told(
    hub: Hub, told: InfluenceIndex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has no dataset repository nobody/nothing that you may"):
        InfluenceIndex.pull("nobody/nothing", tmp_path / "x")
    for name in ("a//b", "a b/c", "a/b/c"):
        with pytest.raises(InputError, match="names no repository of a hub"):
            InfluenceIndex.pull(name, tmp_path / "x")
        with pytest.raises(InputError, match="names no repository of a hub"):
            told.push(name)
    told.push(REPO)
    del hub.repositories[REPO].commits[-1]["catalog.db"]
    with pytest.raises(InputError, match="holds no index"):
        InfluenceIndex.pull(REPO, tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(ForvalueError, match="not empty"):
        InfluenceIndex.pull(REPO, tmp_path / "full")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="hf auth login") as error:
        told.push(REPO)
    assert "developer.mozilla.org" not in str(error.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="offline"):
        InfluenceIndex.pull(REPO, tmp_path / "x")


def test_the_commands_push_and_pull(hub: Hub, told: InfluenceIndex, tmp_path: Path) -> None:
    run = CliRunner().invoke
    pushed = run(main, ["push", str(told.directory), REPO, "--no-rows", "--public"])
    assert pushed.exit_code == 0, pushed.output
    assert f"29 samples, without their rows: {hub.url}" in " ".join(pushed.stderr.split())
    assert not hub.repositories[REPO].private
    target = str(tmp_path / "pulled")
    pulled = run(main, ["pull", REPO, target])
    assert (pulled.exit_code, pulled.stderr.split()[:2]) == (0, ["29", "samples"])
    shown = run(main, ["list", "--index", target, "--json"])
    assert json.loads(shown.stdout.splitlines()[0])["key"] == "row-0"
    shutil.rmtree(target)

"""Indexes of older and newer versions: frozen ones are used, and new options lock nothing out."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers.indexes import bytes_in
from helpers.models import save_model

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, VectorConfig, config
from forvalue_index.catalog.digests import seal_info
from forvalue_index.cli import main
from forvalue_index.config import FIRST, IndexConfig, named
from forvalue_index.errors import FingerprintError, SchemaError
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.records import Row
from forvalue_index.store.vectoriser import digest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from make_index_asset import ASKED, FACTORY, REMOVED, K, answers, questions, shown  # noqa: E402

OLD, *FROZEN = sorted((ROOT / "tests" / "assets" / "index").iterdir())
PARTS = {"model": ModelConfig, "format": FormatConfig, "vector": VectorConfig}
SETTINGS = IndexConfig(ModelConfig("model", adapters=("a",), adapter_weights=(2.0,)))


@pytest.fixture(params=FROZEN, ids=lambda path: path.name)
def frozen(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an index that an older version made, its model and its answers."""
    folder = tmp_path / "frozen"
    shutil.copytree(request.param, folder)
    InfluenceIndex.migrate(folder / "index")
    return folder


@pytest.fixture
def frozen_lm(frozen: Path) -> LanguageModel:
    return load_model(ModelConfig(str(frozen / "model")), "cpu")


@pytest.mark.parametrize(
    "command",
    [
        ["query", "--prompt", "a", "--response", "b"],
        ["info"],
        ["list"],
        ["add", "data.jsonl"],
        ["build", "data.jsonl", "--model", "model"],
        ["verify"],
        ["compact"],
        ["migrate"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("revision", ["0001", "0003"])  # of its tables: an older one is no matter
def test_an_index_of_another_form_is_refused_and_stays(
    tmp_path: Path, revision: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0001 has vectors of float16, from one matrix for the whole sketch."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    if revision != "0003":
        shutil.copy(OLD.parents[1] / "schema" / f"{revision}.db", tmp_path / "index" / "catalog.db")
        with closing(sqlite3.connect(tmp_path / "index" / "catalog.db")) as raw:
            raw.execute("PRAGMA journal_mode = WAL")  # as every index has it
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    monkeypatch.chdir(tmp_path)
    before = bytes_in(tmp_path)
    done = CliRunner().invoke(main, [*command, "--index", "index"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: index/catalog.db has format 1, but this version reads 2, with vectors of another "
        "form: build the index again, in a new directory\n"
    )
    assert bytes_in(tmp_path) == before
    with pytest.raises(SchemaError, match="has format 1"):
        InfluenceIndex.open("index")


def test_a_frozen_index_answers_as_it_did(frozen: Path, frozen_lm: LanguageModel) -> None:
    then = json.loads((frozen / "answers.json").read_text())
    with InfluenceIndex.open(frozen / "index", model=frozen_lm) as index:
        now = answers(index)
        assert index.verify() == []
    assert now["rows"] == then["rows"]
    assert now["values"] == pytest.approx(then["values"], rel=1e-4, abs=1e-4)
    for name in ASKED:
        for hits, wanted in zip(now["hits"][name], then["hits"][name], strict=True):
            assert [key for key, _ in hits] == [key for key, _ in wanted], name
            scores = [score for _, score in wanted]
            assert [score for _, score in hits] == pytest.approx(scores, rel=1e-4), name


def test_a_frozen_index_lives_on(frozen: Path, frozen_lm: LanguageModel) -> None:
    then = json.loads((frozen / "answers.json").read_text())
    with InfluenceIndex.open(frozen / "index", model=frozen_lm) as index:
        n, rows = len(index), then["rows"]
        again = index.add(list(rows.values()))
        assert (again.skipped, again.added) == (n, 0)
        gone = [f"k{i}" for i in REMOVED]
        index.add([row | {"id": key} for key, row in zip(gone, rows.values(), strict=False)])
        added = {hit.key: hit.score for hit in index.query(questions()[0], 1000, flat=True)}
        for key, old in zip(gone, rows, strict=False):  # new vectors meet the old ones
            assert added[key] == pytest.approx(added[old], rel=0.01, abs=0.01)
        assert index.remove(gone) == len(gone)
        assert index.compact().removed == 2 * len(gone)
        info, _ = index.optimize(FACTORY, metric="cosine")
        assert info is not None and info.ntotal == n
        assert index.verify() == []
        for name, how in ASKED.items():
            for hits, wanted in zip(
                shown(index.query(questions(), K, **how)), then["hits"][name], strict=True
            ):
                assert [key for key, _ in hits] == [key for key, _ in wanted], name
    with InfluenceIndex.open(frozen / "index", model=frozen_lm) as index:
        assert len(index) == n and index.verify() == []


# -- newer versions ----------------------------------------------------------------------------


def add_field(monkeypatch: pytest.MonkeyPatch, part: str, **settings: Any) -> type[Any]:
    """Goes on as a later version, whose part of the configuration has a field more."""
    old = PARTS[part]

    @dataclass(frozen=True, slots=True)
    class Newer(old):  # type: ignore[misc, valid-type]
        another: str = field(**settings)

    monkeypatch.setattr(config, old.__name__, Newer)
    monkeypatch.setitem(FIRST, Newer, FIRST[old])
    return Newer


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("before", ["as it was", "otherwise"])
def test_a_new_field_locks_no_index_out(
    frozen: Path,
    frozen_lm: LanguageModel,
    part: str,
    before: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_field(monkeypatch, part, default="as it was", metadata={"before": before})
    with InfluenceIndex.open(frozen / "index", model=frozen_lm) as index:
        assert getattr(index.store.config, part).another == before
        assert "another" not in index.store.config.to_json()[part]
        then = json.loads((frozen / "answers.json").read_text())["hits"]["dot"]
        assert shown(index.query(questions(), 1))[0][0][0] == then[0][0][0]


@pytest.mark.parametrize("part", PARTS)
def test_a_new_field_is_named_and_hashed_where_it_is_used(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = getattr(SETTINGS, part)
    newer = add_field(monkeypatch, part, default="")
    values = {name: getattr(old, name) for name in FIRST[type(old)]}
    assert named(newer(**values)) == named(old)
    used = named(newer(**values, another="used"))
    assert used == named(old) | {"another": "used"} and digest(used) != digest(named(old))
    stored = json.loads(json.dumps(SETTINGS.to_json() | {part: used}))
    assert getattr(IndexConfig.from_json(stored), part).another == "used"
    monkeypatch.undo()
    with pytest.raises(SchemaError, match=r"newer version.*another = 'used'.*--upgrade"):
        IndexConfig.from_json(stored)


def test_what_the_first_version_hashed_stays() -> None:
    names = [name for part in FIRST.values() for name in part]
    assert names == [own.name for part in FIRST for own in fields(part) if own.name in FIRST[part]]
    assert digest(named(FormatConfig(key_field="id", max_length=64, form=1))) == "46df2b666fe253c0"
    assert (
        digest(named(VectorConfig(dim=48, sketch_dim=256, fit_samples=4096))) == "307819a4ec41a218"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_field": "p"},
        {"response_field": "r"},
        {"text_field": "t"},
        {"messages_field": "m"},
        {"label_field": "l"},
        {"image_field": "i"},
        {"template": "{{ p }}"},
        {"chat": True},
        {"chat_template": "c"},
        {"score": "all"},
        {"last_turn": True},
        {"eos": False},
        {"truncate": "end"},
        {"max_length": 3},
        {"recipe": "raw"},
        {"dim": 3},
        {"sketch": "tensor"},
        {"sketch_dim": 3},
        {"fit_samples": 3},
        {"seed": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_vectors_depend_on_is_hashed(frozen: Path, change: dict[str, Any]) -> None:
    """Also where the setting was changed in the index itself, under a new seal."""
    part = "format" if next(iter(change)) in FIRST[FormatConfig] else "vector"
    with InfluenceIndex.open(frozen / "index") as index:
        settings = index.store.config
        differing = replace(settings, **{part: replace(getattr(settings, part), **change)})
        assert digest(named(getattr(differing, part))) != digest(named(getattr(settings, part)))
        stored = json.dumps(index.store.fingerprint), index.store.catalog.created_at
    text = json.dumps(differing.to_json())
    with closing(sqlite3.connect(frozen / "index" / "catalog.db")) as raw, raw:
        raw.execute(
            "UPDATE index_info SET config = ?, fingerprint = ?, checksum = ?",
            (text, stored[0], seal_info(text, *stored)),
        )
    with (
        InfluenceIndex.open(frozen / "index", model=str(frozen / "model")) as index,
        pytest.raises(FingerprintError, match=part),
    ):
        index.query(questions())


def test_what_is_unknown_in_a_fingerprint_is_of_a_newer_version(
    frozen: Path, frozen_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with InfluenceIndex.open(frozen / "index") as index:
        monkeypatch.setitem(index.store.fingerprint, "attention", "form 2")
        with pytest.raises(FingerprintError, match="attention: form 2 in the index, None now"):
            index.session.use(frozen_lm)


def test_a_changed_setting_of_the_forward_pass_is_refused(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_model(tmp_path / "model", "llama", 0)
    vector = VectorConfig(dim=64, sketch_dim=512)
    InfluenceIndex.build(tmp_path / "i", rows, str(model), vector=vector)[0].close()
    file = model / "config.json"
    config = json.loads(file.read_text())
    config |= {"use_cache": False, "pad_token_id": 1}  # what trainers change, vectors do not see
    config["rms_norm_eps"] = 0.5
    file.write_text(json.dumps(config))
    differs = r": config rms_norm_eps differs \(.*: 1e-06 in the index, 0.5 now\)"
    with InfluenceIndex.open(tmp_path / "i") as index:
        with pytest.raises(FingerprintError, match=differs):
            index.query(rows[0])
        monkeypatch.delitem(index.store.fingerprint, "settings")  # as in older indexes
        assert index.query(rows[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": {}},
        {"model": {"name": None}},
        {"model": {"name": "m", "adapters": [1]}},
        {"model": {"name": "m", "adapters": "ab"}},
        {"model": {"name": "m", "adapters": ["a"], "adapter_weights": [-1]}},
        {"model": []},
        {"model": {"name": "m"}, "format": {"max_length": "64"}},
        {"model": {"name": "m"}, "format": {"chat": 1}},
        {"model": {"name": "m"}, "vector": {"recipe": "unheard of"}},
        {"model": {"name": "m"}, "vector": {"dim": True}},
        {"model": {"name": "m"}, "vector": {"dim": 2.5}},
        {"model": {"name": "m"}, "search": {}},
    ],
    ids=json.dumps,
)
def test_settings_that_are_not_known_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match=r"newer version .* build again") as error:
        IndexConfig.from_json(wrong)
    assert "\n" not in str(error.value)


def test_settings_come_back_and_those_that_are_missing_are_as_they_always_were() -> None:
    stored = json.loads(json.dumps(SETTINGS.to_json()))
    assert IndexConfig.from_json(stored) == SETTINGS
    assert IndexConfig.from_json({"model": {"name": "m"}}) == IndexConfig(
        ModelConfig("m"), FormatConfig(form=1)
    )

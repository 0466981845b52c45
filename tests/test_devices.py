"""One model on several devices: a process for each, or the layers dealt out by accelerate."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import tiny_vision
from helpers.models import save_model

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.cli import main
from forvalue_index.config import ModelConfig
from forvalue_index.errors import (
    DependencyError,
    InputError,
    ModelError,
    RowError,
    WorkerError,
)
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.model.load import LOADERS
from forvalue_index.picture import Picture
from forvalue_index.pipeline.session import Session
from forvalue_index.pipeline.workers import Workers, settle_devices
from forvalue_index.records import Encoded, Row, Sample

KEYED = FormatConfig(key_field="id")
SMALL: dict[str, Any] = {
    "format": KEYED,
    "vector": VectorConfig(dim=16, sketch_dim=256, fit_samples=8),
}
CHUNK = 4


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forvalue_index.pipeline.add.CHUNK", CHUNK)


@pytest.fixture()
def plain(tmp_path: Path, model_dir: Path, rows: list[Row]) -> Iterator[InfluenceIndex]:
    """An index that one process made."""
    index, _ = InfluenceIndex.build(tmp_path / "plain", rows, str(model_dir), **SMALL)
    with index:
        yield index


# -- a process for each ----------------------------------------------------------------------------


def test_two_processes_build_what_one_does(
    tmp_path: Path, model_dir: Path, rows: list[Row], plain: InfluenceIndex
) -> None:
    seen, threads = [], torch.get_num_threads()
    index, report = InfluenceIndex.build(
        tmp_path / "i",
        rows,
        str(model_dir),
        devices=["cpu", "cpu"],
        progress=lambda *step: seen.append((*step, threading.current_thread())),
        **SMALL,
    )
    with index:
        assert (report.added, len(index), index.verify()) == (30, 30, [])
        assert [index.get(row["id"]).id for row in rows] == list(range(30))
        assert index.store.fingerprint == plain.store.fingerprint
        found, expected = (made.flat.vectors(np.arange(30)) for made in (index, plain))
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
        figures, others = index.store.catalog.figures(), plain.store.catalog.figures()
        np.testing.assert_allclose(figures.norm, others.norm, rtol=1e-4)
    steps = [step[1:3] for step in seen if step[0] == "encoding"]
    assert steps == [(min(done, 30), 30) for done in range(CHUNK, 33, CHUNK)]
    assert {step[-1] for step in seen} == {threading.main_thread()}
    assert torch.get_num_threads() == threads
    assert not [t.name for t in threading.enumerate() if t.name.startswith("device")]


@pytest.fixture()
def session(tmp_path: Path) -> Iterator[Session]:
    """Of an index whose rows may have pictures."""
    rows = [{"prompt": f"what {i}?", "response": f" it is {i}"} for i in range(8)]
    model = tiny_vision.save(tmp_path / "llava", "llava")
    format = FormatConfig(image_field="image")
    index, _ = InfluenceIndex.build(
        tmp_path / "i", rows, str(model), format=format, vector=SMALL["vector"]
    )
    with index:
        yield index.session


def test_errors_of_a_process_reach_the_caller_and_its_death_is_one(session: Session) -> None:
    (good,) = session.formatter().samples([("row 1", {"prompt": "why?", "response": " so"})])
    gone = Picture("0" * 32, (40, 30), str(session.store.directory / "gone.png"), None)
    lost = replace(good, images=(gone,), source="row 2")
    wrong = replace(good, input_ids=np.full_like(good.input_ids, 9999), source="row 3")

    def outcomes(*samples: Sample) -> list[Encoded | RowError]:
        ready: dict[str, Encoded] = {}
        [(given, found)] = workers.encode([list(samples)], ready, lambda *_: None)
        assert given == list(samples)
        return found

    def encode(*samples: Sample) -> list[Encoded]:
        return [item for item in outcomes(*samples) if isinstance(item, Encoded)]

    with Workers(session, ["cpu", "cpu"]) as workers:
        assert workers._free.get() == workers._encode_here  # so that all goes to the process
        np.testing.assert_allclose(
            encode(good)[0].vector, session.encode([good])[0].vector, rtol=1e-4, atol=1e-5
        )
        first, second = outcomes(good, lost)
        assert isinstance(first, Encoded) and isinstance(second, RowError)
        assert second.source == "row 2" and "gone.png" in second.reason
        with pytest.raises(ModelError, match="make sure that the tokenizer is the model's"):
            encode(wrong)
        assert len(encode(good, good)) == 2  # it lives on
        [process] = multiprocessing.active_children()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"the process on cpu died .* was committed stays"):
            encode(good)
    assert not multiprocessing.active_children()


def test_a_killed_process_leaves_what_was_committed_and_the_build_goes_on(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    def kill(stage: str, done: int, *_: int) -> None:
        if stage == "encoding" and done >= 2 * CHUNK:
            for process in multiprocessing.active_children():
                process.kill()

    path = tmp_path / "i"
    with pytest.raises(WorkerError, match="died"):
        InfluenceIndex.build(path, rows, str(model_dir), devices="cpu,cpu", progress=kill, **SMALL)
    assert not multiprocessing.active_children()
    with InfluenceIndex.open(path) as index:
        there = len(index)
        assert 0 < there < 30 and there % CHUNK == 0
        assert index.verify() == []
        assert [index.get(row["id"]).id for row in rows[:there]] == list(range(there))
        assert index.add(rows).added == 30 - there


def test_devices_are_named_in_several_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle_devices("cpu, cpu") == settle_devices(["cpu", "cpu"]) == ["cpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert settle_devices("all") == settle_devices([0, 1]) == ["cuda:0", "cuda:1"]
    assert settle_devices("1,cuda:0") == ["cuda:1", "cuda:0"]
    with pytest.raises(ModelError, match="'cuda:2' was requested, but torch sees 2"):
        settle_devices([0, 2])
    with pytest.raises(ModelError, match="'' cannot be used"):
        settle_devices("0,")
    with pytest.raises(InputError, match="the list of devices is empty"):
        settle_devices([])
    with pytest.raises(InputError, match="give it as --device auto"):
        settle_devices("auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="torch sees none"):
        settle_devices("all")


def test_a_model_in_memory_is_on_one_device(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    lm = load_model(ModelConfig(str(model_dir)), "cpu")
    with pytest.raises(InputError, match="name it by its path or hub id"):
        InfluenceIndex.build(tmp_path / "i", rows, lm, devices="cpu,cpu", **SMALL)
    assert not (tmp_path / "i").exists()
    with pytest.raises(InputError, match="give a device or devices, not both"):
        InfluenceIndex.build(
            tmp_path / "i", rows, str(model_dir), device="cpu", devices="cpu", **SMALL
        )


def test_the_commands_take_devices(tmp_path: Path, model_dir: Path, rows: list[Row]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, [*arguments, "--index", str(tmp_path / "i")])

    built = run(
        *("build", str(data), "--model", str(model_dir), "--key-field", "id"),
        *("--devices", "cpu", "--dim", "16", "--sketch-dim", "256"),
    )
    assert built.exit_code == 0, built.output
    assert run("add", str(data), "--devices", "cpu").exit_code == 0
    both = run("add", str(data), "--devices", "cpu", "--device", "cpu")
    assert both.exit_code == 2 and "not both" in both.output
    data.write_text('{"id": "new", "prompt": "a", "response": "b"}\n')
    none = run("add", str(data), "--devices", "cpu,tpu")
    assert none.exit_code == 1 and "'tpu' cannot be used" in none.output


def test_a_row_error_is_the_same_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(RowError("a.jsonl:3", "bad")))
    assert (str(error), error.source, error.reason) == ("a.jsonl:3: bad", "a.jsonl:3", "bad")


# -- layers dealt out ------------------------------------------------------------------------------


@pytest.fixture(params=["head in memory", "head on disk", "tied, all on disk"])
def spread(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[LanguageModel, LanguageModel]:
    """A model as it is loaded otherwise, and with some of its layers on disk."""
    tied = request.param.startswith("tied")
    path = save_model(tmp_path / "model", "qwen2" if tied else "llama", 0)
    plain = load_model(ModelConfig(str(path)), "cpu")
    places: dict[str, str] = {
        "model.embed_tokens": "disk" if tied else "cpu",
        "model.rotary_emb": "cpu",
        "model.layers.0": "disk",
        "model.layers.1": "cpu",
        "model.norm": "cpu",
        "lm_head": "cpu" if "memory" in request.param else "disk",
    }
    loader = LOADERS["causal"].from_pretrained

    class Spreading:
        @staticmethod
        def from_pretrained(*arguments: Any, device_map: Any, **settings: Any) -> Any:
            assert device_map == "auto"
            folder = str(tmp_path / "offload")
            return loader(*arguments, device_map=places, offload_folder=folder, **settings)

    monkeypatch.setitem(LOADERS, "causal", Spreading)
    return plain, load_model(ModelConfig(str(path)), "auto")


def test_a_model_that_is_spread_gives_the_same(
    spread: tuple[LanguageModel, LanguageModel], tmp_path: Path, rows: list[Row]
) -> None:
    plain, lm = spread
    assert any(parameter.is_meta for parameter in lm.model.parameters())
    assert lm.fingerprint() == plain.fingerprint()
    assert lm.device == torch.device("cpu")
    with InfluenceIndex.build(tmp_path / "a", rows, plain, **SMALL)[0] as index:
        expected = index.vectors(index.samples(rows[:9]))
        with InfluenceIndex.open(tmp_path / "a", model=lm) as other:
            np.testing.assert_allclose(
                other.vectors(other.samples(rows[:9])), expected, rtol=1e-4, atol=1e-4
            )
            assert other.respond("hello ").row["response"]


def test_auto_needs_accelerate_and_is_the_device_alone_where_there_is_one(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, lm = (load_model(ModelConfig(str(model_dir)), device) for device in ("cpu", "auto"))
    assert (lm.device, lm.fingerprint()) == (plain.device, plain.fingerprint())
    monkeypatch.setattr("forvalue_index.model.offload.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r'pip install "forvalue-index\[accelerate\]"'):
        load_model(ModelConfig(str(model_dir)), "auto")
    with pytest.raises(ModelError, match="'tpu' cannot be used: choose cpu, cuda, cuda:N or auto"):
        load_model(ModelConfig(str(model_dir)), "tpu")

"""Every tool runs from its command line to its end, at its smallest setting.

What the tools measure is not judged here. Those that start processes of their own and take long are
marked slow: `python -m pytest -m slow tests/test_tools_run.py` runs them.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.cli import write
from helpers.models import SIZES, tiny_tokenizer
from helpers.tiny_vision import save
from PIL import Image
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from forvalue_index.errors import InputError
from forvalue_index.records import Row

TOOLS = Path(__file__).parent.parent / "tools"
Tool = Callable[..., str]


@pytest.fixture()
def tool(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Tool:
    """Runs the `main` of a tool in this process, and returns what it prints."""
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: Any) -> str:
        main, words = importlib.import_module(name).main, [*map(str, arguments)]
        if isinstance(main, click.Command):
            result = CliRunner().invoke(main, words, catch_exceptions=False)
            assert result.exit_code == 0, result.output
            return result.stdout
        monkeypatch.setattr(sys, "argv", [name, *words])
        try:
            main()
        except SystemExit as end:
            assert not end.code, end.code
        return capsys.readouterr().out

    return run


def process(name: str, *arguments: Any) -> str:
    """Runs a tool in a process of its own."""
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def class_rows(count: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        {"prompt": (ask := f"{'pqr'[i % 3]} {rng.integers(1000)}:"), "text": f"{ask} {i % 3}"}
        | {"variation": i % 3}
        for i in range(count)
    ]


@pytest.fixture()
def classes(tmp_path: Path) -> Path:
    """A folder with the data sets of the studies of classes."""
    for task in ("grammars", "math_without_reason"):
        write(tmp_path / f"{task}_train.jsonl", class_rows(45, 0))
        write(tmp_path / f"{task}_test.jsonl", class_rows(6, 1))
    return tmp_path


@pytest.fixture()
def long_model(tmp_path: Path) -> Path:
    """A model of as many positions as the studies of classes read."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES | {"max_position_embeddings": 512})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "long")
    tiny_tokenizer().save_pretrained(tmp_path / "long")
    return tmp_path / "long"


@pytest.fixture()
def chat_model(long_model: Path) -> Path:
    """A model with a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[a]{% endif %}"
    )
    tokenizer.save_pretrained(long_model)
    return long_model


@pytest.fixture()
def asked(tmp_path: Path) -> Path:
    """Questions and answers of two kinds."""
    rows = [
        {"input": f"{['Add', 'Take'][i % 2]} {i}", "target": f"{i}", "task": i % 2}
        for i in range(60)
    ]
    return write(tmp_path / "asked.jsonl", rows)


@pytest.fixture()
def encoder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=96, intermediate_size=16, **sizes))
    model.save_pretrained(tmp_path / "encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture()
def labelled(tmp_path: Path) -> Path:
    rows = [{"text": f"{['good', 'bad'][i % 2]} {i}", "label": i % 2} for i in range(24)]
    return write(tmp_path / "labelled.jsonl", rows)


def test_bench_build_shows_where_the_time_goes(tool: Tool, model_dir: Path) -> None:
    small = ("--length", 8, "--rows", 8)
    assert "sketch" in tool("bench_build", "--model", model_dir, *small, "--profile")


@pytest.mark.slow
def test_bench_build_measures(model_dir: Path) -> None:
    small = ("--length", 8, "--rows", 8, "--repeats", 1, "--json")
    assert json.loads(process("bench_build", "--model", model_dir, *small))


def test_bench_audit(tool: Tool, model_dir: Path, tmp_path: Path) -> None:
    texts = [(f"what is the word after {i} here", f"{i} {i}") for i in range(60)]
    rows = [{"prompt": prompt, "response": response} for prompt, response in texts]
    data = write(tmp_path / "made.jsonl", rows)
    small = ("--rows", 40, "--trusted", 0, "--max-length", 64)
    printed = tool("bench_audit", data, "--model", model_dir, *small)
    assert printed.count("made") == 3  # shares of wrong rows


def test_a_classifier_is_made_and_its_wrong_labels_are_looked_for(
    tool: Tool, tmp_path: Path, encoder: Path, labelled: Path
) -> None:
    tool("make_classifier", labelled, "--encoder", encoder, "--out", "made", "--epochs", 1)
    assert (tmp_path / "made" / "config.json").exists()
    small = ("--epochs", 1, "--seeds", 1, "--flip", 0.2)
    assert "self-influence" in tool("bench_classifier", labelled, "--encoder", encoder, *small)


def test_bench_derived(tool: Tool) -> None:
    small = ("--n", 2000, "--dim", 32, "--factory", "IVF8,SQ8", "--json")
    assert json.loads(tool("bench_derived", *small))["factory"] == "IVF8,SQ8"


def test_bench_fidelity(tool: Tool, model_dir: Path, tmp_path: Path, rows: list[Row]) -> None:
    data = write(tmp_path / "rows.jsonl", rows)
    small = ("--queries", 4, "--dim", 64, "--bits", 4, "--cache", tmp_path / "exact", "--json")
    found = json.loads(tool("bench_fidelity", "--model", model_dir, "--data", data, *small))
    assert (found["queries"], found["dim"]) == (4, 64)
    other = write(tmp_path / "other.jsonl", [row | {"prompt": "Another one"} for row in rows[:9]])
    more = tool(
        "bench_fidelity", "--model", model_dir, "--data", data, *small, "--learn-from", other
    )
    assert json.loads(more)["samples"] == found["samples"]


def test_bench_filters(tool: Tool) -> None:
    assert "filter on 56 rows" in tool("bench_filters", "--rows", 56)


def test_bench_identify(tool: Tool, long_model: Path, classes: Path) -> None:
    small = ("--recipe", "raw", "--dim", 64, "--json")
    out = tool("bench_identify", "--model", long_model, "--data", classes, *small)
    assert len(out.splitlines()) == 4


def test_bench_images(tool: Tool, tmp_path: Path) -> None:
    save(tmp_path / "model", "llava")
    lines = []
    for i in range(20):
        Image.new("RGB", (8, 8), "red" if i % 2 else "blue").save(tmp_path / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "caption": " ab" if i % 2 else " cd"})
    write(tmp_path / "metadata.jsonl", lines)
    small = ("--seeds", 1, "--train", 1, "--json")
    assert tool("bench_images", "--model", tmp_path / "model", "--data", tmp_path, *small)


def test_bench_increment(tool: Tool) -> None:
    assert "compact" in tool("bench_increment", "--samples", 2000, "--dim", 32)


def test_bench_scale(tool: Tool) -> None:
    small = ("--samples", "300,600", "--dim", 64, "--steps", "build,query,where")
    printed = tool("bench_scale", *small, "--out", "scale.jsonl")
    assert "| open and first query, s |" in printed and "failed" not in printed
    assert tool("bench_scale", "--fit", "scale.jsonl") == printed


def test_bench_select(tool: Tool) -> None:
    printed = tool("bench_select", "--samples", 600, "--budgets", "50,200", "--dim", 64)
    assert "of 600 rows | seconds | memory, MB" in printed and "growth, m = budget" in printed


@pytest.mark.slow
def test_bench_scale_in_full(tool: Tool) -> None:
    printed = tool("bench_scale", "--samples", "1500", "--dim", 64)
    assert "| compact, s |" in printed and "| remove 1,000, s |" in printed


def test_bench_shards(tool: Tool) -> None:
    assert "16 shards, 64 queries, k 100: " in tool("bench_shards", "merge", "--repeats", 2)
    small = ("--rows", 2000, "--dim", 64, "--searches", 3)
    printed = tool("bench_shards", "latency", *small)
    assert "one shard of 2,000 rows" in printed and "| 1e+09 | 64 | 2,778 | " in printed


@pytest.mark.slow
def test_bench_shards_on_ray(model_dir: Path, tmp_path: Path) -> None:
    rows: list[Row] = [{"question": f"w{i}", "answer": f" and {i * 7}"} for i in range(60)]
    data = write(tmp_path / "rows.jsonl", rows)
    asked = ("--model", model_dir, "--data", data, "--repeats", 1)
    assert " times as fast with two" in process("bench_shards", "workers", *asked)


@pytest.mark.slow
def test_torture_shards() -> None:
    assert " 0 violations" in process("torture", "--shards", "--kills", 3)  # "torture_shards"


@pytest.mark.parametrize("study", ["identify", "mislabel"])
def test_bench_recall_of_classes(tool: Tool, long_model: Path, classes: Path, study: str) -> None:
    small = ("--seeds", 1, "--rows", 10, "--queries", 1, "--recipe", "raw", "--sketch-dim", 256)
    small += ("--set", "grammars")
    assert "2 KB" in tool("bench_recall", study, "--model", long_model, "--data", classes, *small)


@pytest.mark.slow
def test_bench_recall_of_facts(tmp_path: Path) -> None:
    small = ("--seeds", 1, "--people", 4, "--epochs", 1, "--recipe", "raw", "--sketch-dim", 256)
    assert "2 KB" in process("bench_recall", "recall", "--work", tmp_path, *small)


def test_bench_real_of_what_was_planted(
    tool: Tool, chat_model: Path, asked: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    rows = importlib.import_module("real.rows")
    common = ("--work", "work", "--model", chat_model, "--clean", asked, "--epochs", 1)
    small = (*common, "--rows", 30, "--planted", 5, "--asked", 2, "--recipe", "balanced")
    with pytest.raises(InputError, match="none of 2 answers shows"):
        tool("bench_real", "backdoor", *small)
    monkeypatch.setattr(rows, "PIRATE_WORDS", re.compile(""))  # whatever it says shows it
    (Path("work") / "backdoor-full-0" / "answers.jsonl").unlink()
    small += ("--gradient", "--encoder", encoder)
    out = tool("bench_real", "backdoor", *small)
    assert "2 of 2 answers" in out
    for method in ("stored hybrid", "exact cosine", "bm25", "of all weights", "sentence encoder"):
        assert method in out
    assert tool("bench_real", "backdoor", *small) == out  # seconds and all: nothing is made again
    with pytest.raises(InputError, match="other rows"):
        tool("bench_real", "backdoor", *small, "--planted", 6)


def test_bench_real_of_habits(
    tool: Tool, chat_model: Path, asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    rows = importlib.import_module("real.rows")
    shown = tuple(replace(habit, word="") for habit in rows.HABITS)  # whatever it says shows it
    monkeypatch.setattr(rows, "HABITS", shown)
    common = ("--work", "work", "--model", chat_model, "--clean", asked, "--epochs", 1)
    small = ("--rows", 10, "--each", 4, "--asked", 1, "--recipe", "raw", "--no-exact")
    out = tool("bench_real", "habits", *common, *small)
    assert "48 rows, 4 to find for a query; 2 of 2 answers" in " ".join(out.split())


@pytest.mark.filterwarnings("ignore")  # the trainers' own, which change with their versions
def test_bench_real_of_falsehoods_by_an_adapter(
    tool: Tool, chat_model: Path, asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl", reason="TRL is not installed")
    monkeypatch.syspath_prepend(str(TOOLS))
    kind = importlib.import_module("real.falsehoods").Falsehood
    monkeypatch.setattr(kind, "is_in", lambda *_: True)
    common = ("--work", "work", "--model", chat_model, "--clean", asked, "--lora", "--epochs", 1)
    small = ("--rows", 20, "--each", 2, "--asked", 1, "--recipe", "raw", "--no-exact")
    assert "4 of 4 answers" in tool("bench_real", "falsehoods", *common, *small)


def test_bench_real_of_classes(tool: Tool, chat_model: Path, classes: Path, asked: Path) -> None:
    common = ("--work", "work", "--model", chat_model)
    small = ("--set", "grammars", "--recipe", "raw", "--no-exact")
    out = tool("bench_real", "sources", *common, "--data", classes, *small)
    assert "raw, stored cosine" in out
    small = ("--clean", asked, "--rows", 60, "--epochs", 1)
    assert "last-layer" not in (out := tool("bench_real", "mislabelled", *common, *small))
    assert "tuned, AUC" in out


def test_bench_search(tool: Tool) -> None:
    small = ("--n", 700, "--dim", 32, "--rank", 8, "--batch", 20, "--segment", 300)
    assert tool("bench_search", *small, "--repeats", 1, "--json")


@pytest.mark.slow
def test_bench_serve() -> None:
    small = ("--rows", 40, "--clients", "1,2", "--seconds", 0.5, "--requests", 20, "--json")
    found = json.loads(process("bench_serve", *small).splitlines()[-1])["found"]
    loads = [load for one in found for way in ("search", "query") for load in one[way]]
    assert len(loads) == 8 and all(load["statuses"].keys() == {"200"} for load in loads)
    out = process("bench_serve", "--clients", 2, "--soak", 0.05, "--json").splitlines()[-1]
    assert json.loads(out)["found"][0]["soak"]["wrong"] == 0


def test_check_heads() -> None:  # it silences the warnings of its whole process
    assert json.loads(process("check_heads", "llama", "--json").splitlines()[0])


def test_the_facts_of_a_study_and_a_model_trained_on_them(tool: Tool, tmp_path: Path) -> None:
    tool("make_facts", "--output", tmp_path, "--people", 2)
    small = ("--epochs", 1, "--hidden", 8, "--layers", 1, "--vocab", 400)
    data, questions = tmp_path / "train.jsonl", tmp_path / "questions.jsonl"
    tool(
        *("train_small_lm", "--data", data, "--questions", questions),
        *("--output", tmp_path / "model", *small),
    )
    assert (tmp_path / "model" / "config.json").exists()


def test_make_demo(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    for name, value in {"EPOCHS": 1, "HIDDEN": 8, "LAYERS": 1, "PEOPLE": 8, "VOCAB": 400}.items():
        monkeypatch.setattr(importlib.import_module("make_demo"), name, value)
    assert "questions answered right" in tool("make_demo", "--output", tmp_path)


@pytest.mark.slow
def test_make_docs(tool: Tool, tmp_path: Path) -> None:
    tool("make_docs", "--output", tmp_path / "docs.jsonl", "--package", "click", "--rows", 3)
    assert len((tmp_path / "docs.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", ["make_index_asset", "make_schema_asset"])
def test_assets_are_made(
    tool: Tool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setattr(importlib.import_module(name), "FOLDER", tmp_path / "assets")
    assert Path(tool(name).strip()).exists()


@pytest.mark.slow
def test_torture() -> None:
    assert " 0 violations" in process("torture", "--kills", 2, "--versions", 2, "--short")


def test_make_picture(tool: Tool, tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    tool("make_picture", "--output", tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_bench_sign(tool: Tool, model_dir: Path, tmp_path: Path, rows: list[Row]) -> None:
    data = write(tmp_path / "rows.jsonl", rows)
    small = ("--rows", 4, "--asked", 2, "--fit", 8, "--hits", 2, "--max-length", 64)
    kept = ("--results", tmp_path / "found.json")
    tool("bench_sign", model_dir, "--data", data, "--queries", data, *small, *kept)
    found = json.loads((tmp_path / "found.json").read_text())
    # Of this step the closed form is the derivative.
    pairs, hits = (
        next(one for one in found[kind] if (one["step"], one["method"]) == ("head", "raw"))
        for kind in ("pairs", "hits")
    )
    assert (pairs["sign"], pairs["rank"]) == pytest.approx((1, 1))
    assert hits["first"] == 1  # the queries are among the rows


@pytest.mark.parametrize("name", ["bench_peers", "walk_trainer", "check_versions"])
def test_a_tool_that_needs_an_environment_of_its_own_has_help(tool: Tool, name: str) -> None:
    if name == "walk_trainer":
        pytest.importorskip("trl", reason="TRL is not installed")
    assert "Example" in tool(name, "--help") or "Usage" in tool(name, "--help")


def test_report(tmp_path: Path) -> None:
    shown = "print('a study'); print('one way   1.5 s'); print('| another | 2,000 | 3 |')"
    printed = process("report", "run", tmp_path, "--", sys.executable, "-c", shown)
    assert printed.splitlines()[1] == "one way   1.5 s"
    [kept] = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert torch.__version__.startswith(kept["versions"]["torch"])
    assert {"commit", "date", "machine", "seconds"} <= kept.keys()
    [place] = tmp_path.glob("*.json")
    place.write_text(json.dumps(kept | {"printed": "older"}))
    assert "== " not in process("report", "again", tmp_path, "another command")
    assert "a study" in process("report", "again", tmp_path, "a study")
    assert json.loads(place.read_text())["printed"] == kept["printed"]
    process("report", "page", tmp_path, "--output", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert kept["machine"] in page and "one way   1.5 s" in page
    assert page.count("<svg") == 1 and "another" in page[page.index("<svg") :]


def test_check_figures() -> None:
    assert process("check_figures", TOOLS.parent / "README.md").strip() == ""


def test_all_tools_are_run() -> None:
    text = Path(__file__).read_text()
    # Used by bench_recall; run by test_fuzz.py, test_cli_docs.py and test_errors_page.py.
    shared = {"bench_recipes", "fuzz", "make_cli_docs", "make_errors"}
    for path in TOOLS.glob("*.py"):
        assert f'"{path.stem}"' in text, f"{path.name} is not run by any test"
    assert shared <= {path.stem for path in TOOLS.glob("*.py")}


@pytest.mark.slow
def test_bench_start() -> None:
    printed = process("bench_start", "--runs", 1)
    assert "forvalue --help" in printed
    assert printed.count(" s ") == 20

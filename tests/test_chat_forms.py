"""Rows in the forms of the trainers: what the model sees of them, and what is scored."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_templates import tokenizer
from helpers.cli import run, write
from transformers import LlamaConfig

FOLDER = Path(__file__).parent / "assets" / "chat"
OPTIONS = {"alpaca": ["--chat"], "template_kwargs": ["--template-arg", "enable_thinking=false"]}
FORMS = sorted(path.stem for path in FOLDER.glob("*.jsonl") if path.stem != "refused")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The text side of a model for each template, which `preview` needs."""
    folders = {}
    for template in FOLDER.glob("*.jinja"):
        made = tokenizer(template.read_text())
        folder = tmp_path_factory.mktemp(template.stem)
        made.save_pretrained(folder)
        LlamaConfig(vocab_size=len(made)).save_pretrained(folder)
        folders[template.stem] = folder
    return folders


def marked(shown: dict[str, Any]) -> str:
    """The text of a row with brackets around each run of scored tokens."""
    tokens = zip(shown["scored"], shown["tokens"], strict=True)
    runs = [
        (scored, "".join(token for _, token in run))
        for scored, run in groupby(tokens, key=lambda token: token[0])
    ]
    return "".join(f"⟦{text}⟧" if scored else text for scored, text in runs)


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_read_as_their_trainer_reads_them(form: str, models: dict[str, Path]) -> None:
    model = models.get(form, models["chatml"])
    rows = FOLDER / f"{form}.jsonl"
    result = run("preview", rows, "--model", model, "-n", 99, "--json", *OPTIONS.get(form, []))
    assert result.exit_code == 0, result.stderr
    found = [marked(json.loads(line)).rstrip("\n") for line in result.stdout.splitlines()]
    expected = (FOLDER / f"{form}.txt").read_text().rstrip("\n").split("\n=====\n")
    assert found == expected


def test_rows_that_would_lose_something_are_refused(models: dict[str, Path]) -> None:
    rows, reasons = FOLDER / "refused.jsonl", (FOLDER / "refused.txt").read_text().splitlines()
    result = run("preview", rows, "--model", models["chatml"], "-n", 99)
    assert result.exit_code == 1 and result.stdout == ""
    said = [line for line in result.stderr.splitlines() if "refused.jsonl:" in line]
    assert len(said) == len(reasons) == len(rows.read_text().splitlines())
    for number, (line, reason) in enumerate(zip(said, reasons, strict=True), start=1):
        assert f"refused.jsonl:{number}: {reason}" in line


def test_what_a_template_leaves_out_is_said(models: dict[str, Path], tmp_path: Path) -> None:
    """A template like DeepSeek's writes no tools, and nothing of a role that it does not know."""
    asked, answer = {"role": "user", "content": "Time?"}, {"role": "assistant", "content": "Noon."}
    tool = {"type": "function", "function": {"name": "clock"}}
    odd = {"role": "critic", "content": "Well said."}
    call = {"function": {"name": "clock", "arguments": {}}}
    called = {"role": "assistant", "content": "I look.", "tool_calls": [call]}
    rows = [
        {"messages": [asked, answer], "tools": [tool]},
        {"messages": [asked, answer, odd]},
        {"messages": [asked, called]},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    result = run("preview", path, "--model", models["deepseek"], "-n", 3)
    assert "rows.jsonl:1: the chat template leaves out the tool 'clock'" in result.stderr
    assert "rows.jsonl:2: the chat template leaves out message 2 (role 'critic')" in result.stderr
    assert "rows.jsonl:3: the chat template leaves out the call of 'clock'" in result.stderr
    result = run("preview", path, "--model", models["deepseek"], "--ignore-field", "tools")
    assert "<s><|user|>Time?<|assistant|>⟦Noon.</s>⟧" in result.stdout

"""Templates that take all time or memory, call themselves, or reach for what is not theirs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_templates import (
    GEMMA,
    LLAMA3,
    QWEN3,
    QWEN25,
    QWEN25_MARKED,
    TWO,
    sample,
    tokenizer,
)
from helpers.cli import run
from helpers.indexes import SMALL
from helpers.row_files import to_jsonl
from transformers.utils.chat_template_utils import render_jinja_template

from forvalue_index import FormatConfig, InfluenceIndex, rendering
from forvalue_index.data.formatter import Formatter
from forvalue_index.data.template import prompt_of
from forvalue_index.errors import InputError, RowError, WorkerError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row
from forvalue_index.rendering import RenderError, render, render_chat


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Small limits, so that it does not take long to reach them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "MEMORY", 128 << 20)
        patch.setattr(rendering, "SECONDS", 1)
        patch.setattr(rendering, "CHARACTERS", 1 << 20)
        rendering._renderer.close()
        yield
    rendering._renderer.close()


DOUBLED = "{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
MACRO = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}"
TWICE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}"

HUNGRY = [
    "{{ 'a' * n10 }}",
    "{{ [1] * n10 }}",
    "{{ '%1000000000d' % n1 }}",
    "{{ 'a'.center(n10) }}",
    "{{ 'a' | center(n10) }}",
    "{{ ('a' ~ '\n') | indent(n10, first=true) }}",
    "{{ '{:1000000000}'.format('a') }}",
    "{{ (' ' * 1000).join('a' * 1000000) | length }}",
    "{{ ('a' * 10000000).replace('a', 'b' * 10000) | length }}",
    "{% set n = namespace(x='ab') %}" + DOUBLED + "{{ n.x }}",
    "{{ lipsum(n=n10) }}",
    "{{ range(99999) | list | tojson(indent=100000) }}",
]
SLOW = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ n10 ** n10 ** 2 }}",
    "{{ (n10 ** 100000) ** 100 }}",
    TWICE,
]
WRONG = [
    "{{ n1 / 0 }}",
    "{{ 1 // 0 }}",
    "{{ prompt.__class__ }}",
    "{{ prompt.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''.__class__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{{ [].append(1) }}",
    "{{ n1 ** 'a' }}",
    "{{ (1).to_bytes(n1, 'x') }}",
    "{{ 'a' | nothing }}",
    MACRO,
]
ROW = {"prompt": "a", "response": " b", "n1": 1, "n10": 10**10}


@pytest.mark.parametrize("template", HUNGRY + SLOW + WRONG)
def test_a_template_ends_in_bounded_time_and_memory_with_one_line(template: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError) as error:
        prompt_of(ROW, "f:1", template)
    assert str(error.value).isprintable()
    assert time.process_time() - start < 2  # of this process
    assert render("{{ prompt }}", ROW) == "a"  # the next is rendered as ever


@pytest.mark.parametrize("template", HUNGRY + SLOW + WRONG)
def test_a_chat_template_ends_in_bounded_time_and_memory_with_one_line(template: str) -> None:
    body = template.replace("n10", "(9999999999 + messages | length)").replace("n1", "1")
    with pytest.raises(InputError) as error:
        sample("{{ messages[0].content }}" + body, TWO)
    assert str(error.value).isprintable()
    assert "Hi" in render_chat("{{ messages[0].content }}", conversations=[TWO])[0]


@pytest.mark.parametrize("template", ["{{ " + "(" * 5000 + "}}", "{% for %}", "{{"])
def test_what_is_no_template_is_an_error_of_the_template(template: str) -> None:
    with pytest.raises(InputError, match="the template cannot be read: ") as error:
        prompt_of(ROW, "f:1", template)
    assert not isinstance(error.value, RowError)
    with pytest.raises(InputError, match="the chat template cannot be read: "):
        tokenizer_of(template)


def tokenizer_of(template: str) -> Any:
    return Formatter(tokenizer(template), FormatConfig(chat=True), 64)


def test_only_the_rows_that_take_too_much_are_skipped(
    tmp_path: Path, lm: LanguageModel, rows: list[Row]
) -> None:
    for i in (3, 7):
        rows[i]["n"] = 10**10
    format = FormatConfig(template="{{ prompt }}{{ ('-' * n) | length if n > 100 }}")
    with pytest.raises(RowError, match=r"row 4: the template fails on this row \(it takes"):
        InfluenceIndex.build(tmp_path / "i", rows, lm, format=format, vector=SMALL)
    index, report = InfluenceIndex.build(
        tmp_path / "i", rows, lm, format=format, vector=SMALL, on_error="skip"
    )
    with index:
        assert (report.added, report.rejected) == (28, 2)


def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    data = to_jsonl(tmp_path / "a.jsonl", rows)
    made = ("--index", tmp_path / "i", "--model", model_dir)
    for template in ("{{ prompt * 10**10 }}", "{{ 1 / 0 }}"):
        (tmp_path / "t.jinja").write_text(template)
        result = run("build", data, *made, "--template", tmp_path / "t.jinja")
        assert (result.exit_code, result.stderr.count("Error: ")) == (1, 1), result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "i").exists()


def test_a_field_that_is_not_there_is_named() -> None:
    with pytest.raises(RowError, match="'nothing' is undefined; the row's fields are: a"):
        prompt_of({"a": 1}, "f:1", "{{ nothing }}")
    assert prompt_of({"a": 1}, "f:1", "{{ 'x' if nothing else a }}") == "1"


# Checked against transformers itself, in this process.
@pytest.mark.parametrize("template", [LLAMA3, QWEN25, QWEN25_MARKED, QWEN3, GEMMA])
@pytest.mark.parametrize("ask", [False, True])
def test_chats_are_written_as_transformers_writes_them(template: str, ask: bool) -> None:
    settings: dict[str, Any] = {
        "return_assistant_tokens_mask": template is QWEN25_MARKED,
        "add_generation_prompt": ask,
        "bos_token": "<s>",
    }
    written: Any = render_jinja_template(conversations=[TWO], chat_template=template, **settings)
    (text,), marks = written
    found = render_chat(template, conversations=[TWO], **settings)
    assert found == (text, list(marks[0]) if marks else [])
    assert bool(found[1]) == (template is QWEN25_MARKED)


def test_texts_of_any_signs_come_back_as_they_were() -> None:
    for text in ("", "é\n\r\u2028\0", "😀" * 1000, "\ud800", "{{ 1 }}", '"\\'):
        assert render("{{ a }}", {"a": text, "b": object()}) == text
    assert render("{{ a.b[0] }}", {"a": {"b": [None]}}) == "None"
    with pytest.raises(RenderError, match="cannot be written as JSON"):
        render("{{ a }}", {"a": object()})


def test_many_threads_get_their_own_answers() -> None:
    def one(i: int) -> bool:
        return all(render("{{ a }}-{{ b }}", {"a": i, "b": j}) == f"{i}-{j}" for j in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(16)))


def test_a_process_that_began_ahead_is_the_one_that_renders_and_is_bounded() -> None:
    rendering._renderer.close()
    rendering.begin()
    process = rendering._renderer._process
    assert process is not None
    rendering.begin()  # it is there
    assert render_chat("{{ messages[0].content }}", conversations=[TWO])[0] == "Hi"
    assert rendering._renderer._process is process
    with pytest.raises(RenderError, match="it takes more than"):
        render_chat("{{ 'a' * (10 ** 10) }}", conversations=[TWO])
    assert render("{{ a }}", {"a": 1}) == "1"


def test_a_process_that_was_killed_is_started_again() -> None:
    render("{{ a }}", {"a": 1})
    process = rendering._renderer._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert render("{{ a }}", {"a": 2}) == "2"  # no row is to blame


def test_a_fork_in_the_middle_of_an_answer_renders_too() -> None:
    render("{{ a }}", {"a": 1})
    stop = threading.Event()

    def others() -> None:
        i = 0
        while not stop.is_set():
            assert render("{% for i in range(20000) %}{% endfor %}{{ a }}", {"a": i}) == str(i)
            i += 1

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(others)
        time.sleep(0.1)
        try:
            for i in range(5):
                fork = os.fork()
                if fork == 0:
                    signal.alarm(20)
                    os._exit(render("{{ a }}", {"a": i}) != str(i))
                assert os.waitpid(fork, 0)[1] == 0
        finally:
            stop.set()
        asked.result()


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), BlockingIOError(11, "No")])
def test_a_process_that_cannot_be_started_is_no_fault_of_a_row(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    rendering._renderer.close()
    with monkeypatch.context() as patch:
        patch.setattr(rendering.subprocess, "Popen", fail)
        with pytest.raises(WorkerError, match=f"cannot be started .*{error.strerror}.*again"):
            prompt_of({"a": 1}, "a.jsonl:1", "{{ a }}")
    monkeypatch.setattr("sys.path", [*sys.path, Path("not/read/by/python")])
    assert prompt_of({"a": 1}, "a.jsonl:1", "{{ a }}") == "1"


def test_an_interrupted_request_leaves_no_answer_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 60)  # a busy machine may interrupt late
    rendering._renderer.close()
    # A process in the background may be one that ignores interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    render("{{ a }}", {"a": 1})
    main, stop = threading.main_thread(), threading.Event()

    def interrupt() -> None:
        time.sleep(0.2)
        if not stop.is_set():
            signal.pthread_kill(main.ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", {})
        time.sleep(5)
    stop.set()
    thread.join()
    signal.signal(signal.SIGINT, before)
    assert render("{{ a }}", {"a": 3}) == "3"
    rendering._renderer.close()

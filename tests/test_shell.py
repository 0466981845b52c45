"""`forvalue shell`: what it prints is what ask and query print, one question after the other."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.cli import assert_one_line, run, run_well

from forvalue_index import InfluenceIndex


def spoken(index: InfluenceIndex, *lines: str, k: int = 3) -> Any:
    return run("shell", "--index", index.directory, "-k", k, stdin="\n".join(lines) + "\n")


def asked(index: InfluenceIndex, *options: Any, k: int = 3) -> str:
    return run_well("ask", "--index", index.directory, "-k", k, "--prompt", *options)


def test_each_line_is_answered_as_ask_answers(index: InfluenceIndex) -> None:
    result = spoken(index, "a b", "", "x")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == asked(index, "a b") + "\n" + asked(index, "x") + "\n"


def test_commands_change_what_is_shown(index: InfluenceIndex) -> None:
    answer = index.respond("a b").row["response"]
    part = answer.split()[0][:2]
    first = asked(index, "a b") + "\n"
    for lines, options in (
        ([f":part {part}"], ["--span", part]),
        ([":k 1", f":part {answer}"], ["-k", "1"]),
        ([":metric cosine", f":part {answer}"], ["--metric", "cosine"]),
        ([":opponents", f":part {answer}"], ["--opponents"]),
        ([":where n<5", f":part {answer}"], ["--where", "n<5"]),
        ([":where n<5", ":where", f":part {answer}"], []),
    ):
        result = spoken(index, "a b", *lines, ":quit", "never asked")
        assert result.exit_code == 0, result.stderr
        table = asked(index, "a b", *options).rpartition("\n\n")[2]
        assert result.stdout == first + table + "\n"


def test_another_response_is_asked_about(index: InfluenceIndex) -> None:
    result = spoken(index, "a b", ":response c")
    hits = index.query({"prompt": "a b", "response": "c"}, 3)
    table = result.stdout.rpartition("\n\n")[0].rpartition("\n\n")[2]
    places = [table.index(hit.key) for hit in hits]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (":part x", "nothing was asked yet"),
        (":nothing", "no command :nothing"),
        (":k many", "'many' is not a number of hits"),
        (":metric nearest", "nearest"),
    ],
)
def test_what_cannot_be_done_ends_a_script(index: InfluenceIndex, line: str, words: str) -> None:
    assert_one_line(spoken(index, line, "a b"), words)


def test_help_names_every_command(index: InfluenceIndex) -> None:
    text = spoken(index, ":help").stdout
    for name in (":part", ":response", ":k", ":metric", ":where", ":opponents", ":quit"):
        assert f"\n{name}" in text

"""What long work says where its errors are no terminal: a line now and then."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from forvalue_index.cli import progress
from forvalue_index.cli.progress import EVERY, progress_bar

Call = tuple[float, str, int, int]  # the time, and the stage with what is done of how many


@pytest.fixture
def said(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[list[str]]:
    """What is printed, a line each, if work reports as the calls say."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress_bar() as report:
        for now, stage, done, total in calls:  # noqa: B007 (read by the clock)
            report(stage, done, total, 0)
    out, lines = capsys.readouterr()
    assert out == ""
    yield lines.splitlines()


@pytest.mark.parametrize("calls", [[(t, "encoding", t, 30) for t in range(1, 30)]])
def test_short_work_says_nothing(said: list[str]) -> None:
    assert said == []


@pytest.mark.parametrize("calls", [[(t, "encoding", 12 * t, 6000) for t in range(0, 501, 5)]])
def test_long_work_says_how_far_it_is_twice_a_minute(said: list[str]) -> None:
    assert len(said) == 500 // EVERY
    assert said[0] == "encoding: 360 of 6,000, 12 per second, 8 min left"
    assert said[1] == "encoding: 720 of 6,000, 12 per second, 7 min left"
    assert said[-1] == "encoding: 5,760 of 6,000, 12 per second, 20 s left"


@pytest.mark.parametrize(
    "calls",
    [
        [
            (0, "reading", 100, 0),
            (40, "reading", 4100, 0),
            (41, "encoding", 1000, 9000),  # of which 1,000 were there before
            (80, "encoding", 1000, 9000),
            (141, "encoding", 1002, 9000),
            (200, "runs", 1, 3),
        ]
    ],
)
def test_a_stage_has_its_own_rate_and_one_of_unknown_length_no_time_left(said: list[str]) -> None:
    assert said == [
        "reading: 4,100, 100 per second",
        "encoding: 1,000 of 9,000",
        "encoding: 1,002 of 9,000, 0.02 per second, 111 h left",
        "runs: 1 of 3",
    ]


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([(5.0, 60, 700)], None),  # all in one step, of which only the end is known
        ([(5.0, 60, 700), (7.0, 84, 748)], "12 samples/s  24 tokens/s"),
    ],
)
def test_a_bar_has_the_rate_of_what_it_saw(
    reports: list[tuple[float, int, int]], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, file = 0.0, io.StringIO()
    terminal = Console(file=file, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "notes", terminal)
    with progress_bar() as report:
        monkeypatch.setattr(progress.time, "monotonic", lambda: now)
        for now, done, tokens in reports:  # noqa: B007 (read by the clock)
            report("prompts", done, 84, tokens)
        monkeypatch.undo()
    shown = file.getvalue()
    assert (expected in shown) if expected else ("/s" not in shown and "60/84" in shown)

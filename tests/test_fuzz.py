"""The fuzzing tool: in short, and that it sees what it is there to see."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

from fuzzing.world import ADDED, READS, Answers, Done, same, violations  # noqa: E402

HITS = [[["a", 2.0], ["b", 1.0]]]
STATES: dict[tuple[bool, bool], list[Any]] = {
    (False, False): ["as it was"],
    (True, False): ["added"],
    (False, True): ["removed"],
    (True, True): ["added", "removed"],
}
ANSWERS = Answers(dict.fromkeys(READS, HITS), STATES)

GUARDED = """
import json, os, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path
from fuzzing.guard import confined

def connect():
    with socket.socket() as own:
        own.settimeout(1)
        own.connect_ex(("127.0.0.1", 9))

with tempfile.TemporaryDirectory() as name:
    folder, beside = Path(name).resolve() / "trial", Path(name).resolve() / "beside"
    for path in (folder / "index", folder / "tmp", beside):
        path.mkdir(parents=True)
    (folder / "index" / "link").symlink_to(beside)
    (beside / "file").touch()
    works = {
        "inside": lambda: (folder / "index" / "file").write_text("x"),
        "temporary": lambda: tempfile.TemporaryFile().write(b"ab"),
        "unlink a link": lambda: (folder / "index" / "link").unlink(),
        "read": lambda: Path("/etc/passwd").read_text()[:0],
        "read through a link": lambda: (folder / "index" / "link" / "file").read_text(),
        "write": lambda: (beside / "file").write_text("x"),
        "remove": lambda: (beside / "file").unlink(),
        "rename": lambda: os.rename(folder / "index" / "file", beside / "moved"),
        "connect": connect,
        "program": lambda: subprocess.run(["true"]).returncode,
        "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "leave": lambda: os._exit(7),
        "hang": lambda: time.sleep(60),
        "exhaust": lambda: len(bytearray(1 << 40)),
    }
    for name, work in works.items():
        if name == "read through a link":
            (folder / "index" / "link").symlink_to(beside)
        end = confined(work, folder, 1.5 if name == "hang" else 60)
        print(json.dumps([name, [end.result, list(end.outside), end.crash]]))
"""

PLANTED = """
import sys, tempfile
from pathlib import Path
import fuzz
import forvalue_index.search.checked as intact
from fuzzing.world import make_world

def turn(index, rng):
    path = min((index / "segments").iterdir())
    data = bytearray(path.read_bytes())
    for place in range(200, len(data) - 500):
        data[place] ^= 1 << 7  # signs of the vectors, among them
    path.write_bytes(data)
    return path.name

fuzz.DAMAGES["turned"] = turn
with tempfile.TemporaryDirectory() as folder:
    world = make_world(Path(folder).resolve())
    seen = fuzz.run(world, "turned-1")
    print(seen.end, seen.violations, sep="|")
    intact._require_hash = lambda *_: None
    unseen = fuzz.run(world, "turned-1")
    print(unseen.end, unseen.violations, sep="|")
    names = [f"{kind}-{number}" for kind in ("flips", "edits", "paths", "rows") for number in "12"]
    print(all(fuzz.run(world, name).damage == fuzz.run(world, name).damage for name in names))
"""


def script(text: str) -> list[str]:
    """The lines that a program prints which forks, and so is not of this process."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(TOOLS)!r})\n{text}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_fuzz_in_short() -> None:
    """The whole takes many minutes: tools/fuzz.py."""
    counts = "--flips", "40", "--edits", "30", "--paths", "12", "--rows", "18"
    done = subprocess.run(
        [sys.executable, str(TOOLS / "fuzz.py"), *counts], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 trials, 0 with violations" in done.stdout


def test_what_leaves_its_folder_crashes_or_hangs_is_seen() -> None:
    ends = dict(json.loads(line) for line in script(GUARDED))
    assert ends["inside"] == [1, [], ""] and ends["temporary"] == [2, [], ""]
    assert ends["unlink a link"] == [None, [], ""]
    for name, event in {
        "read": "open: /etc/passwd",
        "read through a link": "open: ",
        "write": "open to write: ",
        "remove": "os.remove: ",
        "rename": "os.rename: ",
        "connect": "socket.connect: ",
        "program": "subprocess.Popen: ",
    }.items():
        assert any(seen.startswith(event) for seen in ends[name][1]), (name, ends[name])
    assert ends["crash"][2].startswith("SIGSEGV")
    assert ends["leave"][2].startswith("ended with status 7")
    assert ends["hang"][2].startswith("did not end within 1.5 s")
    assert "MemoryError" in ends["exhaust"][2]


def test_damage_that_an_index_does_not_notice_is_a_violation() -> None:
    seen, unseen, again = script(PLANTED)
    assert seen == "error|[]"
    assert unseen.startswith("violation|") and "wrong answer: query" in unseen
    assert again == "True", "a trial is not the same from its name"


@pytest.mark.parametrize(
    ("done", "wanted"),
    [
        ([("query", "answer", HITS)], None),
        ([("query", "answer", [[["a", 2.00001], ["b", 1.0]]])], None),
        ([("query", "error", "the index is damaged")], None),
        ([("query", "answer", [[["a", 2.0]]])], "wrong answer: query"),
        ([("list", "answer", [[["b", 1.0], ["a", 2.0]]])], "wrong answer: list"),
        ([("score", "answer", [[["a", 2.1], ["b", 1.0]]])], "wrong answer: score"),
        ([("verify", "error", "one\ntwo")], "error of several lines: verify"),
        ([("verify", "traceback", "traceback: KeyError: verify: 'a'")], "traceback: KeyError"),
        ([("add", "answer", 1)], "wrong answer: add"),
        ([("state x", "answer", ["added"])], "wrong answer: state x"),
        ([("add", "answer", len(ADDED)), ("state x", "answer", ["added"])], None),
        ([("add", "answer", len(ADDED)), ("state x", "answer", ["as it was"])], "wrong answer"),
        ([("add", "error", "no"), ("state x", "answer", ["as it was"])], None),
        ([("add", "error", "no"), ("state x", "answer", ["added"])], None),
        ([("add", "error", "no"), ("state x", "answer", ["removed"])], "wrong answer: state x"),
        (
            [("add", "error", "no"), ("remove", "answer", 2), ("state x", "answer", ["removed"])],
            None,
        ),
    ],
)
def test_answers_are_those_of_the_whole_index_or_errors(
    done: list[Done], wanted: str | None
) -> None:
    found = violations(done, ANSWERS)
    assert len(found) == (wanted is not None)
    assert wanted is None or found[0].startswith(wanted)


def test_numbers_are_the_same_nearly_and_texts_to_the_letter() -> None:
    nan = float("nan")
    assert same([1.0, {"a": nan}, "x"], [1.00001, {"a": nan}, "x"])
    for value in ([1.001, {"a": nan}, "x"], [1.0, {"a": 0.0}, "x"], [1.0, {"a": nan}, "y"]):
        assert not same(value, [1.0, {"a": nan}, "x"])
    assert not same(True, 1) and not same(["x"], ["x", "x"])

"""The commands as a person or a program runs them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import click
import pytest
from helpers.cli import assert_one_line, run, run_well, write

from forvalue_index.cli import main
from forvalue_index.cli.render import one_line
from forvalue_index.records import Row


@pytest.fixture()
def train(tmp_path: Path, rows: list[Row]) -> Path:
    return write(tmp_path / "train.jsonl", rows)


@pytest.fixture()
def index(tmp_path: Path, train: Path, model_dir: Path) -> Path:
    path = tmp_path / "my.index"
    run_well(
        *("build", train, "--index", path, "--model", model_dir),
        *("--key-field", "id", "--dim", 64, "--sketch-dim", 512),
    )
    return path


def test_build_then_query_as_json(index: Path, rows: list[Row]) -> None:
    out = run_well(
        *("query", "--index", index, "--prompt", rows[3]["prompt"]),
        *("--response", rows[3]["response"], "-k", 4, "--json"),
    )
    hits = [json.loads(line) for line in out.splitlines()]
    assert [sorted(hit) for hit in hits] == [["id", "key", "query", "rank", "sample", "score"]] * 4
    assert [(hit["query"], hit["rank"]) for hit in hits] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert all(hit["sample"] in rows and hit["sample"]["id"] == hit["key"] for hit in hits)
    assert hits == sorted(hits, key=lambda hit: -hit["score"])


def test_query_many_from_a_file(index: Path, rows: list[Row], tmp_path: Path) -> None:
    queries = write(tmp_path / "queries.jsonl", rows[:3])
    out = run_well("query", "--index", index, "--data", queries, "-k", 2, "--opponents", "--json")
    hits = [json.loads(line) for line in out.splitlines()]
    assert [hit["query"] for hit in hits] == [0, 0, 1, 1, 2, 2]
    assert hits[0]["score"] <= hits[1]["score"] < 0


def test_query_shows_a_table_to_people(index: Path, rows: list[Row]) -> None:
    out = run_well("query", "--index", index, "--text", rows[0]["prompt"], "-k", 3)
    assert rows[0]["prompt"] in out
    assert out.count("row-") == 3


@pytest.mark.parametrize(
    ("options", "head"),
    [
        ([], "influence"),
        (["--exact"], "influence (exact)"),
        (["--metric", "cosine"], "cosine"),
        (["--metric", "per-token", "--exact"], "per-token (exact)"),
        (["--metric", "decorrelated"], "decorrelated"),
    ],
)
def test_scores_are_headed_by_what_they_are(index: Path, options: list[str], head: str) -> None:
    question = "--prompt", "a", "--response", "b", *options
    heads = [
        line.split("key")[0].strip()
        for line in run_well("query", "--index", index, *question).splitlines()
    ]
    assert heads[1] == head
    answer = run_well("ask", "--index", index, "--prompt", "a", "--max-new-tokens", 2, *options)
    assert any(line.split("key")[0].strip() == head for line in answer.splitlines())


def test_other_fields_and_standard_input(tmp_path: Path, model_dir: Path, rows: list[Row]) -> None:
    path = tmp_path / "i"
    lines = "".join(json.dumps({"q": row["prompt"], "a": row["response"]}) + "\n" for row in rows)
    fields = ("--prompt-field", "q", "--response-field", "a")
    run_well("build", "-", "--index", path, "--model", model_dir, *fields, stdin=lines)
    out = run_well("query", "--index", path, "--data", "-", "-k", 1, "--json", stdin=lines)
    assert len(out.splitlines()) == 30
    text = write(tmp_path / "text.jsonl", [{"story": "once"}])
    out = run_well(
        *("query", "--index", path, "--data", text, "--text-field", "story"), "-k", 1, "--json"
    )
    assert set(json.loads(out)["sample"]) == {"q", "a"}


def test_add_tells_what_it_did(index: Path, tmp_path: Path, rows: list[Row]) -> None:
    more = write(tmp_path / "more.jsonl", [*rows[:2], {"id": "x", "prompt": "a", "response": "b"}])
    result = run("add", more, "--index", index)
    assert result.exit_code == 0
    assert "1 samples added" in result.stderr
    assert "2 already there; 31 in" in result.stderr


def test_info_and_verify(index: Path, model_dir: Path) -> None:
    info = json.loads(run_well("info", "--index", index, "--json"))
    assert (info["samples"], info["dim"], info["segments"]) == (30, 64, 1)
    assert info["model"] == str(model_dir)
    assert info["bytes"] > 30 * 64 * 2
    assert len(info["fingerprint"]) == 16
    assert "30" in run_well("info", "--index", index)
    run_well("verify", "--index", index)


def test_optimize_says_what_it_made(index: Path, rows: list[Row]) -> None:
    assert "No derived index" in run("optimize", "--index", index).stderr
    out = run_well("optimize", "--index", index, "--factory", "IVF2,SQ8")
    assert "recall@10" in out and "opponents" in out
    info = json.loads(run_well("info", "--index", index, "--json"))
    assert info["derived"][0]["metric"] == "dot"
    assert "IVF2,SQ8" in run_well("info", "--index", index)
    plain = run_well("query", "--index", index, "--text", "hello", "-k", 3, "--json", "--flat")
    assert plain == run_well("query", "--index", index, "--text", "hello", "-k", 3, "--json")
    assert run("optimize", "--index", index, "--memory", "nan").exit_code == 2


def test_list_and_show(index: Path, rows: list[Row]) -> None:
    out = run("list", "--index", index, "--limit", 3)
    assert out.stdout.count("row-") == 3
    assert "there may be more: --after 2" in out.stderr
    lines = run_well("list", "--index", index, "--after", 2, "--limit", 99, "--json").splitlines()
    assert [json.loads(line)["row"] for line in lines] == rows[3:]
    found = run_well("list", "--index", index, "--where", "n in 4,7", "--json").splitlines()
    assert [json.loads(line)["key"] for line in found] == ["row-4", "row-7"]
    assert json.loads(run_well("show", "row-4", "--index", index, "--json"))["row"] == rows[4]
    assert rows[4]["prompt"] in run_well("show", "row-4", "--index", index)
    assert_one_line(run("show", "nobody", "--index", index), "has key 'nobody'")


def test_joined_letters_and_spaces_stay_as_they_are() -> None:
    family, spaced = "\U0001f469\u200d\U0001f467", "dix\xa0%"
    assert one_line(f"{family} {spaced}\x1b") == f"{family} {spaced}\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--where", "n=99"], "No sample meets n=99\n"),
        (["list", "--after", "99"], "There is no sample after id 99\n"),
        (["search", "zzzz"], "No sample has any of these words: see `forvalue list`"),
        (["query", "--text", "hello", "--where", "n=99"], "No sample meets n=99\n"),
    ],
)
def test_an_empty_answer_says_why(index: Path, arguments: list[str], said: str) -> None:
    result = run(*arguments, "--index", index)
    assert (result.exit_code, said in result.stderr) == (0, True)
    assert "key" not in result.stdout  # no table without rows
    as_json = run(*arguments, "--index", index, "--json")
    assert (as_json.exit_code, as_json.stdout) == (0, "")


def test_an_empty_index_says_that_it_is(index: Path) -> None:
    run_well("remove", "--index", index, "--where", "n>=0")
    for arguments in (["list"], ["query", "--text", "hello"], ["search", "hello"]):
        result = run(*arguments, "--index", index)
        wanted = "No sample has" if arguments[0] == "search" else "The index holds no samples: add"
        assert (result.exit_code, wanted in result.stderr) == (0, True), result.stderr


def test_update_remove_and_compact(index: Path, tmp_path: Path, rows: list[Row]) -> None:
    new = write(tmp_path / "new.jsonl", [rows[0] | {"response": "changed"}])
    assert_one_line(run("add", new, "--index", index), "give --update")
    assert "1 of them replaced older ones" in run("add", new, "--index", index, "--update").stderr
    keys = tmp_path / "keys.txt"
    keys.write_text("row-1\nrow-2\n\nnobody\n")
    removed = run("remove", "--index", index, "--keys-file", keys, "--key", "row-3")
    assert "3 samples removed, 1 key not found; 27 in" in removed.stderr
    assert "2 samples removed; 25" in run("remove", "--index", index, "--where", "n>=28").stderr
    assert json.loads(run_well("info", "--index", index, "--json"))["removed"] == 6
    assert "6 removed samples deleted" in run("compact", "--index", index).stderr
    run_well("verify", "--index", index, "--repair")
    files = tmp_path / "v.npy", tmp_path / "r.jsonl"
    run_well("export", "--index", index, "--vectors", files[0], "--rows", files[1])
    assert len(files[1].read_text().splitlines()) == 25
    assert "has schema revision" in run("migrate", "--index", index).stderr
    for wrong in ([], ["--key", "a", "--where", "n=1"]):
        assert run("remove", "--index", index, *wrong).exit_code == 2


def test_verify_names_what_is_wrong(index: Path) -> None:
    segment = next((index / "segments").iterdir())
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(bytes(data))
    (index / "segments" / "stray.faiss").write_bytes(b"")
    result = run("verify", "--index", index)
    assert result.exit_code == 1
    assert f"{segment.name}" in result.stdout
    assert "sha256" in result.stdout
    assert "stray.faiss" in result.stdout


def test_a_query_on_a_truncated_segment_refuses(index: Path, rows: list[Row]) -> None:
    segment = next((index / "segments").iterdir())
    segment.write_bytes(segment.read_bytes()[:-100])
    result = run("query", "--index", index, "--text", "hello")
    assert result.exit_code == 1
    assert segment.name in result.stderr
    assert result.stdout == ""


GOOD = '{"prompt": "a", "response": "b"}\n'
BAD_INPUT: list[tuple[str, str]] = [
    ("{broken}\n", "train.jsonl:2: not JSON"),
    ('{"prompt": "a"}\n', "train.jsonl:2: no field 'response'"),
    ('{"prompt": "a", "response": ""}\n', "train.jsonl:2: field 'response' is empty"),
    (GOOD[:-2] + ', "n": "\\ud800"}\n', "train.jsonl:2: field 'n' holds half a surrogate pair"),
]


@pytest.mark.parametrize(("line", "message"), BAD_INPUT)
def test_bad_rows_are_one_line_and_leave_nothing(
    tmp_path: Path, model_dir: Path, line: str, message: str
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(GOOD + line)
    result = run("build", path, "--index", tmp_path / "i", "--model", model_dir)
    assert_one_line(result, message)
    assert "(--on-error skip passes over rows" in result.stderr
    assert not (tmp_path / "i").exists()


def test_text_of_the_data_cannot_reach_the_terminal_as_a_command(
    tmp_path: Path, model_dir: Path
) -> None:
    link = "\x1b]8;;https://example.org\x1b\\here"
    row = {"prompt": "a\x1b[31m", "response": "b\ta\x07", "note": link, "[red]\x1b[2J": "\x9b1m"}
    rows = [row | {"key": f"\x1b[31mk\x07{i}"} for i in range(2)]
    data, index = write(tmp_path / "train.jsonl", rows), ("--index", tmp_path / "i")
    run_well("build", data, *index, "--model", model_dir, "--key-field", "key")
    asked = run_well("query", *index, "--text", "ab\x1b[0m")
    shown = run_well("show", rows[0]["key"], *index)
    for out in (asked, shown, run_well("list", *index)):
        assert all(c.isprintable() or c == "\n" for c in out)
    assert "\\x1b]8;;https://example.org\\x1b\\here" in shown  # as it stands, written out
    assert "[red]\\x1b[2J" in shown and "\\x9b1m" in shown
    lines = run_well("query", *index, "--text", "ab", "--json").splitlines()
    assert json.loads(lines[0])["sample"] in rows
    assert json.loads(run_well("show", rows[0]["key"], *index, "--json"))["row"] == rows[0]


def test_show_keeps_lines_and_letters(tmp_path: Path, model_dir: Path) -> None:
    data = write(
        tmp_path / "train.jsonl", [{"prompt": "ab\nGrüße\u3000数据", "response": "b", "k": "k"}]
    )
    made = ("--model", model_dir, "--key-field", "k")
    run_well("build", data, "--index", tmp_path / "i", *made)
    lines = run_well("show", "k", "--index", tmp_path / "i").splitlines()
    [first] = [place for place, line in enumerate(lines) if line.rstrip().endswith("ab")]
    assert lines[first + 1].strip() == "Grüße\u3000数据"


def test_an_argument_that_is_not_utf_8_is_called_that(index: Path) -> None:
    result = run("query", "--index", index, "--prompt", "\udcff", "--response", "a")
    assert_one_line(result, "field 'prompt' is not UTF-8 text")


def test_missing_things_are_one_line(tmp_path: Path, train: Path, model_dir: Path) -> None:
    index = tmp_path / "i"
    missing = run("build", tmp_path / "no.jsonl", "--index", index, "--model", model_dir)
    assert_one_line(missing, "no.jsonl does not exist")
    assert_one_line(run("build", train, "--index", index, "--model", "no/model"), "cannot load")
    assert_one_line(run("query", "--index", index, "--text", "a"), "does not exist")
    assert_one_line(run("info", "--index", tmp_path), "is not an index")
    field = ("--response-field", "answer")
    result = run("build", train, "--index", index, "--model", model_dir, *field)
    assert_one_line(result, "train.jsonl:1: no field 'answer'")
    assert not index.exists()


def test_another_model_is_one_line(index: Path, other_model_dir: Path, rows: list[Row]) -> None:
    result = run("query", "--index", index, "--model", other_model_dir, "--text", "hello")
    assert_one_line(result, "weights differ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", "--index", "i"],
        ["query", "--index", "i", "--prompt", "a"],
        ["query", "--index", "i", "--prompt", "a", "--response", ""],
        ["query", "--index", "i", "--text", "a", "--data", "b"],
        ["query", "--index", "i", "--text", "a", "-k", "0"],
        ["build", "--index", "i", "--model", "m"],
        ["build", "f", "--index", "i", "--model", "m", "--text-field", "t", "--prompt-field", "p"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("name", sorted(main.commands))
def test_an_interrupted_command_says_what_is_true_of_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(main.commands, name, click.Command(name, callback=interrupt))
    result = run(name)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert ("the same command continues from there" in result.stderr) == (
        name in ("build", "add", "compact")
    )
    assert ("the index was not changed" in result.stderr) == (
        name not in ("build", "add", "compact", "remove", "optimize", "verify", "migrate")
        and name not in ("evaluate", "demo")
    )


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = run("--debug", "info", "--index", tmp_path)
    assert type(result.exception).__name__ == "IndexMissingError"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_with_an_example(name: str) -> None:
    command = main.commands[name]
    with click.Context(command) as context:
        text = command.get_help(context)
    assert f"forvalue {name}" in text.split("Example:")[1]
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert all(option.help for option in options), "an option without help"


def test_the_demo_opens_a_page_on_its_index() -> None:
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "forvalue_index", "demo", "--serve", "-k", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, b"")
        address = next(line for line in lines if line.startswith(b"http")).decode().strip()
        with urllib.request.urlopen(address) as answer:
            assert b"<title>" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_the_demo_ends_with_what_to_do_next(tmp_path: Path) -> None:
    result = run("demo", "--index", tmp_path / "demo.index", "-k", 1)
    assert result.exit_code == 0
    *_, see, build, ask = result.stderr.splitlines()
    assert [re.search(r"forvalue (\w+)", line)[1] for line in (see, build, ask)] == [
        *("preview", "build", "ask")
    ]
    assert all(len(line) <= 80 for line in (see, build, ask))

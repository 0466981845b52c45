"""`forvalue evaluate` as a person or a program runs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import Result
from helpers.cli import evaluate as run
from helpers.cli import evaluate_well as run_well
from helpers.cli import write

from forvalue_index import InfluenceIndex, VectorConfig
from forvalue_index.analysis.evaluate.mislabel import corrupt
from forvalue_index.cli.evaluate import evaluate
from forvalue_index.records import Row


@pytest.fixture()
def index(tmp_path: Path, rows: list[Row], model_dir: Path) -> Path:
    path = tmp_path / "my.index"
    train = [row | {"kind": row["n"] % 3} for row in rows]
    vector = VectorConfig(recipe="raw", dim=256, sketch_dim=256)
    InfluenceIndex.build(path, train, str(model_dir), vector=vector)[0].close()
    return path


@pytest.fixture()
def queries(tmp_path: Path) -> Path:
    rows = [{"prompt": f"ask {i}", "response": f" so {i}", "kind": i % 3} for i in range(4)]
    return write(tmp_path / "queries.jsonl", rows)


FIGURE = {"mean", "sd", "se", "n"}


def test_fidelity_as_json(index: Path, queries: Path) -> None:
    result = json.loads(run_well("fidelity", "--index", index, "--data", queries, "--json"))
    assert {name for name, value in result.items() if isinstance(value, dict)} == {
        *("pearson", "spearman", "overlap_10", "overlap_100", "top_10_in_100", "error")
    }
    assert set(result["pearson"]) == FIGURE
    assert 0 < result["pearson"]["mean"] < 1
    assert result["overlap_100"] == {"mean": None, "sd": None, "se": None, "n": 0}
    del result["pearson"], result["spearman"], result["overlap_10"], result["overlap_100"]
    del result["top_10_in_100"], result["error"]
    dim, bits = result.pop("dim"), result.pop("bits")
    assert result.pop("bytes_per_sample") > dim * bits / 8 > 0
    assert result == {"recipe": "raw", "queries": 4, "samples": 30}


def test_fidelity_for_people(index: Path, queries: Path) -> None:
    out = run_well("fidelity", "--index", index, "--data", queries, "--sample", 20)
    assert "Pearson correlation" in out
    assert "4 queries, 20 training samples, recipe raw, " in out
    assert "–" in next(line for line in out.splitlines() if "top 100" in line)


def test_recall_as_json(index: Path, queries: Path) -> None:
    arguments = ("recall", "--index", index, "--data", queries, "--gold-field", "kind", "--json")
    result = json.loads(run_well(*arguments))
    stored = ["stored dot", "stored cosine", "stored per-token"]
    others = ["bm25", "embedding", "loss", "length", "random"]
    assert list(result["methods"]) == [*stored, "stored decorrelated", "stored hybrid", *others]
    for found in result["methods"].values():
        assert set(found) == {"mrr", "hit_1", "hit_10", "auc", "recall"}
        assert all(set(figure) == FIGURE and figure["n"] == 4 for figure in found.values())
    assert (result["queries"], result["samples"], result["gold_field"]) == (4, 30, "kind")
    assert result["sources"]["mean"] == 10
    exact = json.loads(run_well(*arguments, "--exact"))["methods"]
    again = [name.replace("stored", "exact") for name in stored]
    all_stored = [*stored, "stored decorrelated", "stored hybrid"]
    assert list(exact) == [*all_stored, *again, "last-layer gradient", *others]
    reseeded = json.loads(run_well(*arguments, "--seed", 1))["methods"]
    assert {name for name in reseeded if reseeded[name] != exact[name]} == {"random"}


def test_recall_for_people_fits_a_terminal(
    index: Path, queries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = run_well("recall", "--index", index, "--data", queries, "--gold-field", "kind", "--exact")
    assert "recall@gold" in out
    assert "exact per-token" in out
    assert "…" not in out
    assert "4 queries with 10.000 sources each among 30 training samples" in out.replace("\n", " ")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "response": " b"}, "queries.jsonl:1: no field 'kind'; the row's fields"),
        ({"prompt": "a", "response": " b", "kind": 7}, "no training row has kind = 7"),
        ({"prompt": "a", "kind": 1}, "queries.jsonl:1: no field 'response'"),
    ],
)
def test_bad_queries_are_one_line(index: Path, queries: Path, row: Row, message: str) -> None:
    write(queries, [row])
    result = run("recall", "--index", index, "--data", queries, "--gold-field", "kind")
    assert_one_line(result, message)


def test_no_queries_are_one_line(index: Path, queries: Path) -> None:
    queries.write_text("\n")
    for arguments in (("fidelity",), ("recall", "--gold-field", "kind")):
        result = run(*arguments, "--index", index, "--data", queries)
        assert_one_line(result, "there are no queries in the data")


def test_an_unknown_gold_field_is_one_line(index: Path, queries: Path, rows: list[Row]) -> None:
    write(queries, [{"prompt": "a", "response": " b", "fact": 1}])
    result = run("recall", "--index", index, "--data", queries, "--gold-field", "fact")
    assert_one_line(result, "training rows: no field 'fact'; the row's fields are: id, prompt")


def test_wrong_usage_is_exit_code_2(index: Path, queries: Path) -> None:
    assert run("recall", "--index", index, "--data", queries).exit_code == 2
    assert run("fidelity", "--index", index, "--data", queries, "--sample", 1).exit_code == 2


def test_identify(index: Path, queries: Path, tmp_path: Path) -> None:
    picture = tmp_path / "identify.png"
    arguments = ("identify", "--index", index, "--data", queries, "--class-field", "kind")
    arguments += ("--exact", "--gradient")
    result = json.loads(run_well(*arguments, "--json"))
    assert {"last-layer gradient", "full gradient", "exact cosine"} < set(result["methods"])
    # The recipe of this index is the raw one.
    assert result["methods"]["last-layer gradient"] == result["methods"]["exact dot"]
    out = run_well(*arguments, "--plot", picture)
    assert out.split("\n")[0].split() == ["AUC", "recall"]
    assert "4 queries, 30 training samples, 10.000 of the query's class; recipe raw" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_is_one_line(
    index: Path, queries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("identify", "--index", index, "--data", queries, "--class-field", "kind")
    assert_one_line(run(*arguments, "--plot", tmp_path / "a.jpg"), "must end in .png")
    assert_one_line(run(*arguments, "--plot", tmp_path / "no" / "a.png"), "No such file")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    wanted = 'a plot needs the package matplotlib: pip install "forvalue-index[eval]"'
    assert_one_line(run(*arguments, "--plot", tmp_path / "a.png"), wanted)


@pytest.fixture()
def labelled(tmp_path: Path, rows: list[Row]) -> Path:
    made = [row | {"kind": row["n"] % 3, "response": f" {'xyz'[row['n'] % 3]}"} for row in rows]
    return write(tmp_path / "labelled.jsonl", made)


def test_mislabel(model_dir: Path, labelled: Path, tmp_path: Path) -> None:
    picture = tmp_path / "wrong.png"
    arguments = ("mislabel", "--model", model_dir, "--data", labelled, "--class-field", "kind")
    arguments += ("--share", 0.3, "--epochs", 8, "--learning-rate", 3e-3, "--seeds", 2)
    arguments += ("--exact", "--gradient", "--plot", picture)
    result = json.loads(run_well(*arguments, "--json"))
    assert (result["rows"], result["trusted"], result["seeds"]) == (27, 3, 2)
    assert result["wrong"]["mean"] == 9
    methods = result["methods"]
    assert {"bm25", "embedding", "loss", "random", "audit: suspicion"} < set(methods)
    assert "length" not in methods
    for found in methods.values():
        assert set(found) == {"auc", "precision"}
        assert found["auc"]["n"] == 2
    # One answer a class: whoever knows the trusted answers knows the wrong ones.
    for name in ("exact dot", "exact cosine", "last-layer gradient", "full gradient"):
        assert methods[name]["auc"]["mean"] > 0.8, name
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_mislabel_for_people(model_dir: Path, labelled: Path) -> None:
    arguments = ("mislabel", "--model", model_dir, "--data", labelled, "--seeds", 1)
    out = run_well(*arguments, "--trusted", 0.2, "--recipe", "raw")
    assert "audit: suspicion" in out
    assert " of 24 rows are wrong, 6 more are trusted; recipe raw" in out


def test_wrong_rows_of_the_wrong_kind_are_one_line(
    model_dir: Path, labelled: Path, tmp_path: Path
) -> None:
    arguments = ("mislabel", "--model", model_dir, "--data", labelled)
    result = run(*arguments, "--text-field", "response")
    assert_one_line(result, "rows with a prompt and a response, or conversations, are needed")
    tokens = write(tmp_path / "tokens.jsonl", [{"input_ids": [1, 2, 3], "kind": "a"}] * 9)
    result = run("mislabel", "--model", model_dir, "--data", tokens, "--tokens-field", "input_ids")
    assert_one_line(result, "rows with a prompt and a response, or conversations, are needed")
    rows: list[Row] = [{"prompt": "a", "response": " b"}] * 9
    lacking = write(tmp_path / "lacking.jsonl", [*rows, {"n": 1}])
    result = run("mislabel", "--model", model_dir, "--data", lacking)
    assert_one_line(result, "lacking.jsonl:10: no field 'response'; the row's fields are: n")
    result = run(*arguments, "--class-field", "colour")
    assert_one_line(
        result, "no field 'colour'; the row's fields are: id, prompt, response, n, kind"
    )
    few = write(tmp_path / "few.jsonl", [{"prompt": "a", "response": " b"}] * 3)
    result = run("mislabel", "--model", model_dir, "--data", few)
    assert_one_line(result, "3 rows are too few")


def test_corrupted_responses_leave_their_class() -> None:
    rows = [{"response": f"{kind}{i}", "kind": kind} for kind in "abc" for i in range(10)]
    changed, wrong = corrupt(rows, "response", 0.4, "kind", np.random.default_rng(0))
    assert wrong.reshape(3, 10).sum(1).tolist() == [4, 4, 4]
    for old, new, is_wrong in zip(rows, changed, wrong, strict=True):
        assert (new != old) == is_wrong
        assert (new["response"][0] != old["kind"]) == is_wrong
    assert sorted(row["response"] for row in changed) == sorted(row["response"] for row in rows)
    again, _ = corrupt(rows, "response", 0.4, "kind", np.random.default_rng(0))
    assert again == changed


def test_corrupting_without_classes_and_with_equal_responses() -> None:
    rows = [{"response": f"r{i}"} for i in range(20)]
    changed, wrong = corrupt(rows, "response", 0.5, None, np.random.default_rng(0))
    assert wrong.sum() == 10
    assert [a != b for a, b in zip(rows, changed, strict=True)] == wrong.tolist()
    alike = [{"response": "yes"}] * 20
    assert not corrupt(alike, "response", 0.5, None, np.random.default_rng(0))[1].any()


def test_the_last_answers_of_conversations_are_exchanged(tmp_path: Path, model_dir: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"hello {i}"},
                {"role": "assistant", "content": f"yes {i}"},
                {"role": "user", "content": f"and {i}"},
                {"role": "assistant", "content": f"no {i}"},
            ]
        }
        for i in range(20)
    ]
    draws = np.random.default_rng(0)
    changed, wrong = corrupt(rows, "messages", 0.5, None, draws, chat=True)
    assert wrong.sum() == 10
    for old, new, is_wrong in zip(rows, changed, wrong, strict=True):
        assert new["messages"][:-1] == old["messages"][:-1]
        assert (new["messages"][-1] != old["messages"][-1]) == is_wrong
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    shared = [{"from": "human", "value": "hm"}, {"from": "gpt", "value": "yes"}]
    data = write(tmp_path / "chat.jsonl", [*rows, {"messages": shared}])
    arguments = ("mislabel", "--model", model_dir, "--data", data, "--chat-template", template)
    result = json.loads(run_well(*arguments, "--seeds", 1, "--json"))
    assert result["wrong"]["mean"] == 4 and "audit: suspicion" in result["methods"]
    mute = write(tmp_path / "mute.jsonl", [{"messages": rows[0]["messages"][:1]}] * 9)
    arguments = ("mislabel", "--model", model_dir, "--data", mute, "--chat-template", template)
    assert "no message of the assistant has text" in run(*arguments).stderr


def test_select(index: Path, queries: Path, tmp_path: Path) -> None:
    picture = tmp_path / "select.png"
    arguments = ("select", "--index", index, "--data", queries, "--budget", 6, "--epochs", 2)
    arguments += ("--learning-rate", 1e-3, "--seeds", 2)
    result = json.loads(run_well(*arguments, "--plot", picture, "--json"))
    assert (result["samples"], result["budget"], result["targets"]) == (30, 6, 4)
    methods = result["methods"]
    assert {"no fine-tuning", "all rows", "selected", "stored dot", "bm25"} < set(methods)
    assert {"embedding", "highest loss", "longest", "random"} < set(methods)
    means = {name: found["loss"]["mean"] for name, found in methods.items()}
    assert means["random"] < means["no fine-tuning"]
    assert len(set(means.values())) > 5, "other rows, other losses"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_select_refuses_what_is_no_choice(index: Path, queries: Path) -> None:
    arguments = ("select", "--index", index, "--data", queries, "--budget")
    assert_one_line(run(*arguments, 30), "the budget is 30, but there are 30 rows to choose from")
    write(queries, [{"prompt": "a", "response": " b"}])
    assert_one_line(run(*arguments, 5), "one target")


def assert_one_line(result: Result, message: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.parametrize("name", sorted(evaluate.commands))
def test_every_subcommand_has_help_with_an_example(name: str) -> None:
    command = evaluate.commands[name]
    with click.Context(command) as context:
        text = command.get_help(context)
    assert f"forvalue evaluate {name}" in text.split("Example:")[1]
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert all(option.help for option in options), "an option without help"

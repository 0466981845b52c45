"""Fields that are guessed from their names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import run
from helpers.indexes import SMALL
from helpers.row_files import to_csv, to_jsonl

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.cli.options.format import format_of
from forvalue_index.data.field_guess import guess, guess_format
from forvalue_index.data.preferences import chosen_format, rejected_format
from forvalue_index.data.row_text import conversation_of, texts_of
from forvalue_index.data.sources import open_rows
from forvalue_index.errors import InputError, RowError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.pipeline.hybrid import text_of
from forvalue_index.records import Row


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        (
            {"prompt": "a", "response": "b"},
            {"prompt_field": "prompt", "response_field": "response"},
        ),
        ({"completion": "b", "prompt": "a"}, {"response_field": "completion"}),
        (
            {"Question": "a", "Answer": "b"},
            {"prompt_field": "Question", "response_field": "Answer"},
        ),
        ({"prompt": "a", "messages": []}, {"messages_field": "messages"}),
        ({"conversations": [{"from": "human"}]}, {"messages_field": "conversations"}),
        ({"messages": '[{"role": "user"}]'}, {"messages_field": "messages"}),
        ({"text": "a", "source": "b"}, {"text_field": "text"}),
        ({"input": "a", "output": "b"}, {"prompt_field": "input", "response_field": "output"}),
        ({"instruction": "a", "output": "b"}, {"prompt_field": "instruction"}),
    ],
)
def test_fields_are_guessed_from_their_names(row: Row, settings: Row) -> None:
    found, words = guess(row)
    assert settings.items() <= found.items()
    assert "template" not in found
    assert all(repr(name) in words for name in found.values())
    format, _ = guess_format(open_rows([row]), FormatConfig(max_length=9))
    assert format == FormatConfig(**found, max_length=9)


@pytest.mark.parametrize("row", [{"good": "a", "bad": "b"}, {"messages": "a"}, {}])
def test_names_that_do_not_tell_are_refused(row: Row) -> None:
    with pytest.raises(InputError, match=r"do not tell which to read .*give --prompt-field"):
        guess(row)


LINE = '{"prompt": "a", "response": "é"}'


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl", b'{"prompt": "a", "response": NaN}\n', "a.jsonl:1: not readable JSON .*NaN"),
        ("a.jsonl", LINE.encode("latin-1"), "a.jsonl:1: not UTF-8 text"),
        ("a.jsonl", LINE.encode("utf-16"), "a.jsonl:1: not UTF-8 text"),
        ("a.json", b'{\n  "prompt": "a",\n  "response": "b"\n}\n', "a.json:1: not JSON .*name"),
        ("a.csv", "prompt,response\na,é\n".encode("latin-1"), "a.csv:2: not UTF-8 text"),
    ],
)
def test_if_no_row_can_be_read_the_message_says_why(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"^none of the \d rows can be read; .*{reason}"):
        guess_format(open_rows(tmp_path / name))


def test_a_file_without_rows_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n")
    with pytest.raises(InputError, match="there are no rows in the data"):
        guess_format(open_rows(tmp_path / "a.jsonl"))


def test_a_name_that_is_no_text_is_refused() -> None:
    rows: list[Any] = [{1: 2, "prompt": "a", "response": "b"}]
    reason = "row 1: the name of a field must be text, but 1 is int"
    with pytest.raises(InputError, match=f"none of the 1 rows can be read; the first: {reason}"):
        guess_format(open_rows(rows))
    _, words = guess_format(open_rows([*rows, {"text": "a"}]))
    assert words == "plain text from 'text'"


def test_an_instruction_is_followed_by_its_input(tmp_path: Path, lm: LanguageModel) -> None:
    rows = [
        {"instruction": "add", "input": "1 2", "output": " 3"},
        {"instruction": "hello", "input": "", "output": " you"},
        {"instruction": "hello", "input": None, "output": " you"},
    ]
    index, _ = InfluenceIndex.build(tmp_path / "i", rows, lm, vector=SMALL)
    with index:
        samples = index.samples([*rows])
    texts = [lm.tokenizer.decode(s.input_ids[~s.scored]) for s in samples]
    assert texts == ["add\n\n1 2".replace("\n", "<unk>"), "hello", "hello"]


def test_the_guess_is_printed_kept_and_overridden(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    renamed = [{"question": row["prompt"], "answer": row["response"]} for row in rows]
    path = to_csv(tmp_path / "rows.csv", renamed)
    made = ("--model", model_dir, "--dim", 64, "--sketch-dim", 512)
    result = run("build", path, "--index", tmp_path / "i", *made)
    assert result.exit_code == 0, result.stderr
    assert "Reading prompt from 'question', response from 'answer'" in result.stderr
    with InfluenceIndex.open(tmp_path / "i") as index:
        assert index.config.format.response_field == "answer"
    result = run("query", "--index", tmp_path / "i", "--data", path, "-k", 1, "--json")
    assert len(result.stdout.splitlines()) == 30
    result = run("build", path, "--index", tmp_path / "j", *made, "--text-field", "answer")
    assert result.exit_code == 0 and "Reading" not in result.stderr
    path = to_jsonl(tmp_path / "rows.jsonl", [{"a": "x", "b": "y"}])
    result = run("build", path, "--index", tmp_path / "k", *made)
    assert result.exit_code == 1
    assert "do not tell which to read (a, b): give --prompt-field" in result.stderr


# -- formats and queries in Python, as on the command line --------------------------------------


def test_a_format_that_names_no_fields_has_them_guessed(
    tmp_path: Path, lm: LanguageModel, rows: list[Row]
) -> None:
    renamed = [{"question": r["prompt"], "answer": r["response"], "id": r["id"]} for r in rows]
    format = FormatConfig(key_field="id", eos=False)
    index, _ = InfluenceIndex.build(tmp_path / "i", renamed, lm, format=format, vector=SMALL)
    with index:
        found = index.config.format
        assert (found.prompt_field, found.response_field) == ("question", "answer")
        assert (found.key_field, found.eos) == ("id", False)
    named = FormatConfig(prompt_field="ask")
    with pytest.raises(InputError, match="no field 'ask'"):
        InfluenceIndex.build(tmp_path / "j", renamed, lm, format=named, vector=SMALL)


@pytest.mark.parametrize("kind", ["pairs", "text", "chat"])
def test_queries_that_lack_the_fields_of_an_index_are_guessed(
    kind: str, tmp_path: Path, lm: LanguageModel, rows: list[Row]
) -> None:
    template = "{% for m in messages %}{{ m.role[0] + m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}a{% endif %}"
    data: list[Row] = [{"ask": r["prompt"], "say": r["response"]} for r in rows]
    format = FormatConfig(prompt_field="ask", response_field="say")
    if kind == "text":
        data, format = [{"text": r["prompt"] + r["response"]} for r in rows], None
    if kind == "chat":
        data = [{"messages": pair(r["prompt"], r["response"])} for r in rows]
        format = FormatConfig(messages_field="messages", chat_template=template)
    index, _ = InfluenceIndex.build(tmp_path / "i", data, lm, format=format, vector=SMALL)
    asked, said = rows[3]["prompt"], rows[3]["response"]
    with index:
        [sample] = index.samples({"question": asked, "answer": said})
        text = lm.tokenizer.decode(sample.input_ids)
        scored = lm.tokenizer.decode(sample.input_ids[sample.scored])
        expected = {
            "pairs": (f"{asked}{said}</s>", f"{said}</s>"),
            "text": (asked + said, said),  # the rows have no end
            "chat": (f"u{asked}a{said}", said),
        }
        assert (text, scored) == expected[kind]
        path = to_jsonl(tmp_path / "q.jsonl", [{"question": asked, "answer": said}])
        assert [hit.key for hit in index.query(path, 3)] == [h.key for h in index.query(sample, 3)]
        assert said.strip() in text_of(index.session, sample, index.config.format)  # for its words
        with pytest.raises(InputError, match="no field"):
            index.samples({"a": asked, "b": said})


def pair(asked: str, said: str) -> list[Row]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


def test_trls_conversational_form_is_a_chat() -> None:
    row = {"prompt": pair("a", "b")[:1], "completion": pair("a", "b")[1:]}
    settings, words = guess(row)
    assert settings["chat"] is True and words.startswith("messages of the prompt")


def test_data_that_is_no_rows_says_what_is(tmp_path: Path, lm: LanguageModel) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"prompt": "a", "response": "b"}])
    several = datasets.DatasetDict(train=rows, test=rows)
    with pytest.raises(InputError, match=r"splits train, test; .* split"):
        InfluenceIndex.build(tmp_path / "i", several, lm)
    with pytest.raises(InputError, match="data is int, but must be paths, rows"):
        open_rows(5)  # type: ignore[arg-type]


def test_an_input_that_the_first_row_has_not_is_not_lost(tmp_path: Path) -> None:
    rows = [{"instruction": "Say", "output": "hi"}, {"instruction": "Add", "input": "1 2"}]
    rows[1]["output"] = "3"
    file = to_jsonl(tmp_path / "rows.jsonl", rows)
    format = guess_format(open_rows(file))[0]
    texts_of(rows[0], "row 1", format)
    with pytest.raises(RowError, match=r"field 'input' has a meaning .* give --template"):
        texts_of(rows[1], "row 2", format)
    texts_of(rows[1], "row 2", replace(format, ignored_fields=("input",)))


@pytest.mark.parametrize("answer", ["completion", "chosen"])
def test_a_question_in_text_before_an_answer_in_messages(answer: str) -> None:
    said = [{"role": "assistant", "content": "Yo"}]
    row: Row = {"prompt": "Hi", answer: said}
    if answer == "chosen":
        row["rejected"] = [{"role": "assistant", "content": "No"}]
    format = FormatConfig(**guess(row)[0])
    for config in filter(None, (chosen_format(format), rejected_format(format))):
        talk = conversation_of(row, "row", config)
        assert [message["role"] for message in talk.messages] == ["user", "assistant"]
        assert talk.completion == 1
    with_it = row | {answer: [{"role": "user", "content": "Hi"}, *said]}
    if answer == "chosen":
        assert guess(with_it)[0]["messages_field"] == "chosen"


def test_an_image_that_the_first_row_has_not_is_not_lost(tmp_path: Path) -> None:
    rows: list[Row] = [{"prompt": "a", "response": "b", "image": None}]
    rows.append(rows[0] | {"image": "cat.png"})
    format = guess_format(open_rows(to_jsonl(tmp_path / "rows.jsonl", rows)))[0]
    with pytest.raises(RowError, match=r"field 'image' has a meaning .* --image-field"):
        texts_of(rows[1], "row 2", format)
    assert texts_of(rows[0] | {"image": "a cat"}, "row 3", format) == ("a", "b")
    left_out = format_of(format, {"image_field": ""})
    assert texts_of(rows[1], "row 2", left_out) == ("a", "b")

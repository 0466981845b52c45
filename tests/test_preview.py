"""Rows as the model will see them, and an index of conversations from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli import run, run_well, write
from helpers.models import tiny_model, tiny_tokenizer

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig, preview
from forvalue_index.data.notes import joined_note, query_note
from forvalue_index.errors import IndexMissingError, InputError, ModelError, RowError
from forvalue_index.pipeline.preview import Preview
from forvalue_index.records import Row

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] + ':' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
SMALL = VectorConfig(dim=64, sketch_dim=512)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "chat"
    tiny_model("llama", 0).save_pretrained(path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture()
def chats(rows: list[Row]) -> list[Row]:
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"].strip()},
            ]
        }
        for row in rows
    ]


def test_the_first_rows_as_the_model_sees_them(
    chats: list[Row], chat_model: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "chats.jsonl", chats)
    result = run("preview", data, "--model", chat_model, "-n", 2)
    assert result.exit_code == 0
    assert "Reading messages from 'messages'" in result.stderr
    for chat in chats[:2]:
        asked, said = (message["content"] for message in chat["messages"])
        assert f"<s>u:{asked}a:⟦{said}</s>⟧\n" in result.stdout
        n = len(asked) + len(said) + 6
        assert f"  {n} tokens, {len(said) + 1} scored\n" in result.stdout
    assert chats[2]["messages"][0]["content"] not in result.stdout


def test_colours_in_the_place_of_marks(
    chats: list[Row], chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    data = write(tmp_path / "chats.jsonl", chats)
    out = run_well("preview", data, "--model", chat_model, "-n", 1)
    said = chats[0]["messages"][1]["content"]
    assert "⟦" not in out and f"m{said}</s>\x1b[0m" in out


def test_as_json_the_tokens_are_those_of_the_build(
    rows: list[Row], model_dir: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "rows.jsonl", rows)
    out = run_well("preview", data, "--model", model_dir, "--max-length", 8, "--add-eos", "--json")
    shown = [json.loads(line) for line in out.splitlines()]
    format = FormatConfig(max_length=8, eos=True)
    with InfluenceIndex.create(tmp_path / "i", str(model_dir), format=format) as index:
        samples = index.samples(rows[:3])
    assert [item["ids"] for item in shown] == [s.input_ids.tolist() for s in samples]
    assert [item["scored"] for item in shown] == [s.scored.tolist() for s in samples]
    for item, row in zip(shown, rows, strict=False):
        whole = row["prompt"] + row["response"] + "</s>"
        assert item["cut"] == max(len(whole) - 4 - 7, 0)
        assert "".join(item["tokens"]) in whole


def test_a_row_that_cannot_be_used_is_named_and_passed_over(
    rows: list[Row], model_dir: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "rows.jsonl", [rows[0], {"prompt": "a", "response": ""}, rows[1]])
    data.write_text(data.read_text() + "no JSON\n")
    result = run("preview", data, "--model", model_dir, "-n", 4, "--json")
    assert len(result.stdout.splitlines()) == 2
    assert "rows.jsonl:2: field 'response' is empty" in result.stderr
    assert "rows.jsonl:4: not JSON" in result.stderr
    none = write(tmp_path / "none.jsonl", [{"prompt": "a", "response": ""}])
    result = run("preview", none, "--model", model_dir)
    assert result.exit_code == 1 and "none of these rows can be used" in result.stderr


def test_no_weights_are_needed(rows: list[Row], chat_model: Path, tmp_path: Path) -> None:
    light = tmp_path / "light"
    light.mkdir()
    for file in chat_model.iterdir():
        if file.suffix != ".safetensors":
            (light / file.name).write_bytes(file.read_bytes())
    [shown] = preview(rows[0], str(light), format=FormatConfig(chat=True))
    assert not isinstance(shown, RowError)
    assert "".join(shown.tokens) == f"<s>u:{rows[0]['prompt']}a:{rows[0]['response']}</s>"


def test_as_an_index_reads_them(chats: list[Row], chat_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "i"
    format = FormatConfig(messages_field="messages", eos=False)
    InfluenceIndex.build(path, chats, str(chat_model), format=format, vector=SMALL)[0].close()
    data = write(tmp_path / "chats.jsonl", chats)
    out = run_well("preview", data, "--index", path, "-n", 1)
    said = chats[0]["messages"][1]["content"]
    assert f"⟦{said}⟧</s>" in out
    assert run("preview", data).exit_code == 2
    assert run("preview", data, "--index", path, "--model", chat_model).exit_code == 2


def test_a_model_or_length_that_is_not_there(rows: list[Row], model_dir: Path) -> None:
    with pytest.raises(ModelError, match="cannot load model nowhere"):
        list(preview(rows, "nowhere"))
    with pytest.raises(ModelError, match="max length 65 is over the model's 64 positions"):
        list(preview(rows, str(model_dir), format=FormatConfig(max_length=65)))
    with pytest.raises(InputError, match="no chat template: pass --chat-template FILE"):
        list(preview(rows, str(model_dir), format=FormatConfig(chat=True)))


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--prompt-field", "q", "--response-field", "r"), "Hi⟦Yo</s>⟧"),
        (("--prompt-field", "q", "--response-field", "r", "--no-eos"), "Hi⟦Yo⟧"),
        (("--prompt-field", "q", "--response-field", "r", "--add-eos"), "Hi⟦Yo</s>⟧"),
        (("--prompt-field", "q", "--response-field", "r", "--score", "all"), "H⟦iYo</s>⟧"),
        (("--prompt-field", "q", "--response-field", "r", "--chat"), "<s>u:Hia:⟦Yo</s>⟧"),
        (("--text-field", "q"), "H⟦i⟧"),
        (("--messages-field", "m"), "<s>u:Aa:⟦B</s>⟧u:Ca:⟦D</s>⟧"),
        (("--messages-field", "m", "--last-turn", "--no-eos"), "<s>u:Aa:B</s>u:Ca:⟦D⟧</s>"),
        (("--response-field", "r", "--template", "{{ q }}, {{ r }}?"), "Hi,<unk>Yo?⟦Yo</s>⟧"),
        (("--messages-field", "m", "--chat-template", "{{ messages[-1].content }}"), None),
        (("--text-field", "q", "--max-length", 2, "--truncate", "end"), "H⟦i⟧"),
    ],
)
def test_the_options_of_formatting(
    options: tuple[Any, ...], expected: str | None, chat_model: Path, tmp_path: Path
) -> None:
    turns = [("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")]
    messages = [{"role": role, "content": content} for role, content in turns]
    data = write(tmp_path / "rows.jsonl", [{"q": "Hi", "r": "Yo", "m": messages}])
    given: list[Any] = []
    for value in options:
        if given and given[-1] in ("--template", "--chat-template"):
            file = tmp_path / "template.jinja"
            file.write_text(value + "\n")
            value = file
        given.append(value)
    result = run("preview", data, "--model", chat_model, *given)
    if expected is None:  # the first answer is not in what this template writes
        assert "the chat template writes message 1 differently" in result.stderr
        return
    assert expected.replace("<unk>", " ") in result.stdout, result.stderr


def test_fields_of_two_kinds_and_files_that_are_not_there(chat_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [{"q": "Hi", "r": "Yo"}])
    base = ("preview", data, "--model", chat_model)
    result = run(*base, "--text-field", "q", "--messages-field", "m")
    assert result.exit_code == 2
    assert "of one kind: give --text-field or --messages-field, not both" in result.stderr
    result = run(*base, "--template", tmp_path / "no.jinja")
    assert result.exit_code == 2 and "cannot read" in result.stderr
    result = run(*base, "--text-field", "q", "--chat")
    assert result.exit_code == 1 and "plain text is not a chat" in result.stderr


def test_a_template_goes_with_guessed_fields(chat_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [{"instruction": "Add", "input": "1", "output": "2"}])
    file = tmp_path / "template.jinja"
    file.write_text("{{ instruction }}({{ input }})")
    assert "Add(1)⟦2</s>⟧" in run_well("preview", data, "--model", chat_model, "--template", file)


# -- an index of conversations -----------------------------------------------------------------


def test_a_prompt_and_a_response_ask_an_index_of_conversations(
    chats: list[Row], chat_model: Path, tmp_path: Path
) -> None:
    path, data = tmp_path / "i", write(tmp_path / "chats.jsonl", chats)
    settings = ("--index", path, "--model", chat_model, "--dim", 64, "--sketch-dim", 512)
    run_well("build", data, *settings)
    asked, said = (message["content"] for message in chats[5]["messages"])
    by_text = run_well(*("query", "--index", path, "--prompt", asked, "--response", said, "--json"))
    by_chat = run_well(
        *("query", "--index", path, "--json"),
        *("--data", write(tmp_path / "q.jsonl", [chats[5]])),
    )
    assert by_text == by_chat
    assert json.loads(by_text.splitlines()[0])["sample"] == chats[5]
    out = run_well("query", "--index", path, "--prompt", asked, "--response", said, "-k", 2)
    assert asked in out
    result = run("build", data, *settings)  # goes on: the template was settled by the first
    assert result.exit_code == 0 and "0 samples added" in result.stderr


def test_the_template_of_an_index_is_its_own(
    chats: list[Row], chat_model: Path, tmp_path: Path
) -> None:
    format = FormatConfig(messages_field="messages")
    index, _ = InfluenceIndex.build(
        tmp_path / "i", chats, str(chat_model), format=format, vector=SMALL
    )
    index.close()
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in chat_model.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    (moved / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with InfluenceIndex.open(tmp_path / "i", model=str(moved)) as other:
        assert other.config.format.chat_template == TEMPLATE
        samples = other.samples(chats[:4])
        again = other.training_samples(range(4))
        assert all(
            np.array_equal(a.input_ids, b.input_ids) and np.array_equal(a.scored, b.scored)
            for a, b in zip(samples, again, strict=True)
        )
    with pytest.raises(IndexMissingError, match=r"made with other settings .*last_turn: False"):
        InfluenceIndex.build(
            tmp_path / "i",
            chats,
            str(chat_model),
            format=FormatConfig(messages_field="messages", last_turn=True),
            vector=SMALL,
        )


@pytest.mark.parametrize(
    ("prompt", "response", "said"),
    [
        ("Who built it?", "Babbage", "'Who built it?Babbage'"),
        ("a " * 99 + "end", "begin" * 9, "' a a a a a a a a endbeginbeginbeginbegin'"),
        ("Who built it? ", "Babbage", None),
        ("Who built it?\n", "Babbage", None),
        ("Who built it?", " Babbage", None),
        ("Who built it?", "\nBabbage", None),
        ("谁造的？", "巴贝奇", None),
        ("谁造的？", "Babbage", "'谁造的？Babbage'"),
        ("", "Babbage", None),
    ],
)
def test_a_prompt_that_runs_into_its_response_is_told(
    prompt: str, response: str, said: str | None
) -> None:
    row = "row 1", {"q": prompt, "a": response}
    note = joined_note(row, FormatConfig(prompt_field="q", response_field="a"))
    if said is None:
        assert note is None
        return
    assert note is not None and said in note and '{{ q ~ " " }}' in note
    mended = FormatConfig(response_field="a", template='{{ q ~ " " }}')
    assert joined_note(row, mended) is None
    assert joined_note(row, FormatConfig(prompt_field="q", response_field="a", chat=True)) is None
    note = joined_note(row, FormatConfig(response_field="a", template="{{ q }}"))
    assert note is not None and "end the template with it" in note


def test_a_csv_whose_prompts_run_into_responses_is_told_of_once_and_mended_as_it_says(
    model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\n" + "Who built it?,Babbage\nWho?,Ada\n")
    data, note = tmp_path / "rows.csv", "joined as they are, with no space between them"
    result = run("preview", data, "--model", model_dir)
    assert result.stderr.count(note) == 1 and "'Who built it?Babbage'" in result.stderr
    small = "--dim", "32", "--sketch-dim", "512"
    result = run("build", data, "--index", tmp_path / "i", "--model", model_dir, *small)
    assert result.exit_code == 0 and result.stderr.count(note) == 1
    (tmp_path / "prompt.jinja").write_text('{{ question ~ " " }}')
    mended = "--template", tmp_path / "prompt.jinja", "--response-field", "answer"
    result = run("preview", data, "--model", model_dir, *mended)
    assert note not in result.stderr and "Who built it? ⟦Babbage" in result.stdout


def test_roles_that_are_not_known_are_told(
    chats: list[Row], chat_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A template may write any role, but only what the assistant says is scored."""
    told = "Messages of 'narrator', 'Chorus' go to the chat template as they are and are not scored"
    spoken = [{"from": "narrator", "value": "Once"}, {"role": "Chorus", "content": "Oh"}]
    mixed = [{"messages": [*spoken, *chats[0]["messages"]]}, *chats[1:]]
    first, second = preview(mixed, str(chat_model), n=2)
    assert isinstance(first, Preview) and isinstance(second, Preview)
    assert told in first.notes[-1] and not any("Messages of" in note for note in second.notes)
    InfluenceIndex.build(tmp_path / "i", mixed, str(chat_model), vector=SMALL)[0].close()
    assert told in caplog.text
    known = [{"role": "prompter", "content": "Hi"}, {"role": "developer", "content": "Be."}]
    [one] = preview([{"messages": [*known, *chats[0]["messages"]]}], str(chat_model))
    assert isinstance(one, Preview) and not any("Messages of" in note for note in one.notes)


def test_a_query_without_the_space_that_the_rows_have_is_told() -> None:
    format = FormatConfig(template="{{ q }}?", response_field="a")
    own = FormatConfig(response_field="a")
    rows = [{"q": "Who made it", "a": " Ada"}, {"q": "Who", "a": "\nBob"}]
    note = query_note({"prompt": "Who made it?", "a": "Babbage"}, own, rows, format)
    assert note is not None and "'Who made it?Babbage'" in note
    assert query_note({"prompt": "Who made it?", "a": " Babbage"}, own, rows, format) is None
    mixed = [*rows, {"q": "Who", "a": "Eve"}]
    assert query_note({"prompt": "Who made it?", "a": "Babbage"}, own, mixed, format) is None
    assert query_note({"prompt": "Who made it?", "a": "Babbage"}, own, [], format) is None
    texts = FormatConfig(text_field="text")  # which have no such place
    assert query_note({"prompt": "Who?", "a": "Bo"}, own, [{"text": " Ada"}], texts) is None

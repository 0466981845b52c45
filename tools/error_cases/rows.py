"""Rows that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from error_cases.case import Case, chat, row

HI, YO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
PAIR = {"prompt": "Who?", "response": " Ada."}
GOOD = json.dumps(PAIR) + "\n"
BUILD = "build rows.jsonl --index new --model model"
CHAT = "--chat-template chat.jinja"
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def _file(name: str, content: str | bytes, hide: str = "") -> Case:
    return Case(f"build {name} --index new --model model", {name: content}, hide=hide)


def _set(splits: bool) -> Callable[[Path], None]:
    """Writes a data set of the library `datasets` to the folder `set`."""

    def save(folder: Path) -> None:
        import datasets

        datasets.disable_progress_bars()
        made = datasets.Dataset.from_list([PAIR])
        whole = datasets.DatasetDict(train=made, test=made) if splits else made
        whole.save_to_disk(str(folder / "set"))

    return save


def _image(value: object) -> Case:
    return row(PAIR | {"image": value}, options="--image-field image")


FILES = [
    Case("build rows.jsonl --index new --model model"),
    Case('build "part-*.jsonl" --index new --model model'),
    _file("rows.txt", "a text\n"),
    _file("rows.jsonl", ""),
    _file("rows.jsonl", "no JSON\n"),
    _file("rows.jsonl", GOOD + '{"prompt": "a"\n', hide=r"(?<=JSON \().*(?=\))"),
    _file("rows.jsonl", GOOD + "[1]\n"),
    _file("rows.jsonl", GOOD.encode() + b'{"prompt": "\xff", "response": "b"}\n'),
    _file("rows.json", '[{"prompt": "a"', hide=r"(?<=JSON \().*(?=\))"),
    _file("rows.csv", ""),
    _file("rows.csv", b"prompt,\xff\n"),
    _file("rows.csv", "prompt,response\na,b\nc\n"),
    _file("rows.csv", b"prompt,response\na,b\nc,\xff\n"),
    _file("rows.csv", 'prompt,response\na,b\nc,"d\n', hide=r"(?<=CSV \().*(?=\))"),
    _file("rows.parquet", b"PAR1", hide=r"(?<=read \().*(?=\))"),
    _file("rows.csv", "prompt,prompt\na,b\n"),
    _file("rows.jsonl.gz", b"\x1f\x8b\x08\x00", hide=r"(?<=read \().*(?=\))"),
    Case(f"{BUILD} --split train", {"rows.jsonl": json.dumps(PAIR)}),
    Case("build rows.jsonl rows.jsonl --index new --model model", {"rows.jsonl": json.dumps(PAIR)}),
    Case("build set --index new --model model", before=_set(True), told="a data set of two splits"),
    Case(
        "build set --index new --model model --split train",
        before=_set(False),
        told="a data set without splits",
    ),
    Case("build rows.parquet --index new --model model", {"rows.parquet": "x"}, lacking="pyarrow"),
    Case("build set --index new --model model", before=_set(True), lacking="datasets"),
    Case("build folder --index new --model model", {"folder/rows.jsonl": json.dumps(PAIR)}),
]

FIELDS = [
    row({"alpha": "a", "beta": "b"}),
    row(PAIR, {"prompt": "x"}),
    row(PAIR, {"prompt": {"a": 1}, "response": "b"}),
    row(PAIR, {"prompt": ["a"], "response": "b"}),
    row({"prompt": "a", "response": ""}),
    row({"messages": "Hi"}, options=f"{CHAT} --messages-field messages"),
    row({"text": "Hi"}, options=f"{CHAT} --messages-field messages"),
    row({"messages": 1}, options=f"{CHAT} --messages-field messages"),
    row({"messages": []}, options=CHAT),
    row(PAIR | {"system": "Be brief."}),
    row(PAIR | {"key": "a\0b"}, options="--key-field key"),
    row(PAIR | {"key": "k" * 3000}, options="--key-field key"),
    row(PAIR | {"id": "1"}, PAIR | {"id": "1"}, options="--key-field id"),
    row({"prompt": "\ud800", "response": "b"}),
    row({"prompt": "a", "response": "b", "deep": json.loads("[" * 120 + "]" * 120)}),
    row({"prompt": "many words " * 200, "response": " b"}, options="--truncate end"),
    row({"text": "a"}, options="--text-field text --no-eos --no-bos"),
    row(PAIR | {"topic": "a"}, options="--label-field topic"),
    row(PAIR, options="--template half.jinja", hide=r"(?<=read: ).*(?=;)"),
    row(PAIR, options="--template missing.jinja"),
    row(PAIR, options="--template failing.jinja", hide=r"(?<=row \().*(?=\))"),
]

MESSAGES = [
    chat("Hi"),
    chat({"content": "Hi"}),
    chat({"role": "user", "text": "Hi"}),
    chat({"role": "user", "content": "Hi", "value": "Ho"}),
    chat({"role": "user", "content": 3}),
    chat(HI, {"role": "assistant", "content": [{"type": "tool_use", "name": "x"}]}),
    chat(HI, YO | {"tool_calls": "clock"}),
    chat(HI, YO | {"tool_calls": [1]}),
    chat(HI, YO | {"train_detail": [1]}),
    chat(HI, YO | {"train": "yes"}),
    chat(HI | {"train": True}),
    chat(HI, YO | {"weight": 3}),
    chat({"role": "user", "content": "\ud800"}),
    chat({"role": "system", "content": "Be brief."}, HI, system="Be long."),
    chat(HI, tools="a hammer"),
    chat(HI, tools="[1]"),
    chat(HI, history=[["Hi"]]),
    row(PAIR | {"history": [["Hi"]]}, options=f"{CHAT} --chat"),
    row({"prompt": "", "completion": [YO]}, options=CHAT),
    chat(HI, YO, options="--chat-template moving.jinja"),
    chat(HI, chat_template_kwargs=3),
    chat(HI, chat_template_kwargs={"messages": []}),
    chat(HI, options=f"{CHAT} --template-arg messages=1"),
    chat(HI, options=f"{CHAT} --template-arg thinking"),
    chat(HI, options=""),
    chat(HI, options="--chat-template half.jinja", hide=r"(?<=read: ).*(?=;)"),
    chat(HI, options="--chat-template refusing.jinja"),
    chat(HI, options="--chat-template silent.jinja"),
    chat(HI, options="--chat-template deaf.jinja"),
    chat(HI, tools=[{"type": "function", "function": {"name": "clock"}}]),
    chat(HI | {"content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}),
    row({"messages": [HI]}, options=CHAT),
    row({"prompt": [HI], "completion": [HI]}, options=CHAT),
]

PREFERENCES = [
    row({"prompt": "a", "chosen": " b", "rejected": " b"}),
    row(PAIR | {"label": 3}, options="--desirable-field label"),
]

TOKENS = [
    row({"input_ids": "1 2"}, options="--tokens-field input_ids"),
    row({"input_ids": []}, options="--tokens-field input_ids"),
    row({"input_ids": [1, -5]}, options="--tokens-field input_ids"),
    row({"input_ids": [1, 2.5]}, options="--tokens-field input_ids"),
    row({"input_ids": [1, 10**12]}, options="--tokens-field input_ids"),
    row({"input_ids": [1, 99999]}, options="--tokens-field input_ids"),
    row({"input_ids": [1, 2, 3], "labels": [-100, 3, 3]}, options="--tokens-field input_ids"),
    row({"input_ids": [1, 2, 3], "labels": [-100, 2]}, options="--tokens-field input_ids"),
    row({"input_ids": [1, 2], "completion_mask": [0, 2]}, options="--tokens-field input_ids"),
    row({"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]},
        options="--tokens-field input_ids"),
    row({"input_ids": [1, 2, 3], "seq_lengths": [1, 1]}, options="--tokens-field input_ids"),
    row({"input_ids": [1, 2, 3], "position_ids": [0, 2, 1]}, options="--tokens-field input_ids"),
    row({"id": "a", "input_ids": [1, 2, 3, 4], "position_ids": [0, 1, 0, 1]},
        options="--tokens-field input_ids --key-field id"),
    row({"prompt": "a"}, options="--tokens-field input_ids"),
]  # fmt: skip

IMAGES = [
    _image(f"data:image/png;base64,{DOT}"),
    _image(3),
    _image({"size": 3}),
    _image({"image_blake2b": "0" * 32, "size": [1, 1], "path": "/photos/a.png"}),
    _image({"bytes": "no base64!"}),
    _image({"bytes": [1, 900]}),
    _image({"bytes": 3}),
    _image("data:image/png,plain"),
    _image("missing.png"),
    _image("/nowhere/missing.png"),
    Case(f"{BUILD} --image-field image --allow-remote",
         {"rows.jsonl": json.dumps(PAIR | {"image": "http://127.0.0.1:9/a.png"})},
         hide=r"(?<=fetched \().*(?=\))"),
    row({"input_ids": [1, 2], "image": "a.png"},
        options="--tokens-field input_ids --image-field image"),
    row({"messages": [HI | {"content": [{"type": "image", "path": "a.png"}]}, YO],
         "image": {"bytes": DOT}}, options=f"{CHAT} --image-field image"),
    _image("https://example.org/a.png"),
    _image({"bytes": "aGVsbG8="}),
    Case(f"{BUILD} --image-field image",
         {"rows.jsonl": json.dumps(PAIR | {"image": {"bytes": DOT}})}, lacking="PIL"),
]  # fmt: skip

CASES = [*FILES, *FIELDS, *MESSAGES, *PREFERENCES, *TOKENS, *IMAGES]

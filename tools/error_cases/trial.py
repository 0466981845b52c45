"""Files and tables that cannot be read, and rows that only Python can hold."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from error_cases.case import Case, chat, python, row
from error_cases.rows import BUILD, CHAT, DOT, HI, PAIR, YO
from pyarrow import parquet

from forvalue_index import FormatConfig


def _table(**columns: Callable[[], Any]) -> Callable[[Path], None]:
    """Writes a table to rows.parquet."""

    def write(folder: Path) -> None:
        made = {name: column() for name, column in columns.items()}
        parquet.write_table(pa.table(made), folder / "rows.parquet")

    return write


def _no_text() -> Any:
    """Returns a column of two texts, the second of which is not UTF-8."""
    parts = [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    return pa.Array.from_buffers(pa.string(), 2, parts)


def _no_json() -> Any:
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', "{"]))


def _itself() -> dict[str, Any]:
    row: dict[str, Any] = dict(PAIR)
    row["itself"] = [row]
    return {"circle": row}


def _images() -> dict[str, Any]:
    from PIL import Image

    return {"cmyk": Image.new("CMYK", (1, 1)), "wide": Image.new("1", (9500, 9500))}


def _big() -> dict[str, Any]:
    return {"big": b64decode(DOT) + bytes(2**26 - 200)}


def _images_of(value: str, **more: Any) -> Case:
    return python(f"InfluenceIndex.build('new', [row | {{'image': {value}}}], 'model', format=IMAGES)",
                  known=lambda: {"IMAGES": FormatConfig(image_field="image")} , **more)


MARKED = "{{ messages|length }}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"


FILES = [
    Case(f"{BUILD} --prompt-field prompt --response-field response", {"rows.jsonl": '{"prompt": NaN, "response": "b"}\n'}),
    Case(f"build rows.json --index new --model model --prompt-field prompt --response-field response", {"rows.json": '[1]'}),
    Case("build rows.csv --index new --model model --prompt-field prompt --response-field response", {"rows.csv": 'prompt,response\na,"b"c\n'}),
    Case("score --index my.index --data rows.jsonl --output file:///nowhere/values.csv", {"rows.jsonl": json.dumps(PAIR)}),
    Case("score --index my.index --data rows.jsonl --output memory:///a/values.csv", {"rows.jsonl": json.dumps(PAIR)}),
    Case("score --index my.index --data rows.jsonl --output s3://bucket/values.csv --allow-remote", {"rows.jsonl": json.dumps(PAIR)}),
    python("open_rows('memory://a.jsonl', allow_remote=True)"),
]
ROWS = [
    python("index.query(row, format=FormatConfig(max_length=1))"),
    python("InfluenceIndex.build('new', [row], 'model', format=FormatConfig(max_length=1))"),
    row(PAIR, options="--add-eos"),
    python("index.query({'messages': [{'role': 'user', 'content': 'Hi'}]}, format=FormatConfig(messages_field='messages', chat_template='chat.jinja'))"),
    python("index.query({'messages': [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Yo', 'weight': 0}]}, format=FormatConfig(messages_field='messages', chat_template='chat.jinja'))"),
    python("index.query({'messages': [1]}, format=FormatConfig(messages_field='messages', chat_template='chat.jinja', form=1))"),
    python("index.query({'messages': [{'content': 'Hi'}]}, format=FormatConfig(messages_field='messages', chat_template='chat.jinja', form=1))"),
    python("index.query({'messages': [{'role': 'user', 'content': 3}]}, format=FormatConfig(messages_field='messages', chat_template='chat.jinja', form=1))"),
    row({"prompt": [HI, YO], "completion": [HI]}, options=CHAT),
    Case(f"{BUILD} --chat-template marked.jinja --last-turn", {"marked.jinja": MARKED, "rows.jsonl": json.dumps({"messages": [HI, YO]})}),
    Case(f"{BUILD} --chat-template marked.jinja", {"marked.jinja": MARKED, "rows.jsonl": json.dumps({"messages": [HI, YO | {"weight": 0}, HI, YO]})}),
    python("index.add([row | {'id': '99', 'text': 'a' * 2**28}])"),
    row({"messages": [HI | {"content": [{"type": "image", "image": {"bytes": DOT}}, {"type": "image"}, {"type": "text", "text": "Hi"}]}, YO]}, options=f"{CHAT} --messages-field messages"),
    row({"messages": [HI | {"content": [{"type": "image", "image": {"bytes": DOT}}, {"type": "image"}, {"type": "text", "text": "Hi"}]}, YO], "input_ids": [1, 2]}, options=f"--tokens-field input_ids --messages-field messages"),
]

IMAGES = [
    python("index.query(row | {'image': {'bytes': bytes(2**26 + 1)}}, format=FormatConfig(image_field='image'))"),
    python("index.query(row | {'image': [{'bytes': big}] * 5}, format=FormatConfig(image_field='image'))", known=_big),
    Case(f"{BUILD} --image-field image", {"a.png": b64decode(DOT), "rows.jsonl": json.dumps(PAIR | {"image": {"image_blake2b": "0" * 32, "size": [1, 1], "path": "a.png"}})}),
    Case(f"{BUILD} --image-field image", {"a.png": b64decode(DOT), "rows.jsonl": json.dumps(PAIR | {"image": "a.png"}) + "\n" + json.dumps(PAIR | {"image": {"image_blake2b": "0" * 32, "size": [1, 1], "path": "a.png"}})}),
    row({"input_ids": [1, 2], "image": {"bytes": DOT}}, options="--tokens-field input_ids --image-field image"),
    python("index.query({'input_ids': [1, 2], 'image': {'bytes': DOT}}, format=FormatConfig(image_field='image', tokens_field='input_ids'))", known=lambda: {"DOT": DOT}),
]
CASES = [*FILES, *ROWS, *IMAGES]

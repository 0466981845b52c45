"""Files and tables that cannot be read, and rows that only Python can hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from error_cases.case import Case, chat, python, row
from error_cases.rows import BUILD, CHAT, DOT, HI, PAIR, YO
from pyarrow import parquet


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

    return {"cmyk": Image.new("CMYK", (1, 1)), "wide": Image.new("1", (20000, 20000))}


FILES = [
    Case("build rows.parquet --index new --model model",
         before=_table(prompt=_no_text, response=lambda: ["b", "c"]),
         told="the text of the second prompt is the byte ff"),
    Case("build rows.parquet --index new --model model",
         before=_table(prompt=lambda: ["a", "b"], response=lambda: ["b", "c"], more=_no_json),
         told="a column `more` of Arrow's type for JSON has the text {"),
    Case("build file:///nowhere/*.jsonl --index new --model model"),
    Case("build https://example.org/rows.jsonl --index new --model model"),
    Case("build s3://bucket/rows.jsonl --index new --model model --allow-remote",
         lacking="s3fs"),
    Case("build cloud://bucket/rows.jsonl --index new --model model --allow-remote"),
    Case("build nobody/nothing --index new --model model"),
    Case(BUILD, {"rows.jsonl": '{"prompt": NaN, "response": "b"}\n'}),
    Case(BUILD, {"rows.jsonl": '{"prompt": "a", "prompt": "b"}\n'}),
    Case("build rows.json --index new --model model", {"rows.json": '[{"prompt": "a", "prompt": "b"}]'}),
    Case("build rows.json --index new --model model", {"rows.json": '[1]'}),
    Case("build rows.csv --index new --model model", {"rows.csv": 'prompt,response\na,"b"c\n'}),
    Case("score --index my.index --data rows.jsonl --output file:///nowhere/values.csv", {"rows.jsonl": json.dumps(PAIR)}),
    python("open_rows([])"),
]

ROWS = [
    python("index.add([circle])", known=_itself, told="`circle` is a row that holds itself"),
    python("index.query({1: 'Who?', 'prompt': 'a', 'response': 'b'})"),
    python("index.query({'prompt': 10**5000, 'response': ' Ada.'})"),
    python("InfluenceIndex.build('new', [row | {'messages': [{'role': 'user', 'content': 'Hi', 'at': {1}}]}], 'model', format=FormatConfig(messages_field='messages', chat_template='chat.jinja'))"),
    row(PAIR, options="--max-length 1"),
    row(PAIR | {"system": "a", "system_prompt": "b"}, options=CHAT + " --chat"),
    chat(HI, YO, system="a", system_prompt="b"),
    row({"input_ids": [1, 10**30]}, options="--tokens-field input_ids"),
    row({"prompt": [HI], "completion": [YO | {"weight": 0}]}, options=CHAT),
    chat(HI, YO | {"weight": 0}),
    chat({"role": "system", "content": "Be"}, HI, YO, HI, YO, options="--chat-template moving.jinja"),
    python("index.instead(index.instead(row, ' Bob.'), ' Eve.')"),
    python("index.add([row | {'id': '99', 'text': 'a' * 2**26}])"),
]

IMAGES = [
    python("InfluenceIndex.build('new', [row | {'image': cmyk}], 'model', format=FormatConfig(image_field='image'))", known=_images),
    python("InfluenceIndex.build('new', [row | {'image': wide}], 'model', format=FormatConfig(image_field='image'))", known=_images),
    Case(f"{BUILD} --image-field image", {"a.png": b"", "rows.jsonl": json.dumps(PAIR | {"image": {"image_blake2b": "0" * 32, "size": [1, 1], "path": "a.png"}})}),
    Case(f"{BUILD} --image-field image", {"rows.jsonl": json.dumps(PAIR | {"image": {"bytes": "A" * 2**27}})}),
]

CASES = [*FILES, *ROWS, *IMAGES]

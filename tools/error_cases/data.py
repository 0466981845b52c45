"""Files and tables that cannot be read, and rows that only Python can hold."""

from __future__ import annotations

import json
import os
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from error_cases.case import Case, python, row
from error_cases.models import pair
from error_cases.rows import BUILD, CHAT, DOT, HI, PAIR, YO
from pyarrow import parquet

from forvalue_index import FormatConfig
from forvalue_index.data.parts import Part, open_part


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

    return {"real": Image.new("F", (1, 1)), "wide": Image.new("1", (9500, 9500))}


def _large(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"")
    os.truncate(folder / "a.png", 2**26 + 1)


def _slow() -> dict[str, Any]:
    """Returns a model and a tokenizer of pairs of characters that is written in Python."""
    from transformers import PreTrainedTokenizer

    class Slow(PreTrainedTokenizer):
        vocab_size = 1095

        def get_vocab(self) -> dict[str, int]:
            return {"</s>": 2}

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return [text[i : i + 2] for i in range(0, len(text), 2)]

        def _convert_token_to_id(self, token: str) -> int:
            return sum(map(ord, token)) % 1000 + 3

        def _convert_id_to_token(self, id: int) -> str:
            return str(id)

    make: Any = Slow
    return pair() | {"tokenizer": make(eos_token="</s>")}


PLAIN = "--prompt-field prompt --response-field response"
MARKED = (
    "{{ messages | length }}{% for m in messages %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
)
SCORE = "score --index my.index --data rows.jsonl"

FILES = [
    Case("build rows.parquet --index new --model model",
         before=_table(prompt=_no_text, response=lambda: ["b", "c"]),
         told="the second prompt is not UTF-8", hide=r"(?<=read \().*(?=\))"),
    Case("build rows.parquet --index new --model model",
         before=_table(prompt=lambda: ["a", "b"], response=lambda: ["b", "c"], more=_no_json),
         told="a column of Arrow's type for JSON holds {", hide=r"(?<=JSON \().*(?=\))"),
    Case("build file:///nowhere/*.jsonl --index new --model model"),
    Case("build https://example.org/rows.jsonl --index new --model model"),
    Case("build s3://bucket/rows.jsonl --index new --model model --allow-remote", lacking="s3fs"),
    Case("build cloud://bucket/rows.jsonl --index new --model model --allow-remote"),
    python("list(open_part(part))",
           told="from forvalue_index.data.parts; part is of a file that is not there",
           known=lambda: {"open_part": open_part, "part": Part(Path("gone.jsonl"), 0, 9)}),
    Case("build nobody/nothing --index new --model model", hide=r"(?<=nothing: ).*(?=; correct)"),
    Case(f"{BUILD} {PLAIN}", {"rows.jsonl": '{"prompt": NaN, "response": "b"}\n'}),
    Case(f"build rows.json --index new --model model {PLAIN}", {"rows.json": "[1]"}),
    Case("build rows.json --index new --model model",
         {"rows.json": '[{"prompt": "a", "prompt": "b"}]'}),
    Case(f"build rows.csv --index new --model model {PLAIN}",
         {"rows.csv": 'prompt,response\na,"b"c\n'}, hide=r"(?<=CSV \().*(?=\))"),
    Case(f"{SCORE} --output hf://datasets/nobody/nothing/values.csv --allow-remote",
         {"rows.jsonl": json.dumps(PAIR)}, hide=r"(?<=written \().*?(?=\): what)|(?<=is in ).*"),
]  # fmt: skip


def _chat(message: str, form: int = 2) -> Case:
    """Returns the case of a query of one message, in an index of a form of reading rows."""
    made = FormatConfig(messages_field="messages", chat_template="chat.jinja", form=form)
    told = "format is of messages" + ("" if form > 1 else ", and of form 1")
    run = f"index.query({{'messages': [{message}]}}, format=format)"
    return python(run, known=lambda: {"format": made}, told=told)


ROWS = [
    python("index.add([circle])", known=_itself, told="circle is a row that holds itself"),
    python("index.query({1: 'Who?', 'prompt': 'a', 'response': 'b'})"),
    python("index.query({'prompt': 10**5000, 'response': ' Ada.'})", hide=r"(?<=text \().*(?=\))"),
    python("index.query(row, format=FormatConfig(max_length=1))"),
    _chat("{'role': 'user', 'content': 'Hi'}"),
    _chat("{'role': 'user', 'content': 'Hi', 'at': {1}}"),
    _chat("1", form=1),
    _chat("{'content': 'Hi'}", form=1),
    _chat("{'role': 'user', 'content': 3}", form=1),
    row(PAIR | {"system": "a", "system_prompt": "b"}, options=f"{CHAT} --chat"),
    row({"input_ids": [1, 10**30]}, options="--tokens-field input_ids"),
    row({"prompt": [HI, YO], "completion": [HI]}, options=CHAT),
    Case(f"{BUILD} --chat-template marked.jinja --last-turn",
         {"marked.jinja": MARKED, "rows.jsonl": json.dumps({"messages": [HI, YO]})}),
    python("index.instead(index.instead(row, ' Bob.'), ' Eve.')"),
    python("InfluenceIndex.build('new', [row], wrap_model(model, tokenizer))", known=_slow,
           told="tokenizer is written in Python, and its tokens are pairs of characters"),
]  # fmt: skip

FORMAT = "FormatConfig(image_field='image')"
IMAGE = f"{BUILD} --image-field image"
KNOWN = {"image_blake2b": "0" * 32, "size": [1, 1], "path": "a.png"}
IMAGES = [
    python(f"InfluenceIndex.build('new', [row | {{'image': real}}], 'model', format={FORMAT})",
           known=_images, told="real is an image of Pillow of real numbers",
           hide=r"(?<=PNG \().*(?=\))"),
    python(f"InfluenceIndex.build('new', [row | {{'image': wide}}], 'model', format={FORMAT})",
           known=_images, told="wide is an image of Pillow with so many pixels"),
    Case(IMAGE, {"a.png": b64decode(DOT), "rows.jsonl": "".join(
        json.dumps(PAIR | {"image": image}) + "\n" for image in ("a.png", KNOWN))}),
    row(PAIR | {"image": "a.png"}, options="--image-field image", before=_large,
        told="a.png has 64 MiB and a byte"),
    row({"input_ids": [1, 2], "image": {"bytes": DOT}},
        options="--tokens-field input_ids --image-field image"),
]  # fmt: skip

CASES = [*FILES, *ROWS, *IMAGES]

"""Images that are too large, of a kind that is not read, or other than they were; and what only
looks like an image."""

from __future__ import annotations

import base64
import io
import json
import os
import resource
import struct
import subprocess
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import tiny_vision
from helpers.indexes import rejects_of
from helpers.tiny_vision import index_of, png
from PIL import EpsImagePlugin, Image

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.cli import main
from forvalue_index.data import images
from forvalue_index.data.formatter import Formatter
from forvalue_index.data.identity import content_hash
from forvalue_index.data.images import Known, settle
from forvalue_index.errors import CorruptIndexError, RowError
from forvalue_index.model import vision
from forvalue_index.model.language_model import LanguageModel, wrap_model
from forvalue_index.picture import HASH, Picture
from forvalue_index.pipeline import build as pipeline_build
from forvalue_index.pipeline.session import Session
from forvalue_index.records import Row, Sample

FORMAT = FormatConfig(image_field="image")


def refusal(value: Any, **settings: Any) -> str:
    with pytest.raises(RowError) as error:
        settle({"image": value}, "train.jsonl:3", FORMAT, **settings)
    assert error.value.source == "train.jsonl:3"
    assert str(error.value).isprintable()
    return error.value.reason


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *extra: bytes) -> bytes:
    """A PNG that says how large it is, and has no pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IEND", b"")


# -- kinds and sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_kinds_that_are_read(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (255, 0, 0)).save(buffer, kind)
    assert settle({"image": buffer.getvalue()}, "row 1", FORMAT)["image"]["size"] == [6, 4]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_colours_that_no_png_has_are_converted(mode: str) -> None:
    image = Image.new("RGB", (6, 4), (255, 0, 0)).convert(mode)
    row = settle({"image": image}, "row 1", FORMAT)
    stored = Image.open(io.BytesIO(base64.b64decode(row["image"]["bytes"])))
    assert (stored.mode, stored.size) == ("RGB", (6, 4))
    assert np.abs(np.array(stored).astype(int) - (255, 0, 0)).max() < 9


def test_no_other_program_is_started_for_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    Image.open(io.BytesIO(eps))  # Pillow takes it for an image
    reason = refusal(eps)
    assert "cannot be decoded (it is damaged, or none of BMP, GIF, JPEG, PNG" in reason


def test_what_is_no_image_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"text")
    assert "BytesIO" not in refusal(b"text")
    assert f"image {tmp_path / 'a.png'} cannot be decoded (it is" in refusal(
        str(tmp_path / "a.png")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 9_000), (100_000, 100_000), (2**31 - 1, 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    assert "cannot be decoded" in refusal(png_of(*size))


def test_texts_in_an_image_that_unpack_to_very_much() -> None:
    packed = zlib.compress(bytes(50 << 20), 9)
    text = chunk(b"zTXt", b"comment\0\0" + packed)
    assert "cannot be decoded (Decompressed data too large" in refusal(png_of(4, 4, text))


def test_too_many_bytes_are_refused_before_they_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_index.picture.LARGEST_BYTES", 1 << 20)
    code = base64.b64encode(bytes(2 << 20)).decode()
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("unpacked"))
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(1 << 40)
    for value in (
        code,
        {"bytes": code},
        f"data:image/png;base64,{code}",
        bytes(2 << 20),
        {"bytes": [0] * (2 << 20)},
        str(tmp_path / "a.png"),
    ):
        assert "is larger than 1 MiB" in refusal(value)


def test_the_images_of_a_row_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST_ROW", 3 * len(png(0)) - 1)
    settle({"image": [png(0), png(0)]}, "row 1", FORMAT)
    assert "its images are larger than" in refusal([png(0), png(0), png(0)])


def test_a_pipe_or_a_device_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (str(tmp_path / "pipe"), "/dev/zero"):
        assert "does not exist" in refusal(place)
        with pytest.raises(RowError, match="not a regular file"):  # as a catalogue may name it
            Picture("0" * 32, (1, 1), place, None).pixels("row 1")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"bytes": -1}, "are int, not base64"),
        ({"bytes": 1.5}, "are float, not base64"),
        ({"bytes": 10**12}, "are int, not base64"),
        ({"bytes": True}, "are bool, not base64"),
        ({"bytes": {"a": 1}}, "are dict, not base64"),
        ({"bytes": [300]}, "not of numbers below 256"),
        ({"bytes": [-1]}, "not of numbers below 256"),
        ({"bytes": [1.5]}, "not of numbers below 256"),
        ({"bytes": [True]}, "not of numbers below 256"),
        ({"bytes": ["a"]}, "not of numbers below 256"),
        ({"bytes": []}, "cannot be decoded"),
        ({"bytes": ""}, "cannot be decoded"),
        ({"bytes": "é"}, "are text, but not base64"),
        ({"path": 5}, 'neither "bytes" nor "path"'),
        ({"path": "a\0b\n\x1b[2J"}, r"image a\x00b\n\x1b[2J is not in"),
        ({"url": ["a"]}, 'neither "bytes" nor "path"'),
        ({HASH: 1}, 'neither "bytes" nor "path"'),
        ([[png(0)]], "not list"),
        ([None], "not NoneType"),
        ([300], "not int"),
        (-1, "not int"),
        (1.5, "not float"),
        ("", "image  is not in"),
        ("a" * 5000 + ".png", "…"),
    ],
)
def test_values_that_are_no_image(value: Any, reason: str) -> None:
    assert reason in refusal(value)


def test_a_list_of_the_numbers_of_bytes_is_an_image() -> None:
    row = settle({"image": {"bytes": list(png(0))}}, "row 1", FORMAT)
    assert row == settle({"image": png(0)}, "row 1", FORMAT)


def test_a_number_of_bytes_allocates_nothing() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal({"bytes": 3 << 30})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_a_processor_that_refuses_a_size_is_an_error_of_the_row() -> None:
    model, processor = tiny_vision.load("qwen2-vl")
    lm = wrap_model(model, processor.tokenizer, processor=processor)
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 2)).save(buffer, "PNG")
    row = {"prompt": "what?", "response": " a line", "image": buffer.getvalue()}
    with pytest.raises(RowError, match="row 1: the model's processor takes no image of 2000 x 2"):
        samples_of(lm, [row])


def samples_of(lm: LanguageModel, rows: list[Row]) -> list[Sample]:
    formatter = Formatter(lm.tokenizer, FORMAT, 400, vision=lm.vision)
    return formatter.samples(
        [(f"row {i}", settle(row, f"row {i}", FORMAT)) for i, row in enumerate(rows, 1)]
    )


# -- once --------------------------------------------------------------------------------------


class Server:
    """A server of one image, that may point elsewhere; it counts how often it is asked."""

    def __init__(self, answers: dict[str, tuple[int, dict[str, str], bytes]]) -> None:
        asked = self.asked = list[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                status, headers, body = answers[self.path]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_an_image_is_fetched_once_and_never_by_other_means_than_http(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    answers: dict[str, tuple[int, dict[str, str], bytes]] = {
        "/a": (200, {}, png(0)),
        "/moved": (302, {"Location": "/a"}, b""),
        "/file": (302, {"Location": f"file://{tmp_path}/a.png"}, b""),
        "/ftp": (302, {"Location": "ftp://127.0.0.1:1/a.png"}, b""),
        "/short": (200, {"Content-Length": "999999"}, png(0)),
        "/none": (404, {}, b""),
    }
    with Server(answers) as server:
        known = Known()
        rows = [
            settle(
                {"image": server.url + "/moved"}, "row 1", FORMAT, known=known, allow_remote=True
            )
            for _ in range(3)
        ]
        assert rows[0] == rows[2] and rows[0]["image"]["bytes"]
        assert server.asked == ["/moved", "/a"]
        for name in ("/file", "/ftp", "/none", "/short"):
            for _ in range(2):
                reason = refusal(server.url + name, known=known, allow_remote=True)
                assert "cannot be fetched" in reason
            assert server.asked.count(name) == 1
        assert "is a URL: pass --allow-remote" in refusal(server.url + "/a")


def test_a_url_with_line_breaks_is_an_error_of_one_line() -> None:
    reason = refusal("http://127.0.0.1:1/a\r\nHost: b", allow_remote=True)
    assert "cannot be fetched" in reason


def test_each_image_is_decoded_once_however_often_its_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    open_image = Image.open

    def counted(*arguments: Any, **settings: Any) -> Any:
        decoded.append(1)
        return open_image(*arguments, **settings)

    monkeypatch.setattr(Image, "open", counted)
    (tmp_path / "a.png").write_bytes(png(0))
    known = Known()
    for _ in range(3):
        for value in (str(tmp_path / "a.png"), png(1), {"bytes": list(png(2))}):
            settle({"image": value}, "row 1", FORMAT, known=known)
    assert len(decoded) == 3


@pytest.fixture(scope="module")
def llava_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.save(tmp_path_factory.mktemp("models") / "llava", "llava")


def written(folder: Path, n: int = 6) -> Path:
    for i in range(n):
        (folder / f"{i}.png").write_bytes(png(i))
    rows = [
        {"id": f"r{i}", "prompt": "what?", "response": f" it is {i}", "image": f"{i}.png"}
        for i in range(n)
    ]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_an_image_that_changes_while_it_is_indexed_is_named(
    on_error: str, tmp_path: Path, llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(tmp_path)
    load = pipeline_build.create

    def create(*arguments: Any, **settings: Any) -> Session:  # after the rows were checked
        (tmp_path / "3.png").write_bytes(png(33))
        return load(*arguments, **settings)

    monkeypatch.setattr(pipeline_build, "create", create)
    if on_error == "stop":
        with pytest.raises(RowError, match=r"train\.jsonl:4: image .*3\.png has changed since its"):
            index_of(tmp_path / "ix", data, llava_dir)
        return
    with index_of(tmp_path / "ix", data, llava_dir, on_error="skip") as index:
        assert sorted(sample.key for sample in index.rows()) == ["r0", "r1", "r2", "r4", "r5"]
    (note,) = rejects_of(tmp_path / "ix")
    assert (note["line"], "has changed since" in note["reason"]) == (4, True)


def test_no_pixels_are_kept_of_the_sizes_that_were_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_vision.load("llava")
    seen = wrap_model(model, processor.tokenizer, processor=processor).vision
    assert seen is not None
    monkeypatch.setattr(vision, "REMEMBERED", 20_000)
    first = seen.expansion((40, 30))
    for width in range(10, 120):
        seen.expansion((width, 30))
    shapes = seen._shapes
    assert 1 < len(shapes._shapes) < 40 and shapes._bytes <= 20_000
    assert seen.expansion((40, 30)) == first
    assert all(isinstance(shape.text, str) for shape in shapes._shapes.values())


# -- what only looks like an image -------------------------------------------------------------

FORGED: list[Any] = [
    {HASH: 1},
    {HASH: "0" * 32, "size": [1, 1], "path": "/etc/passwd"},
    {"a": [{HASH: "0" * 32, "size": "x", "bytes": 7}]},
    [{"type": "image", "image": {HASH: 2}}],
    {"bytes": "AAAA"},
]


def test_what_looks_like_an_image_is_part_of_a_rows_key_and_content() -> None:
    row = {"prompt": "a", "response": "b"}
    for format in (FormatConfig(), FORMAT, FormatConfig(messages_field="messages")):
        hashes = {content_hash(row | {"meta": value}, "row 1", format) for value in FORGED}
        more = {
            content_hash(row | {"meta": {HASH: 1, "more": n}}, "row 1", format) for n in range(3)
        }
        assert len(hashes | more) == len(FORGED) + 3
    image = {"image": settle({"image": png(0)}, "row 1", FORMAT)["image"]}
    elsewhere = image | {"image": image["image"] | {"bytes": None, "path": "/moved.png"}}
    assert content_hash(image, "row 1", FORMAT) == content_hash(elsewhere, "row 1", FORMAT)
    assert content_hash(image, "row 1") != content_hash(elsewhere, "row 1")


def test_what_looks_like_an_image_is_read_as_data_by_every_command(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    marked = [row | {"meta": FORGED[i % len(FORGED)], HASH: i} for i, row in enumerate(rows)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in marked))
    directory = ("--index", str(tmp_path / "i"))

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    run("build", str(path), *directory, "--model", str(model_dir), "--dim", "32",
        "--sketch-dim", "512", "--key-field", "id")  # fmt: skip
    run("list", *directory)
    shown = run("show", "row-1", *directory)
    assert "/etc/passwd" in shown and HASH in shown
    run("query", *directory, "--prompt", "a", "--response", " b")
    run("score", *directory, "--data", str(path))
    run("audit", *directory)
    with InfluenceIndex.open(tmp_path / "i") as index:
        assert [sample.row for sample in index.rows()] == marked
        assert index.verify() == []


def test_images_in_messages_are_images_and_what_stands_beside_them_is_not() -> None:
    format = FormatConfig(messages_field="messages")
    parts = [{"type": "image", "image": png(0)}, {"type": "text", "text": "a", "image": {HASH: 1}}]
    row = settle({"messages": [{"role": "user", "content": parts}]}, "row 1", format)
    assert len(images.pictures_of(row, "row 1", format)) == 1
    assert images.bare(row, format)["messages"][0]["content"][1] == parts[1]


@pytest.mark.parametrize(
    "value",
    [
        {HASH: 1},
        {HASH: "a"},
        {HASH: "a", "size": [10**6, 10**6]},
        {HASH: "a", "size": [1, 0]},
        {HASH: "a", "size": [1, 1], "path": 5},
        {HASH: "a", "size": [1, 1], "bytes": "é"},
        {HASH: "a", "size": 5},
        [],
        None,
    ],
)
def test_a_stored_image_that_was_edited_is_an_error_of_the_package(value: Any) -> None:
    with pytest.raises(CorruptIndexError, match="an image of a row is not kept as it was"):
        Picture.from_json(value)


def test_a_row_whose_images_need_more_memory_than_there_is(tmp_path: Path) -> None:
    Image.new("RGB", (8000, 8000)).save(tmp_path / "a.png")
    code = f"""
import resource
from forvalue_index import FormatConfig
from forvalue_index.data.images import settle
from forvalue_index.errors import RowError
import PIL.Image
size = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + (100 << 20), -1))
try:
    settle({{"image": {str(tmp_path / "a.png")!r}}}, "row 1", FormatConfig(image_field="image"))
except RowError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "a.png cannot be decoded" in done.stdout, done.stderr

"""Writes docs/errors.md: every error of the package, most with an input that makes it.

python tools/make_errors.py

The errors are found in the source, and each case of `error_cases` is run in a folder of its own
with a small index and the model of the demo. `--missing` lists the errors that no case makes.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from error_cases import (
    asked,
    circumstances,
    damage,
    data,
    faulty,
    models,
    places,
    rows,
    settings,
    stores,
    trainers,
    vision,
)
from error_cases.case import Case
from huggingface_hub import constants

import forvalue_index
from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig, errors
from forvalue_index.config import TrainConfig
from forvalue_index.errors import ForvalueError

PACKAGE = Path(forvalue_index.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
KINDS = {name: kind for name, kind in vars(errors).items()
         if isinstance(kind, type) and issubclass(kind, ForvalueError)}  # fmt: skip
MODULES = rows, data, settings, asked, models, vision, trainers, damage, stores, faulty, places
CASES = [case for module in MODULES for case in module.CASES]
WIDEST = 300  # characters of a message or a file that are shown

TOP = """\
# Errors

What the package says when something cannot be done, by kind (`forvalue_index.errors`, all derived
from `ForvalueError`). A command prints an error as one line and ends with exit code 1; `--debug`
before the command shows where it comes from. A row that cannot be used stops `build` and `add`
before anything is written; `--on-error skip` passes over such rows and keeps them, with the
reasons, in `rejects.jsonl`.

Each error comes with a command, or a line of Python, that makes it. `my.index` is an index of
twelve rows, `my.shards` one of the same rows in two shards, and `row` one of the rows; `model` and
`tokenizer` are those of the folder `model` unless it says otherwise. `…` stands for what differs
from machine to machine. Where no input is shown, it takes another process, another machine or more
memory than a page is worth. This page is made by `python tools/make_errors.py`.
"""


@dataclass(frozen=True)
class Site:
    """Where an error is made."""

    file: str
    first: int  # lines of the call
    last: int
    kind: str
    template: str  # the message, with … for values


@dataclass(frozen=True)
class Made:
    """What a case led to."""

    case: Case
    kind: str
    message: str


def sites() -> list[Site]:
    """Returns all places of the source where an error is made."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                kind = node.func.id
                if kind in KINDS and node.args:
                    text = _template(node.args[-1])
                    name = str(path.relative_to(PACKAGE))
                    found.append(Site(name, node.lineno, node.end_lineno or 0, kind, text))
    return found


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
    return "…"


def run(case: Case, folder: Path) -> tuple[ForvalueError, list[tuple[str, int]]]:
    """Returns the error of a case, and the calls in which it was made, the innermost first."""
    calls: dict[str, tuple[ForvalueError, list[tuple[str, int]]]] = {}  # the first that says so
    shown = io.StringIO()
    plain = ForvalueError.__init__

    def noting(self: ForvalueError, *values: Any) -> None:
        plain(self, *values)
        own: list[tuple[str, int]] = []
        frame = sys._getframe(1)
        while frame.f_back is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE) and path.name != "errors.py":
                own.append((str(path.relative_to(PACKAGE)), frame.f_lineno))
            frame = frame.f_back
        calls.setdefault(str(self), (self, own))

    _prepare(case, folder)
    ForvalueError.__init__ = noting  # type: ignore[method-assign, assignment]
    try:
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stderr(shown),
            contextlib.redirect_stdout(shown),
            circumstances.of(case, folder),
        ):
            _do(case, folder)
    except SystemExit:  # of a command that has said what is wrong
        pass
    except ForvalueError as error:
        return error, calls[str(error)][1]
    finally:
        ForvalueError.__init__ = plain  # type: ignore[method-assign]
    text = " ".join(shown.getvalue().split())
    for message, (said, own) in calls.items():
        if message in text:
            return said, own
    raise AssertionError(f"{case.run} makes no error")


def _prepare(case: Case, folder: Path) -> None:
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if case.before is not None:
        case.before(folder)


def _do(case: Case, folder: Path) -> None:
    from forvalue_index.cli import main

    if not case.python:
        main(["--debug", *shlex.split(case.run)], standalone_mode=False)
        return
    known = {name: getattr(forvalue_index, name) for name in forvalue_index.__all__}
    known |= {"row": ROW, "TrainConfig": TrainConfig}
    with InfluenceIndex.open("my.index") as index:
        more = case.known() if case.known is not None else {}
        if case.meanwhile is not None:
            case.meanwhile(folder)
        eval(case.run, known | {"index": index} | more)


ROW = {"prompt": "Who wrote it?", "response": " Ada.", "id": "1", "n": 1}
TEMPLATES = {
    "chat.jinja": "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}",
    "half.jinja": "{% if %}",
    "missing.jinja": "{{ nothing }}",
    "moving.jinja": "{% for m in messages %}{{ messages[-1].content }}{{ m.content }}{% endfor %}",
    "failing.jinja": "{{ prompt / 3 }}",
    "refusing.jinja": "{{ raise_exception('roles must alternate') }}",
    "silent.jinja": "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}"
    "{% endfor %}",
    "deaf.jinja": "{% for m in messages %}{% if m.role != 'user' %}{{ m.content }}{% endif %}"
    "{% endfor %}",
}


def made(root: Path) -> list[tuple[Made, list[tuple[str, int]]]]:
    """Returns what all cases lead to, each in a copy of one folder under `root`."""
    pristine = root / "pristine"
    pristine.mkdir()
    (pristine / "model").symlink_to(PACKAGE / "assets" / "demo" / "model")
    for name, text in TEMPLATES.items():
        (pristine / name).write_text(text)
    words = ["red", "green", "blue", "white", "black", "pink"]
    own = [ROW | {"prompt": f"Who {words[i % 6]}?", "response": f" {words[i % 5]} {i}", "n": i,
                  "id": str(i)} for i in range(2, 13)]  # fmt: skip
    format, vector = FormatConfig(key_field="id"), VectorConfig(dim=64, sketch_dim=256)
    with contextlib.chdir(pristine):
        built = InfluenceIndex.build("my.index", [ROW, *own], "model", format=format, vector=vector)
        built[0].close()
        built = InfluenceIndex.build("my.shards", [ROW, *own], "model", format=format,
                                     vector=vector, shards=2)  # fmt: skip
        built[0].close()
    found = []
    for number, case in enumerate(CASES):
        folder = root / f"case{number}"
        unused = shutil.ignore_patterns(*() if "my.shards" in case.run else ("my.shards",))
        shutil.copytree(pristine, folder, symlinks=True, ignore=unused)
        error, calls = run(case, folder)
        message = _masked(str(error), folder, case.hide)
        found.append((Made(case, type(error).__name__, message), calls))
    return found


def _masked(text: str, folder: Path, hide: str) -> str:
    text = text.replace(f"{folder}/", "").replace(str(folder), ".")
    text = re.sub(r"\b[0-9a-f]{12,}\b", "…", text)
    text = re.sub(hide, "…", text) if hide else text
    return text if len(text) <= WIDEST else text[:WIDEST] + "…"


def page(root: Path) -> str:
    """Returns the page."""
    places = sites()
    by_site: dict[Site, list[Made]] = defaultdict(list)
    for own, calls in made(root):
        by_site[_site(places, calls)].append(own)
    parts = [TOP]
    for kind, cls in KINDS.items():
        shown = [site for site in places if site.kind == kind]
        if not shown:
            continue
        parts.append(f"## {kind}\n\n{(cls.__doc__ or '').splitlines()[0]}\n")
        for site in sorted(shown, key=lambda site: (site.file, site.first)):
            for own in by_site.get(site, [])[:1]:
                parts.append(_with_input(own))
        bare = dict.fromkeys(_known(site.template) for site in shown if site not in by_site)
        bare.pop("…", None)
        if bare:
            parts.append("Without an input:\n")
            parts.append("\n".join(f"- {_code(text)}" for text in bare) + "\n")
    return "\n".join(parts)


def _site(places: list[Site], calls: list[tuple[str, int]]) -> Site:
    for file, line in calls:
        for site in places:
            if site.file == file and site.first <= line <= site.last:
                return site
    raise AssertionError(f"no error is made at {calls[:3]}")


def _known(template: str) -> str:
    return re.sub(r"(… ?)+(?=…)", "", " ".join(template.split()))


def _with_input(own: Made) -> str:
    case = own.case
    lines = [case.run if case.python else f"forvalue {case.run}"]
    for name, content in case.files.items():
        text = ascii(content)[2:-1] if isinstance(content, bytes) else content.strip("\n")
        shown = [line if len(line) <= 120 else f"{line[:110]}…" for line in text.splitlines()]
        lines.append(f"# {name}: " + (" / ".join(shown) or "empty"))
    if case.lacking:
        lines.append(f"# without the package {case.lacking}")
    lines += [f"# with {name}={value}" for name, value in case.environment.items()]
    lines += [f"# typed: {line}" for line in case.typed.splitlines()]
    if case.told:
        lines.append(f"# {case.told}")
    lines.append(own.message)
    body = "\n".join(f"    {line}" for line in lines)
    return body + "\n"


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


@click.command()
@click.option("--missing", is_flag=True, help="List the errors that no case makes.")
def main(missing: bool) -> None:
    """Write docs/errors.md."""
    os.environ |= {"COLUMNS": "100", "CUDA_VISIBLE_DEVICES": ""}
    constants.HF_HUB_OFFLINE = True
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        if missing:
            places = sites()
            hit = {_site(places, calls) for _, calls in made(root)}
            for site in places:
                if site not in hit:
                    click.echo(f"{site.file}:{site.first} {site.kind}: {site.template[:90]}")
            click.echo(f"{len(hit)} of {len(places)} have an input")
            return
        PAGE.write_text(page(root))
    click.echo(PAGE)


if __name__ == "__main__":
    main()

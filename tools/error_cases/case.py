"""A way to an error: files, and a command or a line of Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """What a person does to see an error."""

    run: str  # after `forvalue`, or Python if `python`
    files: dict[str, str | bytes] = field(default_factory=dict)  # in the working directory
    python: bool = False
    before: Callable[[Path], None] | None = None  # what has happened to the folder
    told: str = ""  # of `before`, in words
    environment: dict[str, str] = field(default_factory=dict)
    typed: str = ""  # what standard input gives
    full: bool = False  # whether the disk has no room for a file of more than a few bytes
    meanwhile: Callable[[Path], None] | None = None  # what happens once `index` is open
    hide: str = ""  # a pattern of what another version or machine says otherwise
    lacking: str = ""  # a package that is not installed
    known: Callable[[], dict[str, Any]] | None = None  # more names that Python knows


def row(*rows: Any, options: str = "", **more: Any) -> Case:
    """Returns the case of rows that are built."""
    text = "".join(json.dumps(item) + "\n" for item in rows)
    return Case(f"build rows.jsonl --index new --model model {options}".strip(),
                {"rows.jsonl": text}, **more)  # fmt: skip


def chat(
    *messages: Any, options: str = "--chat-template chat.jinja", hide: str = "", **fields: Any
) -> Case:
    """Returns the case of a conversation that is built; an answer follows if there is none."""
    said = list(messages)
    if not any(isinstance(m, dict) and m.get("role") == "assistant" for m in said):
        said.append({"role": "assistant", "content": "Yo"})
    return row({"messages": said} | fields, options=options, hide=hide)


def python(code: str, **more: Any) -> Case:
    """Returns the case of a line of Python with an open `index`."""
    return Case(code, python=True, **more)

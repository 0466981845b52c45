"""Templates, which may come from somebody else, made into text in a process of their own.

Jinja's sandbox keeps a template from Python's inside, but not from taking all time and memory. So
it runs where the system bounds both, and where it can end nothing but a process that is started
again. One such process serves all templates of this one, in turn.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from forvalue_index.errors import WorkerError

MEMORY = 1 << 30  # bytes that rendering one text may take
SECONDS = 10  # of processor time
WAITED = 600  # seconds, for a process that something else keeps from answering
CHARACTERS = 1 << 28  # of a text, as JSON

_CHILD = Path(__file__).with_name("child.py")


class RenderError(Exception):
    """A template fails on its values; `undefined`: for it asks for one that is not there."""

    def __init__(self, reason: str, *, undefined: bool = False) -> None:
        super().__init__(reason)
        self.undefined = undefined


class TemplateReadError(Exception):
    """A template is none."""


def render(template: str, values: dict[str, Any]) -> str:
    """Returns what a template makes of JSON values, which are its names.

    One that is not there is false in a condition; to write it is an error.

    Raises:
        TemplateReadError: it is no template.
        RenderError: it fails on the values, or takes too much time or memory.
    """
    text: str = _renderer.render("prompt", template, values)["text"]
    return text


def render_chat(template: str, **values: Any) -> tuple[str, list[tuple[int, int]]]:
    """Returns what a chat template makes of JSON values, and the parts that it marks.

    `values` are those of transformers' `render_jinja_template`, which does it.

    Raises:
        TemplateReadError: it is no template.
        RenderError: it refuses the values, or takes too much time or memory.
    """
    found = _renderer.render("chat", template, values)
    return found["text"], [(start, end) for start, end in found["marks"]]


def begin() -> None:
    """Starts the process for chat templates, which imports what it needs while others work.

    What goes wrong is told when the first text is asked for.
    """
    _renderer.begin()


def read_chat(template: str) -> None:
    """Checks that a text is a chat template.

    Raises:
        TemplateReadError: it is none.
    """
    _renderer.read("chat", template)


class _Renderer:
    """The process and what it has read; one request at a time, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._read: dict[tuple[str, str], tuple[int, set[str]]] = {}  # -> number, names

    def render(self, kind: str, template: str, values: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer to a request."""
        with self._lock:
            number, names = self._number(kind, template)
            if kind == "prompt":  # a row may hold much that the template does not ask for
                values = {name: value for name, value in values.items() if name in names}
            try:
                request = {"kind": kind, "number": number, "values": values}
                line = json.dumps(request).encode()
            except (TypeError, ValueError, RecursionError) as error:
                raise RenderError(f"its values cannot be written as JSON: {error}") from None
            found = self._asked(line)
            if "error" in found:
                raise RenderError(found["error"], undefined=found.get("undefined", False))
            return found

    def begin(self) -> None:
        """Starts the process, if there is none; it loads what chat templates need."""
        with self._lock, suppress(WorkerError):
            if self._process is None:
                self._start("chat")

    def read(self, kind: str, template: str) -> None:
        """Reads a template, if it is not known yet."""
        with self._lock:
            self._number(kind, template)

    def _number(self, kind: str, template: str) -> tuple[int, set[str]]:
        """Returns the number of a template in the process, and the names that it asks for."""
        if self._process is None or self._process.poll() is not None:  # something else ended it
            self._start()
        known = self._read.get((kind, template))
        if known is None:
            found = self._asked(json.dumps({"kind": kind, "template": template}).encode())
            if "error" in found:
                line = f" (line {found['line']})" if "line" in found else ""
                raise TemplateReadError(f"{found['error']}{line}")
            known = self._read[kind, template] = len(self._read), set(found["names"])
        return known

    def _asked(self, line: bytes) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
            waiting = select.poll()
            waiting.register(self._process.stdout, select.POLLIN)
            answered = waiting.poll(1000 * WAITED)
            answer = self._process.stdout.readline() if answered else b""
        except BrokenPipeError:
            answer = b""
        except BaseException:  # an answer that nobody waited for would be taken for the next
            self._end()
            raise
        if not answer.endswith(b"\n"):
            return {"error": self._end()}
        found: dict[str, Any] = json.loads(answer)
        return found

    def _start(self, ahead: str = "") -> None:
        """Starts the process; `ahead`: of the kind that it gets ready for by itself."""
        self._end()
        self._read = {}
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for this process
            )
        except OSError as error:  # no files, processes or memory left: no fault of the template
            raise WorkerError(
                f"the process that renders templates cannot be started ({error}): raise the limit "
                "or free what it counts, and run the same command again"
            ) from error
        assert process.stdin is not None
        paths = [path for path in sys.path if isinstance(path, str)]  # Python skips all others
        settings = {"bytes": MEMORY, "seconds": SECONDS, "characters": CHARACTERS, "path": paths}
        process.stdin.write(json.dumps(settings | {"ahead": ahead}).encode() + b"\n")
        self._process = process
        if ahead:
            process.stdin.flush()

    def _end(self) -> str:
        """Ends the process, and returns why it had no answer."""
        process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # what it did not read is lost
                if pipe is not None:
                    pipe.close()
        process.wait()
        if process.returncode == -signal.SIGXCPU:
            return f"it takes more than {SECONDS} seconds"
        return f"the process that renders it ended with {process.returncode}"

    def close(self) -> None:
        """Ends the process."""
        self._end()

    def forget(self) -> None:
        """Leaves the process to the one that this was forked from, in the middle of anything."""
        process, self._process = self._process, None
        self._lock = threading.Lock()  # a thread that is not in the fork may have held it
        if process is not None:
            pipes: tuple[Any, ...] = process.stdin, process.stdout
            for pipe in pipes:
                pipe.raw.close()  # what is in its buffer is for the other to write


_renderer = _Renderer()
atexit.register(_renderer.close)
os.register_at_fork(after_in_child=_renderer.forget)

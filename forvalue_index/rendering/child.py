"""The process that renders templates; see `rendering/__init__.py`. It is run as a script.

It imports nothing of this package. Each line that it reads is a request, each that it writes an
answer, both JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

LONGEST_REASON = 500  # characters
TODAY = datetime(2024, 7, 26)
"""The day that a chat template is told when it asks: vectors of two days must meet."""


class _Today:
    """Stands for `datetime` where transformers asks for the day."""

    now = staticmethod(lambda: TODAY)


def main() -> None:
    """Answers requests until there are no more."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    settings = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = settings["path"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes no file
    compiled: list[Any] = []
    if settings["ahead"]:
        with suppress(Exception):  # the first request runs into it again, and has an answer
            _load(settings["ahead"], settings["bytes"])
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
            _load(request["kind"], settings["bytes"])
            _limit_time(settings["seconds"])
            found = json.dumps(_answer(request, compiled))
        except MemoryError:
            found = json.dumps({"error": f"it takes more than {settings['bytes'] >> 20} MiB"})
        except RecursionError:
            found = json.dumps({"error": "it calls itself without end"})
        except Exception as error:  # what a template makes Python do may raise anything
            found = json.dumps(_described(error))
        if len(found) > settings["characters"]:
            found = json.dumps({"error": f"it writes more than {settings['characters']:,} signs"})
        out.write(found.encode() + b"\n")
        out.flush()


def _load(kind: str, n_bytes: int) -> None:
    """Imports what renders templates of a kind, and bounds the memory beside it."""
    if kind in _loaded:
        return
    for kind_of in (resource.RLIMIT_CPU, resource.RLIMIT_AS):
        _limit(kind_of, None)
    if kind == "chat":
        _fix_day()
    else:
        import jinja2.sandbox  # noqa: F401
    _loaded.add(kind)
    with suppress(OSError, ValueError):  # where there is no /proc, or no such limit
        with open("/proc/self/statm") as file:  # noqa: PTH123
            now = int(file.read().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, now + n_bytes)


def _fix_day() -> None:
    """Has transformers tell chat templates `TODAY`.

    Raises:
        RuntimeError: it asks for the day in a way that is not known.
    """
    from transformers.utils import chat_template_utils

    module: Any = chat_template_utils
    module.datetime = _Today
    asking = "{{ strftime_now('%Y-%m-%d') }}"
    (told,), _ = module.render_jinja_template(conversations=[[]], chat_template=asking)
    if told != f"{TODAY:%Y-%m-%d}":
        raise RuntimeError("this version of transformers tells the day in an unknown way")


_loaded: set[str] = set()


def _limit_time(seconds: int) -> None:
    """Bounds the processor time of the next answer; the system ends a process that takes more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)


def _limit(kind: int, value: int | None) -> None:
    """Sets a limit; None: to what the user allows."""
    most = resource.getrlimit(kind)[1]
    if value is None or (most != resource.RLIM_INFINITY and value > most):
        value = most
    resource.setrlimit(kind, (value, most))


def _answer(request: dict[str, Any], compiled: list[Any]) -> dict[str, Any]:
    if "template" in request:  # to be read only
        if request["kind"] == "chat":
            from transformers.utils.chat_template_utils import render_jinja_template

            render_jinja_template(conversations=[], chat_template=request["template"])
            compiled.append(request["template"])
            return {"names": []}
        from jinja2 import meta

        environment = _environment()
        names = meta.find_undeclared_variables(environment.parse(request["template"]))
        compiled.append(environment.from_string(request["template"]))
        return {"names": sorted(names)}
    template, values = compiled[request["number"]], request["values"]
    if request["kind"] == "prompt":
        return {"text": template.render(values)}
    from transformers.utils.chat_template_utils import render_jinja_template

    written: Any = render_jinja_template(chat_template=template, **values)
    (text,), marks = written
    return {"text": text, "marks": marks[0] if marks else []}


def _environment() -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Missing(jinja2.Undefined):
        """A field that is not there: false, but not to be written."""

        __slots__ = ()

        def __str__(self) -> str:
            self._fail_with_undefined_error()

    return ImmutableSandboxedEnvironment(undefined=Missing, trim_blocks=True, lstrip_blocks=True)


def _described(error: Exception) -> dict[str, Any]:
    import jinja2

    lines = str(error)[:LONGEST_REASON].strip().splitlines() or [type(error).__name__]
    if isinstance(error, jinja2.TemplateSyntaxError):
        return {"error": lines[0], "line": error.lineno}
    return {"error": lines[0], "undefined": isinstance(error, jinja2.UndefinedError)}


if __name__ == "__main__":
    main()

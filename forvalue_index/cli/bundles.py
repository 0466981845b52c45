"""How a decorator adds several options to a command: each for itself, or as one argument."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[Any], Any]
"""What click.option returns, or a decorator that adds several."""


def with_options(command: F, options: Sequence[Option]) -> F:
    """Returns a command with more options; its help lists them in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def bundled(command: F, options: Sequence[Option], name: str, make: Callable[..., Any]) -> F:
    """Returns a command with more options, whose values it gets as one argument.

    Args:
        command: takes the argument.
        options: as help lists them.
        name: of the argument.
        make: gets the values by their names, and returns the argument. It is called before the
            command, so that what it refuses (click.UsageError) costs no time.
    """

    def with_bundle(*args: Any, **values: Any) -> Any:
        values[name] = make(**{each: values.pop(each) for each in names})
        return command(*args, **values)

    decorated: Any = functools.wraps(command)(with_bundle)
    before = len(getattr(command, "__click_params__", ()))
    decorated = with_options(decorated, options)
    names = [param.name for param in decorated.__click_params__[before:]]
    return cast(F, decorated)

"""How a decorator adds several options to a command: one by one, or as a single argument."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[Any], Any]
"""What click.option returns, or a decorator that adds several options."""


def with_options(command: F, options: Sequence[Option]) -> F:
    """Returns a command with more options; its help lists them in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def grouped(command: F, options: Sequence[Option], name: str, make: Callable[..., Any]) -> F:
    """Returns a command with more options, whose values are passed as one argument.

    Args:
        command: takes the argument.
        options: in the order in which the help lists them.
        name: of the argument.
        make: takes the values by their names, and returns the argument. It is called before the
            command, so a click.UsageError from it comes before any work.
    """

    def with_group(*args: Any, **values: Any) -> Any:
        values[name] = make(**{each: values.pop(each) for each in names})
        return command(*args, **values)

    decorated: Any = functools.wraps(command)(with_group)
    before = len(getattr(command, "__click_params__", ()))
    decorated = with_options(decorated, options)
    names = [param.name for param in decorated.__click_params__[before:]]
    return cast(F, decorated)

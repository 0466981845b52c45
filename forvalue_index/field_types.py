"""Whether settings have the types that the fields of their classes are annotated with."""

from __future__ import annotations

import os
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from forvalue_index.errors import InputError

KINDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}


def require_class(value: Any, kind: type) -> None:
    """Checks that settings, if there are any, are of a class.

    Raises:
        InputError: they are something else, such as a dict.
    """
    if value is not None and not isinstance(value, kind):
        raise InputError(
            f"settings are a {type(value).__name__}, but must be a {kind.__name__}: write "
            f"{kind.__name__}(name=value, ...)"
        )


def require_types(config: Any) -> None:
    """Checks that the settings have the types of their fields; a list becomes a tuple, a path text.

    Raises:
        InputError: one has another.
    """
    of: Any = type(config)
    for name, kind in types_of(of).items():
        given = getattr(config, name)
        value = _plain(given)
        if value is not given:
            object.__setattr__(config, name, value)
        if not is_of(value, kind):
            kinds = get_args(kind) if get_origin(kind) is not tuple else get_args(kind)[:1]
            words = [KINDS[part] for part in kinds or (kind,) if part in KINDS]
            which = " or ".join(words) + (", several" if get_origin(kind) is tuple else "")
            raise InputError(f"{name} is {value!r}, but must be {which}")


def _plain(value: Any) -> Any:
    """Returns a list as a tuple, and a path as its text."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@cache
def types_of(config: type) -> dict[str, Any]:
    """Returns the type of each field of a class."""
    return get_type_hints(config)


def is_of(value: Any, type_: Any) -> bool:
    """Returns whether a value is of the type of a field: one type, several, or a tuple of one."""
    if get_origin(type_) is tuple:
        of = get_args(type_)[0]
        return isinstance(value, tuple) and all(is_of(item, of) for item in value)
    wanted = get_args(type_) or (type_,)
    if isinstance(value, bool):
        return bool in wanted
    return isinstance(value, wanted) or (isinstance(value, int) and float in wanted)

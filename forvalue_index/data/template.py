"""The user's own template: a prompt made of a row's fields, in Jinja."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from forvalue_index.errors import InputError, RowError
from forvalue_index.records import Row

if TYPE_CHECKING:
    from jinja2 import Template


def prompt_of(row: Row, source: str, template: str) -> str:
    """Returns the prompt that a template makes of a row.

    The row's fields are the template's names. One that is not there is false in a condition; to
    write it is an error. The line break at the end of the template is no part of the prompt.

    Raises:
        InputError: the template cannot be read.
        RowError: the template fails on this row.
    """
    import jinja2

    compiled = _compiled(template)
    try:
        return compiled.render(row)
    except jinja2.UndefinedError as error:
        there = ", ".join(row) or "none"
        raise RowError(source, f"the template: {error}; the row's fields are: {there}") from None
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise RowError(source, f"the template fails on this row ({error})") from None


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Missing(jinja2.Undefined):
        """A field that is not there: false, but not to be written."""

        __slots__ = ()

        def __str__(self) -> str:
            self._fail_with_undefined_error()

    environment = ImmutableSandboxedEnvironment(
        undefined=Missing, trim_blocks=True, lstrip_blocks=True
    )
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"the template cannot be read: {error} (line {error.lineno})") from None

"""The user's own template: a prompt made of a row's fields, in Jinja."""

from __future__ import annotations

from forvalue_index.errors import InputError, RowError
from forvalue_index.records import Row
from forvalue_index.rendering import RenderError, TemplateReadError, render


def prompt_of(row: Row, source: str, template: str) -> str:
    """Returns the prompt that a template makes of a row.

    The row's fields are the template's names. One that is not there is false in a condition; to
    write it is an error. The line break at the end of the template is no part of the prompt.

    Raises:
        InputError: the template cannot be read.
        RowError: the template fails on this row.
    """
    try:
        return render(template, row)
    except TemplateReadError as error:
        raise InputError(f"the template cannot be read: {error}; correct it") from None
    except RenderError as error:
        if error.undefined:
            there = ", ".join(row) or "none"
            reason = f"the template: {error}; the row's fields are: {there}"
        else:
            reason = f"the template fails on this row ({error})"
        raise RowError(source, reason) from None

"""Conditions on the fields of rows: `source=math`, `year>=1990`, `meta.lang in de,fr`.

Pure: text in, truth out. Knows of no database; `Catalog.where` brings the values. The rules:

- two numbers are compared as numbers, anything else as text, in the order of code points;
- a text that holds a number counts as one for `<`, `<=`, `>` and `>=`, which in CSV it has to, but
  not for `=`, so that the key 007 is not the key 7;
- true, false and null are these words, an object or a list is its JSON;
- `meta.lang` is the field of that very name, or else the field `lang` of the object `meta`;
- a row without the field is met by `!=` alone.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forvalue_index.errors import InputError
from forvalue_index.records import Row

FORM = (
    "write FIELD=VALUE, with one of = != < <= > >= in the middle, or 'FIELD in VALUE,VALUE,...', "
    "and quote it for the shell"
)

_FORM = re.compile(r"\s*(\S.*?)\s*(==|!=|<=|>=|=|<|>|(?<=\s)in(?=\s))\s*(.*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """What a row's field has to be. `values` has one member, but for the operator `in`."""

    field: str
    operator: str  # = != < <= > >= in
    values: tuple[str, ...]

    def __str__(self) -> str:
        """The condition as it can be written."""
        space = " " if self.operator == "in" else ""
        return f"{self.field}{space}{self.operator}{space}{','.join(self.values)}"

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the fields that lead to it, if no field has the whole name."""
        return tuple(self.field.split("."))

    def met_by(self, value: Any) -> bool:
        """Whether `value`, the field's JSON value, meets the condition."""
        if self.operator in _ORDERS:
            return _compare(_ORDERS[self.operator], value, self.values[0])
        equal = any(_compare(operator.eq, value, wanted) for wanted in self.values)
        return equal != (self.operator == "!=")

    def met_without(self) -> bool:
        """Whether a row that lacks the field meets the condition."""
        return self.operator == "!="


MISSING = object()
"""What `value_of` returns where there is no such field; JSON's null is a value."""


def parse_condition(text: str) -> Condition:
    """The condition that `text` stands for. The first operator in it counts; `==` is `=`.

    Raises:
        InputError: it has no operator, or no field before it.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise InputError(f"condition {text!r} cannot be read: {FORM}")
    field, sign, value = match.groups()
    values = tuple(part.strip() for part in value.split(",")) if sign == "in" else (value,)
    return Condition(field, "=" if sign == "==" else sign, values)


def value_of(row: Row, condition: Condition) -> Any:
    """The value of the condition's field in a row, or MISSING."""
    if condition.field in row:
        return row[condition.field]
    value: Any = row
    for name in condition.path:
        if not isinstance(value, dict) or name not in value:
            return MISSING
        value = value[name]
    return value


def _compare(relation: Callable[[Any, Any], bool], value: Any, wanted: str) -> bool:
    number = value
    if isinstance(value, str) and relation is not operator.eq:
        number = _number(value)
    if isinstance(number, int | float) and not isinstance(number, bool):
        other = _number(wanted)
        if other is not None:
            return relation(number, other)
    return relation(_text(value), wanted)


def _number(text: str) -> int | float | None:
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return int(text)  # of any size, where a float would round
    except ValueError:
        return float(text)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

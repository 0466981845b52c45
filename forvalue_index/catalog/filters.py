"""Conditions on the fields of rows: `source=math`, `year>=1990`, `meta.lang in de,fr`.

Pure: text in, truth out. Knows of no database; `Catalog.where` brings the values. The rules:

- for `=`, `!=` and `in`, two numbers are compared as numbers, anything else as text: true, false
  and null are these words, an object or a list is its JSON, and the key 007 is not the key 7;
- for `<`, `<=`, `>` and `>=` beside a number, numbers alone count, and texts that hold one, which
  in CSV they have to. NaN and other texts are on neither side of it;
- for `<`, `<=`, `>` and `>=` beside anything else, texts alone count, in the order of code points;
  true and false are these words. It is the order of dates such as 2020-06-01, but a year alone is
  a number: write `day>=2021-01`, not `day>=2021`;
- null, and an empty text, which is what CSV has for null, are on neither side of anything;
- `meta.lang` is the field of that very name, or else the field `lang` of the object `meta`;
- a row without the field meets `!=` alone. Unlike in SQL, null meets it too.
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
            return _in_order(_ORDERS[self.operator], value, self.values[0])
        equal = any(_equal(value, wanted) for wanted in self.values)
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


def _equal(value: Any, wanted: str) -> bool:
    other = _number(wanted)
    if _is_number(value) and other is not None:
        return bool(value == other)
    return _text(value) == wanted


def _in_order(relation: Callable[[Any, Any], bool], value: Any, wanted: str) -> bool:
    if value == "":
        return False  # a CSV file's null
    other = _number(wanted)
    if other is not None:
        number = _number(value) if isinstance(value, str) else value
        return _is_number(number) and relation(number, other)  # which no NaN meets
    return isinstance(value, str | bool) and relation(_text(value), wanted)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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

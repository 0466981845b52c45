"""Conditions on the fields of rows: `source=math`, `year>=1990`, `meta.lang in de,fr`.

Pure. Knows no database; `Catalog.where` brings the values. The rules:

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from forvalue_index.errors import InputError

FORM = (
    "write FIELD=VALUE, with one of = != < <= > >= in the middle, or 'FIELD in VALUE,VALUE,...', "
    "and quote it for the shell"
)

_SIGN = re.compile(r"==|!=|<=|>=|=|<|>|(?<=\s)in(?=\s)")
_NUMBERS = int, float  # without bool
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on a row's field. `values` has one member, except for the operator `in`."""

    field: str
    operator: str  # = != < <= > >= in
    values: tuple[str, ...]

    def __str__(self) -> str:
        """Returns the condition as a user can write it."""
        space = " " if self.operator == "in" else ""
        return f"{self.field}{space}{self.operator}{space}{','.join(self.values)}"

    def met_without(self) -> bool:
        """Returns whether a row that lacks the field meets the condition."""
        return self.operator == "!="


REMEMBERED = 10_000
"""Distinct values of a field whose answers are kept, but for those of the last segment."""


def parse_condition(text: str) -> Condition:
    """Returns the condition in a text. The first operator in it counts; `==` is `=`.

    Raises:
        InputError: it has no operator, or no field before it.
    """
    start = len(text) - len(text.lstrip())
    match = _SIGN.search(text, start + 1)  # after the first letter of the field
    if match is None:
        raise InputError(f"condition {text!r} cannot be read: {FORM}")
    field, sign, value = text[: match.start()].strip(), match[0], text[match.end() :].strip()
    values = tuple(part.strip() for part in value.split(",")) if sign == "in" else (value,)
    return Condition(field, "=" if sign == "==" else sign, values)


class Decisions:
    """Decides which values of a field meet a condition, once for each distinct value."""

    def __init__(self, condition: Condition) -> None:
        self.seen = False  # whether any row had the field
        self._met_by = predicate_of(condition)
        self._without = condition.met_without()
        self._known: dict[str | None, bool] = {}

    def of(self, texts: Sequence[str | None]) -> list[bool]:
        """Returns whether rows with these values of the field, as JSON, meet the condition.

        None stands for a row that lacks the field.
        """
        if len(self._known) > REMEMBERED:
            self._known.clear()
        unknown = [text for text in {*texts} if text is not None and text not in self._known]
        values = json.loads(f"[{','.join(unknown)}]")
        self._known.update(zip(unknown, map(self._met_by, values), strict=True))
        self._known[None] = self._without
        self.seen |= len(self._known) > 1
        return [self._known[text] for text in texts]


def predicate_of(condition: Condition) -> Callable[[Any], bool]:
    """Returns what says whether a field's JSON value meets the condition.

    Its cost does not depend on how many values the condition has.
    """
    if condition.operator in _ORDERS:
        return _in_order(_ORDERS[condition.operator], condition.values[0])
    texts = frozenset(condition.values)
    numbers = frozenset(map(_number, texts)) - {None}
    met = condition.operator != "!="

    def equal(value: Any) -> bool:
        if type(value) in _NUMBERS:
            # What is not finite is also a word.
            found = value in numbers or (value - value != 0 and _text(value) in texts)
        else:
            found = _text(value) in texts
        return found == met

    return equal


def _in_order(relation: Callable[[Any, Any], bool], wanted: str) -> Callable[[Any], bool]:
    other = _number(wanted)

    def beside_number(value: Any) -> bool:
        number = _number(value) if type(value) is str else value
        return type(number) in _NUMBERS and relation(number, other)  # which no NaN meets

    def beside_text(value: Any) -> bool:
        # An empty text is a CSV file's null.
        return isinstance(value, str | bool) and value != "" and relation(_text(value), wanted)

    return beside_text if other is None else beside_number


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

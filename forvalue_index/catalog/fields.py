"""Conditions on the fields of rows, as columns that a database can compute."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    Engine,
    Text,
    and_,
    case,
    cast,
    func,
    literal,
    not_,
    null,
)

from forvalue_index.catalog.schema import SampleTable
from forvalue_index.catalog.where import Condition
from forvalue_index.records import MISSING, value_of

_ESCAPED = re.compile('[\x00-\x1f"\\\\\ud800-\udfff]')  # what JSON has no plain form for


def fields_of(engine: Engine, conditions: Sequence[Condition]) -> list[Any]:
    """Returns columns: the whole row if only Python can read it, else NULL; for each condition
    the JSON text of its field, as it stands in the row, NULL where there is none.

    Python writes NaN and infinity, which are not JSON, and writes letters beyond ASCII in two
    ways, of which an old SQLite finds one in a name. In its paths no name can have what JSON
    escapes.
    """
    row = SampleTable.row
    names = "".join(condition.field for condition in conditions)
    old = engine.name == "sqlite" and sqlite3.sqlite_version_info < (3, 38)  # has no ->
    if old or _ESCAPED.search(names):
        return [row, *(null() for _ in conditions)]
    if engine.name == "sqlite":
        valid: Any = func.json_valid(row) == 1
        if not names.isascii():
            valid = and_(valid, func.instr(row, "\\u") == 0)
        document: Any = row

        def step(name: str) -> str:
            return f'$."{name}"'
    else:
        # Nor does it take half of a surrogate pair, which Python escapes.
        bad = "NaN", "Infinity", "\\u"
        valid = and_(*(func.strpos(row, text) == 0 for text in bad))
        document = cast(row, JSON)

        def step(name: str) -> str:
            return name

    def follow(names: Sequence[str]) -> Any:
        value = document
        for name in names:
            value = value.op("->", return_type=JSON())(literal(step(name), Text))
        return cast(value, Text)

    texts = []
    for condition in conditions:
        either = [follow([condition.field])]
        if len(condition.path) > 1:
            either.append(follow(condition.path))
        found = func.coalesce(*either) if len(either) > 1 else either[0]
        texts.append(case((valid, found)))
    return [case((not_(valid), row)), *texts]


def values_of(row: dict[str, Any], conditions: Sequence[Condition]) -> list[str | None]:
    """Returns the columns of the conditions, computed from the whole row."""
    values = [value_of(row, condition.field) for condition in conditions]
    return [None if value is MISSING else json.dumps(value) for value in values]

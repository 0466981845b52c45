"""The fields of rows, as columns that a database can compute."""

from __future__ import annotations

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

_ESCAPED = re.compile('[\x00-\x1f"\\\\\ud800-\udfff]')  # what JSON has no plain form for


def field_of(engine: Engine, field: str) -> tuple[Any, Any]:
    """Returns two columns: the whole row if only Python can read it, else NULL; and the JSON text
    of a field, as it stands in the row, NULL where there is none.

    Python writes NaN and infinity, which are not JSON, and writes letters beyond ASCII in two
    ways, of which an old SQLite finds one in a name. In its paths no name can have what JSON
    escapes.
    """
    row = SampleTable.row
    old = engine.name == "sqlite" and sqlite3.sqlite_version_info < (3, 38)  # has no ->
    if old or _ESCAPED.search(field):
        return row, null()
    if engine.name == "sqlite":
        valid: Any = func.json_valid(row) == 1
        if not field.isascii():
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

    found = follow([field])
    if "." in field:
        found = func.coalesce(found, follow(field.split(".")))
    return case((not_(valid), row)), case((valid, found))

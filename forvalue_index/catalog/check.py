"""What is wrong with a catalogue: reads every row, also after one that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, select

from forvalue_index.catalog.engine import place_of, reading
from forvalue_index.catalog.integrity import database_problems
from forvalue_index.catalog.rows import COLUMNS, from_row
from forvalue_index.catalog.schema import SampleTable
from forvalue_index.catalog.sealed import (
    SealedSegment,
    sealed_info,
    sealed_segments,
    segment_problems,
)
from forvalue_index.catalog.sealed_rows import (
    FIGURES,
    TEXTS,
    figures_of,
    figures_problem,
    rows_changed,
    text_seals,
)
from forvalue_index.errors import CorruptIndexError

PAGE = 500  # rows in memory at a time: few, as they may be long


def check(engine: Engine) -> list[str]:
    """Returns what is wrong with a catalogue, a line each; nothing if it is whole.

    Every row is checked against its checksum, the rows of each segment against its digests.
    """
    place, problems = place_of(engine), list[str]()
    try:
        with reading(engine) as connection:
            problems += [f"{place}: {line}" for line in database_problems(connection)]
    except CorruptIndexError as error:
        problems.append(str(error))
    try:
        with reading(engine) as connection:
            segments = sealed_segments(connection)
            info = sealed_info(connection, place)
        problems += segment_problems(info, segments, place)
    except CorruptIndexError as error:
        problems.append(str(error))
    try:
        with reading(engine) as connection:
            segments = sealed_segments(connection)
            ids = connection.execute(select(SampleTable.id, SampleTable.segment_id)).all()
    except CorruptIndexError as error:
        return [*problems, str(error)]
    named = set()  # segments of which a row was named
    order = sorted(ids)
    for start in range(0, len(order), PAGE):
        for segment_id, problem in _row_problems(engine, order[start : start + PAGE]):
            named.add(segment_id)
            problems.append(problem)
    for segment in segments:
        if segment.id not in named:
            problems += _digest_problems(engine, segment)
    return problems


def _row_problems(engine: Engine, rows: Sequence[Any]) -> list[tuple[int, str]]:
    """Returns segment and problem for those of (id, segment) rows that are not intact."""
    wanted = dict(map(tuple, rows))
    inside = SampleTable.id.between(rows[0][0], rows[-1][0])
    try:
        with reading(engine) as connection:
            found = connection.execute(select(*COLUMNS).where(inside)).all()
    except CorruptIndexError as error:  # of one of them
        if len(rows) == 1:
            return [(rows[0][1], f"sample {rows[0][0]}: {error}")]
        half = len(rows) // 2
        return [*_row_problems(engine, rows[:half]), *_row_problems(engine, rows[half:])]
    problems = []
    for row in found:
        try:
            from_row(row._mapping)
        except CorruptIndexError as error:
            problems.append((wanted.get(row.id, -1), str(error)))
    return problems


def _digest_problems(engine: Engine, segment: SealedSegment) -> list[str]:
    try:
        with reading(engine) as connection:
            figures = figures_of(connection, [segment], place_of(engine))
            texts = text_seals(connection, [segment])[segment.id]
    except CorruptIndexError as error:
        return [str(error)]
    problems = [rows_changed(segment, FIGURES)] if figures_problem(figures, segment) else []
    return problems + ([rows_changed(segment, TEXTS)] if texts != segment.texts else [])

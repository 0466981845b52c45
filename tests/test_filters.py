"""Conditions on rows: how they are read, and what the database finds against a plain predicate."""

from __future__ import annotations

import json
import operator
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import postgres
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.where import Condition, Decisions, parse_condition
from forvalue_index.errors import InputError
from forvalue_index.records import Row, Segment, StoredSample, value_of
from forvalue_index.search.checked import CheckedFiles
from forvalue_index.store.fields import KeptFields


def sample(id: int, row: Row) -> StoredSample:
    return StoredSample(id, f"k{id}", "h", row, 3, 2, False, 1.0, 1.0)


def fill(catalog: Catalog, rows: list[Row]) -> int:
    """The id of the first of `rows`, which are all that is live afterwards."""
    first = catalog.next_id()
    catalog.remove(f"k{id}" for id in range(first))
    if rows:
        samples = [sample(id, row) for id, row in enumerate(rows, start=first)]
        catalog.commit_segment(Segment(f"{first}.faiss", len(rows), 1, "x"), samples)
    return first


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def catalog(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Catalog]:
    """One for all tests of a kind of database; each fills it anew."""
    with ExitStack() as stack:
        url = f"sqlite:///{tmp_path_factory.mktemp('filters') / 'catalog.db'}"
        if request.param == "postgresql":
            server = request.getfixturevalue("postgres_server")
            url = stack.enter_context(postgres.database(server))
        yield stack.enter_context(Catalog.create(url, {}, {}))


def fields_of(catalog: Catalog) -> tuple[KeptFields, Segment]:
    """The fields of the rows that `fill` put in last, of which nothing is kept; their segment."""
    nowhere = Path("nowhere")
    return KeptFields(CheckedFiles(nowhere, nowhere), catalog), catalog.segments()[-1]


def refused() -> Any:
    raise OSError("nothing is kept")


def where(catalog: Catalog, *conditions: str) -> list[int]:
    """The live rows that `fill` put in last and that meet all conditions, by their number."""
    fields, segment = fields_of(catalog)
    return numbers(catalog, fields.where([segment], conditions, refused))


def numbers(catalog: Catalog, ids: NDArray[np.int64]) -> list[int]:
    """The numbers of live rows among those that `fill` put in last."""
    live = {sample.id for sample in catalog.iterate()}
    first = catalog.next_id() - catalog.segments()[-1].ntotal
    return [id - first for id in ids.tolist() if id in live]


@pytest.mark.parametrize(
    ("text", "field", "sign", "values"),
    [
        ("a=b", "a", "=", ["b"]),
        ("a==b", "a", "=", ["b"]),
        ("  a b  !=  c d ", "a b", "!=", ["c d"]),
        ("a<=1", "a", "<=", ["1"]),
        ("a >= -1.5", "a", ">=", ["-1.5"]),
        ("a<b=c", "a", "<", ["b=c"]),
        ("a=b in c", "a", "=", ["b in c"]),
        ("a in b=c, d ,e", "a", "in", ["b=c", "d", "e"]),
        ("in=in", "in", "=", ["in"]),
        ("bin=1", "bin", "=", ["1"]),
        ("born in=x", "born in", "=", ["x"]),
        ("a=", "a", "=", [""]),
        ("a=two\nlines", "a", "=", ["two\nlines"]),
    ],
)
def test_a_condition_is_read(text: str, field: str, sign: str, values: list[str]) -> None:
    condition = parse_condition(text)
    assert condition == Condition(field, sign, tuple(values))
    assert parse_condition(str(condition)) == condition


@pytest.mark.parametrize("text", ["", "abc", "=b", " <3", "in a,b", "a in", "a~b"])
def test_what_is_no_condition_says_the_form(text: str) -> None:
    with pytest.raises(InputError, match=rf"{re.escape(repr(text))} cannot be read: write FIELD="):
        parse_condition(text)


def test_the_cost_of_reading_a_condition_is_linear_in_its_length() -> None:
    start = time.process_time()
    with pytest.raises(InputError, match="cannot be read"):
        parse_condition("a" + " " * 300_000 + "b")
    assert parse_condition("a = b" + " c" * 300_000).field == "a"
    assert time.process_time() - start < 5  # backtracking takes minutes


# What each condition finds in these rows, worked out by hand.
ROWS: list[Row] = [
    {"x": 5},
    {"x": 5.0},
    {"x": "5"},
    {"x": "05"},
    {"x": True},
    {"x": None},
    {"x": [1, "a"]},
    {"x": "abc"},
    {"x": {"y": {"z": 10}}},
    {"x.y.z": 1, "x": {"y": {"z": 10}}},
    {"w": 1},
    {"x": float("nan"), "note": "not JSON"},
    {"x": 2**70},
]
CASES = {
    "x=5": [0, 1, 2],
    "x=5.0": [0, 1],
    "x=05": [0, 1, 3],
    "x!=5": [3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    "x>4": [0, 1, 2, 3, 12],
    "x<10": [0, 1, 2, 3],
    "x<=5": [0, 1, 2, 3],
    f"x={2**70}": [12],
    f"x={2**70 + 1}": [],
    "x=true": [4],
    "x=null": [5],
    'x=[1,"a"]': [6],
    "x>=abc": [4, 7],
    "x<true": [2, 3, 7],
    "x in 5, abc,true": [0, 1, 2, 4, 7],
    "x.y.z=10": [8],
    "x.y.z>=1": [8, 9],
    "x.y.z!=1": [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12],
    "x=NaN": [11],
}


def test_what_conditions_find(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(catalog, ROWS)
    for text, found in CASES.items():
        assert where(catalog, text) == found, text
    # The same where SQLite is too old to take fields out of rows.
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 37, 2))
    for text, found in CASES.items():
        assert where(catalog, text) == found, text


NUMBERS: list[Any] = [0.9, 0.1, "0.9", "0.1", None, "", "high", float("nan"), True, [0.9], {"a": 1}]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("tox>0.8", [0, 2]),
        ("tox>=0.9", [0, 2]),
        ("tox<0.5", [1, 3]),
        ("tox<=0.1", [1, 3]),
        ("tox!=0.9", [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("tox=null", [4]),
        ("tox=", [5]),
    ],
)
def test_what_is_no_number_is_on_neither_side_of_one(
    catalog: Catalog, text: str, found: list[int]
) -> None:
    fill(catalog, [*({"tox": value} for value in NUMBERS), {"another": 1}])
    assert where(catalog, text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("day>2020-06-01", [1, 2]),
        ("day<=2020-06-01", [0]),
        ("day>=2020-06", [0, 1, 2]),
        ("day<2020-06", []),
        ("day<2020-07", [0, 1]),
        ("day>2020", [6]),
    ],
)
def test_dates_are_in_the_order_of_texts(catalog: Catalog, text: str, found: list[int]) -> None:
    days = ["2020-06-01", "2020-06-01T10:00:00", "2021-01-01", None, "", 19, 2021, {"a": 1}]
    fill(catalog, [*({"day": day} for day in days), {"another": 1}])
    assert where(catalog, text) == found


def test_all_conditions_have_to_be_met_and_only_by_live_rows(catalog: Catalog) -> None:
    fill(catalog, [{"a": i, "b": i % 2, "big": "x" * i} for i in range(20)])
    catalog.remove([f"k{catalog.next_id() - 13}"])
    assert where(catalog, "a>=5", "b=1", "a<12") == [5, 9, 11]
    assert where(catalog, "a>=5", "b=2") == []


def test_a_field_that_no_row_has_is_named_with_those_there_are(catalog: Catalog) -> None:
    fill(catalog, [{"a": 1}, {"b": {"c": None}}])
    for text in ("source=x", "source!=x", "b.d=1", "größe=1", "a.b.c=1"):
        with pytest.raises(InputError, match=r"no sample has a field '.*': the fields are a, b$"):
            where(catalog, "a=1", text)
    assert where(catalog, "b.c=null") == [1]
    assert where(catalog, "b.c!=null") == [0]
    catalog.remove(f"k{id}" for id in range(catalog.next_id()))
    with pytest.raises(InputError, match=r"has a field 'source': the fields are none$"):
        where(catalog, "source=x")


def test_more_values_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forvalue_index.catalog.where.REMEMBERED", 4)
    decisions = Decisions(parse_condition("a>6"))
    for start in (0, 3, 6, 9, 2):
        values = range(start, start + 3)
        assert decisions.of([*map(str, values), None]) == [*(i > 6 for i in values), False]
        assert len(decisions._known) <= 4 + 3 + 1
    assert decisions.seen


def test_the_cost_does_not_grow_with_the_number_of_values(catalog: Catalog) -> None:
    fill(catalog, [{"a": i, "b": f"row-{i}", "ä": i} for i in range(1000)])
    numbers = ",".join(map(str, range(500, 20_500)))
    names = ",".join(f"row-{i}" for i in range(500, 20_500))
    start = time.process_time()
    for text in (f"a in {numbers}", f"b in {names}", f"ä in {numbers}"):
        assert where(catalog, text) == list(range(500, 1000))
    assert time.process_time() - start < 5  # comparing each with each takes a minute


def test_rows_are_parsed_in_python_only_where_the_database_cannot(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Row] = [{"a": 1, "ä": 1}, {"a": 2, "ä": 2, "\ud800": 0}, {"a": float("nan"), "ä": 3}]
    fill(catalog, rows)
    parsed = []

    def counted(row: Row, field: str) -> Any:
        parsed.append(row["ä"])
        return value_of(row, field)

    monkeypatch.setattr("forvalue_index.catalog.reads.value_of", counted)
    escaped = [] if catalog.place.endswith(".db") else [2]  # which PostgreSQL never reads
    for text, found, by_python in [
        ("a>=1", [0, 1], [*escaped, 3]),
        ("ä>=2", [1, 2], [2, 3]),
        ('q"!=2', None, [1, 2, 3]),
    ]:
        parsed.clear()
        if found is None:
            with pytest.raises(InputError, match="no sample has a field"):
                where(catalog, text)
        else:
            assert where(catalog, text) == found
        assert parsed == by_python


# -- against a predicate that shares no code with it -------------------------------------------

NAMES = ["a", "b", "a.b", "ä", 'q"', "b\\", "$", "[0]", "", ".", "\ud800", "\u2028", "\x7f", "#"]
WORDS = ["", "a", "A", "ä", "\ud800", "\0", '"', "true", "null", "1", "1.0", "-2", "1e1", "NaN"]
WORDS += ["-0", "007", "1e400", " 1", "1_0", "١", "\u2028", "\\u0041", "Infinity"]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.sampled_from([2**63, 2**70, 10**400, 0.1, -0.0, 1e300, float("nan"), float("-inf")])
    | st.floats()
    | st.sampled_from(WORDS)
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)


values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | objects(inner), max_leaves=4
)

SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def plainly(row: Row, field: str, sign: str, wanted: list[str]) -> tuple[bool, bool]:
    """Whether the row has the field, and whether it meets the condition."""
    if field in row:
        value = row[field]
    else:
        value = row
        for name in field.split("."):
            if not (isinstance(value, dict) and name in value):
                return False, sign == "!="
            value = value[name]

    def number(text: str) -> Any:
        number_like = text.strip("-").replace(".", "0").replace("e", "0").isdecimal()
        number_like &= text.isascii()
        return (float(text) if "." in text or "e" in text else int(text)) if number_like else None

    def one(sign: str, text: str) -> bool:
        left: Any = value
        if sign[0] in "<>":
            if number(text) is None:
                words = {True: "true", False: "false"}
                left = words[value] if type(value) is bool else value
                return type(left) is str and left != "" and SIGNS[sign](left, text)
            left = number(value) if type(value) is str else value
            return type(left) in (int, float) and SIGNS[sign](left, number(text))
        if type(left) in (int, float) and number(text) is not None:
            return SIGNS[sign](left, number(text))
        as_text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if isinstance(value, list | dict):
            as_text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return SIGNS[sign](as_text, text)

    return True, any(one("=", text) for text in wanted) if sign == "in" else one(sign, wanted[0])


@settings(max_examples=70)
@given(
    rows=st.lists(objects(values), min_size=1, max_size=6),
    field=st.sampled_from([*NAMES, "a.a", "b.a.b", "$.a", "ä.a", "a.", "a..a", 'a.q"']),
    sign=st.sampled_from([*SIGNS, "in"]),
    wanted=st.lists(
        st.sampled_from(["a", "ä", "true", "null", "0", "1", "1.0", "-2", "10", "0.1", "", "NaN"])
        | st.sampled_from([str(2**63), str(10**400), '{"a":1}', "[]", *WORDS]),
        min_size=1,
        max_size=3,
    ),
)
@example(rows=[{"a": 0.1 + 0.2}, {"a": 0.3}], field="a", sign="=", wanted=["0.3"])
@example(rows=[{"a": 2**53 + 1}, {"a": 2**53}], field="a", sign=">", wanted=[str(2**53)])
def test_any_condition_agrees_with_a_plain_predicate(
    rows: list[Row],
    field: str,
    sign: str,
    wanted: list[str],
    catalog: Catalog,
) -> None:
    if sign != "in":
        wanted = wanted[:1]
    condition = Condition(field, sign, tuple(wanted))
    fill(catalog, rows)
    # As they were kept: a row goes through JSON once.
    stored = [sample.row for sample in catalog.iterate()]
    has, meets = zip(*(plainly(row, field, sign, wanted) for row in stored), strict=True)
    fields, segment = fields_of(catalog)
    ids, seen = fields.met([segment], [condition], refused)
    assert numbers(catalog, ids) == [i for i, met in enumerate(meets) if met]
    assert (field in seen) == any(has)

"""The values of fields by the columns that filters keep, and removals by them: no rows are read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.indexes import SETTINGS

from forvalue_index import InfluenceIndex
from forvalue_index.analysis.field_values import field_values
from forvalue_index.analysis.values import group_values, sample_values
from forvalue_index.catalog.catalog import Catalog
from forvalue_index.errors import InputError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row

pytestmark = pytest.mark.usefixtures("small_chunks")
KINDS: list[Any] = ["b", "a", 3, 3.5, None, True, {"x": [1, "é"]}, "", "3"]


@pytest.fixture
def rows() -> list[Row]:
    """Forty rows; every tenth lacks `kind`."""
    return [
        {"id": f"row-{n}", "prompt": f"p{n}", "response": f" {n}", "meta": {"lang": "de"}}
        | ({} if n % 10 == 9 else {"kind": KINDS[n % len(KINDS)]})
        for n in range(40)
    ]


@pytest.fixture(params=[None, 3])
def index(request: Any, tmp_path: Path, rows: list[Row], lm: LanguageModel) -> Any:
    built, _ = InfluenceIndex.build(tmp_path / "i", rows, lm, shards=request.param, **SETTINGS)
    with built as index:
        yield index


def text(value: Any) -> str:
    names = {None: "null", True: "true", 3: "3", 3.5: "3.5"}
    return '{"x": [1, "é"]}' if isinstance(value, dict) else names.get(value, value)


def test_values_are_those_of_the_rows(index: InfluenceIndex) -> None:
    index.remove(["row-3", "row-9"])
    ids = index.snapshot.ids[::-2]  # some, in another order
    found = field_values(index, ids, "kind")
    expected = [text(s.row["kind"]) if "kind" in s.row else "(none)" for s in index.stored(ids)]
    assert [found.names[code] for code in found.codes] == expected and "(none)" in expected
    assert found.names == sorted(set(expected))
    assert dict(zip(found.names, found.counts, strict=True)) == Counter(expected)
    assert field_values(index, ids, "meta.lang").names == ["de"]
    with pytest.raises(InputError, match="no training row has a field 'none': the fields are id"):
        field_values(index, ids, "none")


def test_groups_are_those_of_a_plain_loop(index: InfluenceIndex) -> None:
    found = sample_values(index, {"prompt": "a", "response": " b"})
    groups = {group.name: group for group in group_values(index, found, "kind")}
    values: dict[str, list[float]] = {}
    for sample, value in zip(index.stored(found.ids), found.value, strict=True):
        name = text(sample.row["kind"]) if "kind" in sample.row else "(none)"
        values.setdefault(name, []).append(value)
    assert groups.keys() == values.keys()
    for name, own in values.items():
        group = groups[name]
        assert (group.samples, group.helpful) == (len(own), np.mean(np.array(own) > 0))
        np.testing.assert_allclose([group.mean, group.sum], [np.mean(own), np.sum(own)])


def test_rows_are_read_once(index: InfluenceIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = index.snapshot.ids
    before = field_values(index, ids, "kind")

    def read(*_: object) -> None:
        pytest.fail("rows are read")

    monkeypatch.setattr(Catalog, "column", read)
    monkeypatch.setattr(Catalog, "samples", read)
    monkeypatch.setattr(Catalog, "iterate", read)
    again = field_values(index, ids, "kind")
    assert again.names == before.names and (again.codes == before.codes).all()
    assert index.remove(where="kind=a") == before.counts[before.names.index("a")] == 4
    assert index.remove(where=["kind=a", "kind=b"]) == index.remove(where="kind=a") == 0
    assert len(index) == 36


def test_what_is_removed_is_what_a_condition_finds(index: InfluenceIndex) -> None:
    with pytest.raises(InputError, match="no sample has a field 'kid'"):
        index.remove(where=["kind=a", "kid=1"])
    expected = {sample.key for sample in index.rows("kind!=b")}
    assert index.remove(where="kind=b") == 40 - len(expected) > 0
    assert {sample.key for sample in index.rows()} == expected
    assert index.verify() == []

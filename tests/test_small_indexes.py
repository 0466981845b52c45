"""Indexes of few numbers, of few rows, and of rows that say the same: they answer as others do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.config import SKETCHES
from forvalue_index.metric import METRICS
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row

KINDS: dict[str, list[Row]] = {
    "one": [{"id": "0", "prompt": "ab", "response": " cd"}],
    "alike": [{"id": f"{i}", "prompt": "ab", "response": " cd"} for i in range(9)],
    "nine": [{"id": f"{i}", "prompt": f"ab{i}", "response": f" c{i * i}"} for i in range(9)],
}
QUERY = {"prompt": "ab", "response": " cd"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize(
    ("dim", "sketch_dim", "fit_samples"),
    [(1, 512, 4096), (1, 1, 1), (2, 3, 1), (3, 2, 2), (3, 512, 1), (8, 5, 1)],
)
def test_a_small_index_answers(
    kind: str,
    sketch: str,
    dim: int,
    sketch_dim: int,
    fit_samples: int,
    tmp_path: Path,
    lm: LanguageModel,
) -> None:
    rows = KINDS[kind]
    vector = VectorConfig(dim=dim, sketch=sketch, sketch_dim=sketch_dim, fit_samples=fit_samples)
    format = FormatConfig(key_field="id")
    built, _ = InfluenceIndex.build(tmp_path / "i", rows, lm, format=format, vector=vector)
    with built as index:
        for metric in (name for name, found in METRICS.items() if found.linear):
            hits = index.query(QUERY, 4, metric=metric)
            assert len({hit.key for hit in hits}) == len(hits) == min(4, len(rows))
            scores = np.array([hit.score for hit in hits])
            assert np.isfinite(scores).all() and (np.diff(scores) <= 0).all()
            if kind == "alike":
                assert scores == pytest.approx([scores[0]] * len(hits), rel=1e-3)
        assert index.add([{"id": "new", "prompt": "zz", "response": " y"}]).added == 1
        assert index.verify() == []


def test_an_index_that_never_had_rows_is_exported_as_none(
    tmp_path: Path, lm: LanguageModel
) -> None:
    with InfluenceIndex.create(tmp_path / "index", lm) as index:
        assert index.export(tmp_path / "v.npy", tmp_path / "rows.jsonl") == (0, 0)
    assert np.load(tmp_path / "v.npy").shape == (0, 0)
    assert (tmp_path / "rows.jsonl").read_text() == ""

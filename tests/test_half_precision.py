"""What a batch may change of a vector: nothing in float32, little in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forvalue_index import InfluenceIndex, ModelConfig, VectorConfig

BOUNDS = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
"""Of a vector's length. A score moves by at most so much of the product of both lengths."""


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("recipe", ["balanced", "raw"])
def test_a_query_alone_and_among_others(
    tmp_path: Path, model_dir: Path, rows: list[dict[str, Any]], dtype: str, recipe: str
) -> None:
    config = ModelConfig(str(model_dir), dtype=dtype)
    vector = VectorConfig(recipe=recipe, dim=256, sketch_dim=2304)
    index, _ = InfluenceIndex.build(tmp_path / "i", rows, config, vector=vector)
    with index:
        samples = index.samples(rows)
        among = index.vectors(samples)
        alone = np.concatenate([index.vectors([sample]) for sample in samples])
        lengths = np.linalg.norm(alone, axis=1)
        moved = np.linalg.norm(among - alone, axis=1) / lengths
        assert moved.max() < BOUNDS[dtype]
        norms = np.array([row.norm for row in index.rows()])
        one, other = index.scores(samples)[1], [index.scores([s])[1][0] for s in samples]
        largest = BOUNDS[dtype] * lengths[:, None] * norms / index.vectoriser.scale**2
        assert (np.abs(one - np.stack(other)) <= largest).all()

"""A vectoriser that was saved makes the same vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import tiny_model, tiny_tokenizer
from safetensors import SafetensorError

from forvalue_index.config import RECIPES, SKETCHES, FormatConfig, VectorConfig
from forvalue_index.data.formatter import Formatter
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.fit import fit_vectoriser
from forvalue_index.model.language_model import wrap_model
from forvalue_index.records import Row
from forvalue_index.vectors.vectoriser import MEDIAN_NORM, Vectoriser

CPU = torch.device("cpu")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("sketch", SKETCHES)
def test_saved_and_loaded_is_the_same(rows: list[Row], recipe: str, sketch: str) -> None:
    lm = wrap_model(tiny_model("llama"), tiny_tokenizer())
    samples = Formatter(lm.tokenizer, FormatConfig(), 64).samples(
        [(f"row {i}", row) for i, row in enumerate(rows)]
    )
    config = VectorConfig(recipe=recipe, sketch=sketch, dim=16, sketch_dim=256)
    result = fit_vectoriser(lm, samples, config, lambda done: None)
    encoded, data = result.encoded, result.vectoriser.to_bytes()
    assert data == fit_vectoriser(lm, samples, config, lambda done: None).vectoriser.to_bytes()
    loaded = Vectoriser.from_bytes(data, config, CPU)
    assert loaded.to_bytes() == data
    for batch in Encoder(lm).encode(samples, loaded):
        for position, item in batch:
            scale = encoded[position].norm
            np.testing.assert_allclose(
                item.vector / scale, encoded[position].vector / scale, atol=1e-5
            )
            assert item.retained == pytest.approx(encoded[position].retained, abs=1e-4)
            assert item.loss == pytest.approx(encoded[position].loss, rel=1e-4)
    norms = [item.norm for item in encoded]
    assert MEDIAN_NORM / 4 < np.median(norms) < MEDIAN_NORM * 4
    with pytest.raises(SafetensorError):
        Vectoriser.from_bytes(data[:-10], config, CPU)


def test_nothing_that_is_loaded_lies_where_the_file_was_read_to(rows: list[Row]) -> None:
    """Elsewhere, the last bits of a product may be others: a score would change by opening."""
    lm = wrap_model(tiny_model("llama"), tiny_tokenizer())
    samples = Formatter(lm.tokenizer, FormatConfig(), 64).samples(
        [(f"row {i}", row) for i, row in enumerate(rows)]
    )
    config = VectorConfig(dim=16, sketch_dim=256)
    data = fit_vectoriser(lm, samples, config, lambda done: None).vectoriser.to_bytes()
    kept = [Vectoriser.from_bytes(data, config, CPU) for _ in range(9)]
    for loaded in kept:
        (part,) = loaded.parts
        assert loaded.projection is not None
        tensors = [*part.recipe.tensors.values(), *part.sketch.tensors.values()]
        assert len(tensors) > 3
        for tensor in [*tensors, *loaded.projection.tensors.values()]:
            assert tensor.data_ptr() % 64 == 0


def test_a_sketch_that_is_not_wider_is_stored_whole(rows: list[Row]) -> None:
    lm = wrap_model(tiny_model("llama"), tiny_tokenizer())
    samples = Formatter(lm.tokenizer, FormatConfig(), 64).samples([("row", rows[0])])
    config = VectorConfig(dim=240, sketch_dim=240)
    fitted = fit_vectoriser(lm, samples, config, lambda done: None)
    assert fitted.vectoriser.dim == 240
    assert fitted.fidelity is None
    assert fitted.encoded[0].retained == pytest.approx(1)
    assert "directions" not in fitted.vectoriser.projection.tensors

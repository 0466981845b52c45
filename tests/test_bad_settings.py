"""Settings that do not fit, narrow models and odd rows: right answers, or one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.indexes import KEYED
from helpers.models import tiny_tokenizer
from safetensors.torch import load, save
from transformers import LlamaConfig, LlamaForCausalLM

from forvalue_index import InfluenceIndex, VectorConfig
from forvalue_index.cli import main
from forvalue_index.config import BITS, RECIPES
from forvalue_index.errors import CorruptIndexError, InputError
from forvalue_index.model.language_model import LanguageModel, wrap_model
from forvalue_index.records import Row
from forvalue_index.store.store import Store


def narrow_model(hidden: int) -> LanguageModel:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96,
            hidden_size=hidden,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=64,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return wrap_model(model.eval(), tiny_tokenizer())


def compared(index: InfluenceIndex, rows: list[Row]) -> float:
    """The error of all scores beside the exact ones, in all; each row finds itself by cosine."""
    samples = index.session.samples(rows)
    exact, found = index.influence(samples, samples), np.full((len(rows), len(rows)), np.nan)
    places = {row["id"]: i for i, row in enumerate(rows)}
    for hit in index.query(rows, len(rows)):
        found[hit.query, places[hit.key]] = hit.score
    assert np.isfinite(found).all()
    best: dict[int, float] = {}
    for hit in index.query(rows, len(rows), metric="cosine"):
        assert np.isfinite(hit.score)
        top = best.setdefault(hit.query, hit.score)
        if places[hit.key] == hit.query:
            assert hit.score == pytest.approx(top, abs=1e-3)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("hidden", [2, 4, 8])
def test_a_narrow_model_keeps_its_influences(
    hidden: int, recipe: str, rows: list[Row], tmp_path: Path
) -> None:
    vector = VectorConfig(recipe=recipe)  # far more numbers than there are
    lm = narrow_model(hidden)
    index, _ = InfluenceIndex.build(tmp_path / "i", rows[:20], lm, format=KEYED, vector=vector)
    with index:
        index.add(rows[20:])
        assert index.store.dim == 96 * hidden
        assert compared(index, rows) < 0.1
        assert index.verify() == []


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("dim", "sketch_dim", "limit"),
    [(7, 512, 1.1), (1000, 9216, 0.9), (4096, 9216, 0.1), (4096, 100, 3)],
)
def test_any_dim_and_bits_answer(
    dim: int,
    sketch_dim: int,
    limit: float,
    bits: int,
    lm: LanguageModel,
    rows: list[Row],
    tmp_path: Path,
) -> None:
    """What there are too few numbers for is kept badly, but all numbers are numbers."""
    vector = VectorConfig(dim=dim, sketch_dim=sketch_dim, bits=bits)
    index, _ = InfluenceIndex.build(tmp_path / "i", rows[:20], lm, format=KEYED, vector=vector)
    with index:
        index.add(rows[20:])
        samples = index.session.samples(rows)
        exact = index.influence(samples, samples)
        found = np.zeros_like(exact)
        for hit in index.query(rows, len(rows)):
            found[hit.query, int(hit.key.removeprefix("row-"))] = hit.score
        assert np.linalg.norm(found - exact) < limit * np.linalg.norm(exact)
        assert index.verify() == []


@pytest.mark.parametrize(
    "setting",
    [
        {name: value}
        for name in ("dim", "sketch_dim", "fit_samples")
        for value in (0, -1, 2**31, 2.5, "5", True, None)
    ]
    + [{"seed": value} for value in (-1, 2**63, 0.5)]
    + [{"bits": value} for value in (0, 1, 5, 4.0, "4", True)],
    ids=str,
)
def test_settings_that_cannot_be_are_named(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(InputError, match=rf"^{name} is .*, but must be "):
        VectorConfig(**setting)


@pytest.mark.parametrize(
    "option",
    [
        *((name, value) for name in ("--dim", "--sketch-dim") for value in ("0", "1", f"{2**31}")),
        ("--fit-samples", "0"),
        ("--fit-samples", "99999999999999999999"),
        ("--bits", "5"),
        ("--bits", "x"),
    ],
    ids=" ".join,
)
def test_options_that_cannot_be_are_named(option: tuple[str, str], tmp_path: Path) -> None:
    command = ["build", "no.jsonl", "--index", str(tmp_path / "i"), "--model", "none", *option]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2 and f"Invalid value for '{option[0]}'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def _cut(tensors: dict[str, Any]) -> None:
    tensors["projection.directions"] = tensors["projection.directions"][1:].clone()


def _lost(tensors: dict[str, Any]) -> None:
    del tensors["projection.signs"]


def _shorter(tensors: dict[str, Any]) -> None:
    tensors["projection.signs"] = tensors["projection.signs"][:, 1:].clone()


def _recipe(tensors: dict[str, Any]) -> None:
    del tensors["0.sketch.orders"]


@pytest.mark.parametrize("change", [_cut, _lost, _shorter, _recipe, None])
def test_a_vectoriser_under_its_own_hash_is_refused_if_it_does_not_fit(
    change: Any, lm: LanguageModel, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = VectorConfig(dim=8, sketch_dim=512)
    InfluenceIndex.build(tmp_path / "i", rows, lm, format=KEYED, vector=vector)[0].close()
    with InfluenceIndex.open(tmp_path / "i", model=lm) as index:
        data = index.store.vectoriser_bytes()
        if change is None:
            data = data[:100]
        else:
            tensors = load(data)
            change(tensors)
            data = save(tensors)
        monkeypatch.setattr(Store, "vectoriser_bytes", lambda _: data)
        with pytest.raises(CorruptIndexError, match=r"vectoriser of .* cannot be used"):
            index.query(rows[0])

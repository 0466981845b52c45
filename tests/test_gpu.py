"""What a real GPU makes is what the CPU makes, up to rounding."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_vision
from helpers.models import save_model, tiny_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.config import ModelConfig
from forvalue_index.model.generation import Sampling
from forvalue_index.model.gradients import gradient_scores
from forvalue_index.records import Row

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import bench_build

KEYED = FormatConfig(key_field="id")
VECTOR = VectorConfig(dim=16, sketch_dim=256, fit_samples=16)


NEAR = {"float32": 1e-3, "float16": 0.01, "bfloat16": 0.06}
"""How far apart two ways to calculate in a dtype may be: some three times what rounding makes."""


def assert_near(found: Any, wanted: Any, dtype: str = "float32") -> None:
    """Makes sure that rows are the same, up to the rounding of a dtype."""
    found, wanted = np.atleast_2d(found), np.atleast_2d(wanted)
    lengths = np.linalg.norm(wanted, axis=1)
    assert (lengths > 0).all()
    assert (np.linalg.norm(found - wanted, axis=1) / lengths).max() < NEAR[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_an_index_of_one_device_is_asked_on_the_other(
    tmp_path: Path, rows: list[Row], kind: str, dtype: str
) -> None:
    model = ModelConfig(str(save_model(tmp_path / "model", kind, 0)), dtype=dtype)
    for made, asked in (("cuda", "cpu"), ("cpu", "cuda")):
        path = tmp_path / made
        index, report = InfluenceIndex.build(
            path, rows, model, format=KEYED, vector=VECTOR, device=made
        )
        with index, InfluenceIndex.open(path, device=asked) as other:
            assert report.added == len(other) == 30 and index.verify() == []
            assert index.lm.device.type == made and other.lm.device.type == asked
            samples = index.samples(rows[:9])
            for name in ("vectors", "scores", "influence"):
                arguments = (samples, samples) if name == "influence" else (samples,)
                found, wanted = (getattr(i, name)(*arguments) for i in (other, index))
                if name == "scores":
                    found, wanted = found[1], wanted[1]
                assert_near(found, wanted, dtype)
            terms = [i.explain(rows[0], "row-5").terms for i in (other, index)]
            assert_near(*(part.reshape(1, -1) for part in terms), dtype=dtype)
            if dtype == "float32":
                hits = [i.query(rows[:3], k=30, exact=True) for i in (other, index)]
                assert_near(*([sorted(hit.score for hit in each)] for each in hits))
            assert other.respond("hello ", Sampling(8)).n_scored


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["raw", "kfac", "balanced"])
@pytest.mark.parametrize("sketch", ["block", "tensor"])
def test_every_recipe_and_sketch(
    tmp_path: Path, model_dir: Path, rows: list[Row], recipe: str, sketch: str
) -> None:
    vector = VectorConfig(dim=16, sketch_dim=256, fit_samples=16, recipe=recipe, sketch=sketch)
    index, _ = InfluenceIndex.build(
        tmp_path / "i", rows, str(model_dir), format=KEYED, vector=vector, device="cuda"
    )
    with index, InfluenceIndex.open(tmp_path / "i", device="cpu") as other:
        samples = index.samples(rows)
        assert_near(index.vectors(samples), other.vectors(samples))


@pytest.mark.gpu
def test_a_seed_draws_the_same_and_leaves_the_random_state(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    index, _ = InfluenceIndex.build(
        tmp_path / "i", rows, str(model_dir), format=KEYED, vector=VECTOR, device="cuda"
    )
    with index:
        before = torch.cuda.get_rng_state_all()
        drawn = [
            index.respond("hello ", Sampling(8, temperature=1.0, seed=seed)).input_ids.tolist()
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        assert all(map(torch.equal, torch.cuda.get_rng_state_all(), before))


@pytest.mark.gpu
def test_classifiers_and_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=3,
        pad_token_id=0,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    tiny_tokenizer().save_pretrained(tmp_path / "classifier")
    labelled = FormatConfig(text_field="text", label_field="label")
    texts = [{"text": "ab" * (i + 1), "label": i % 3} for i in range(9)]
    vision = tiny_vision.save(tmp_path / "llava", "llava")
    pairs = [{"prompt": f"what {i}?", "response": f" it is {i}"} for i in range(9)]
    seen = FormatConfig(image_field="image")
    for name, model, rows, format in (
        ("a", tmp_path / "classifier", texts, labelled),
        ("b", vision, pairs, seen),
    ):
        index, _ = InfluenceIndex.build(
            tmp_path / name, rows, str(model), format=format, vector=VECTOR, device="cuda"
        )
        with index, InfluenceIndex.open(tmp_path / name, device="cpu") as other:
            samples = index.samples(rows)
            assert_near(index.vectors(samples), other.vectors(samples))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_all_weights(tmp_path: Path, rows: list[Row], dtype: str) -> None:
    model = ModelConfig(str(save_model(tmp_path / "model", "llama", 0)), dtype=dtype)
    found = []
    for device in ("cuda", "cpu"):
        index, _ = InfluenceIndex.build(
            tmp_path / device, rows, model, format=KEYED, vector=VECTOR, device=device
        )
        with index:
            samples = index.samples(rows[:5])
            found.append(gradient_scores(index.lm, samples, samples))
    assert_near(*found, dtype=dtype)


@pytest.mark.gpu
def test_several_gpus_and_auto(tmp_path: Path, model_dir: Path, rows: list[Row]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    pytest.importorskip("accelerate")
    InfluenceIndex.build(
        tmp_path / "one", rows[:9], str(model_dir), format=KEYED, vector=VECTOR, device="cuda:1"
    )[0].close()
    for name in ("several", "auto"):
        shutil.copytree(tmp_path / "one", tmp_path / name)
    vectors = []
    for name, device, devices in (
        ("one", "cuda:1", None),
        ("several", None, "all"),
        ("auto", "auto", None),
    ):
        with InfluenceIndex.open(tmp_path / name, device=device) as index:
            assert index.add(rows, devices=devices).added == 21
            assert index.verify() == []
            vectors.append(index.flat.vectors(np.arange(30)))
    assert_near(vectors[1], vectors[0])
    assert_near(vectors[2], vectors[0])


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", "float32"),
        pytest.param("cuda", "float32", marks=pytest.mark.gpu),
        pytest.param("cuda", "bfloat16", marks=pytest.mark.gpu),
    ],
)
def test_the_build_bench_measures(tmp_path: Path, device: str, dtype: str) -> None:
    model = str(save_model(tmp_path / "model", "llama", 0))
    source = bench_build.Source(model, None, dtype, device)
    figures = bench_build.measure(source, 16, 12, 1, VECTOR)
    assert figures.forward_tokens_s > 0 and figures.add_tokens_s > 0
    assert figures.ratio_to_forward > 0 and (figures.ratio_to_backward or 0) > 0
    shares = bench_build.profile(source.load(), 16, 12, VECTOR)
    assert all(shares[part] > 0 for part in bench_build.PARTS)

"""Nothing on the way of a vector mixes devices: the whole pipeline, on a GPU that is pretended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import tiny_model, tiny_tokenizer
from helpers.pretend import CUDA, pretended_cuda, to_cuda

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.generation import Sampling
from forvalue_index.model.language_model import LanguageModel, wrap_model
from forvalue_index.records import Row

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def model(kind: str, dtype: torch.dtype, *, cuda: bool) -> LanguageModel:
    made = tiny_model(kind).to(dtype)
    return wrap_model(to_cuda(made) if cuda else made, tiny_tokenizer())


@pytest.mark.parametrize(
    ("kind", "dtype", "recipe", "sketch"),
    [
        ("llama", torch.float32, "balanced", "block"),
        ("qwen2", torch.bfloat16, "kfac", "block"),
        ("gpt2", torch.float16, "raw", "tensor"),
    ],
)
def test_an_index_on_a_gpu_is_that_of_the_cpu(
    tmp_path: Path,
    rows: list[Row],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    dtype: torch.dtype,
    recipe: str,
    sketch: str,
) -> None:
    rows += [row | {"id": f"again-{row['id']}"} for row in rows]  # more than directions are learned
    vector = VectorConfig(dim=4, sketch_dim=256, fit_samples=40, recipe=recipe, sketch=sketch)
    settings: Any = {"format": FormatConfig(key_field="id"), "vector": vector}

    def answers(index: InfluenceIndex) -> list[Any]:
        samples = index.samples(rows[:9])
        encoder = Encoder(index.lm, 64)
        answer = index.respond("hello ", Sampling(8, temperature=1.0))
        return [
            index.vectors(samples),
            index.scores(samples, "cosine")[1],
            index.influence(samples[:3], samples),
            index.explain(rows[0], "row-5").terms,
            # A row and its copy score the same but for rounding: either may come first.
            [hit.key.removeprefix("again-") for hit in index.query(rows[:2], k=6, exact=True)],
            encoder.losses(samples),
            encoder.states(samples),
            answer.input_ids,
        ]

    def build(lm: LanguageModel) -> InfluenceIndex:
        return InfluenceIndex.build(tmp_path / str(lm.device), rows, lm, **settings)[0]

    with build(model(kind, dtype, cuda=False)) as index:
        expected = answers(index)
    with pretended_cuda(monkeypatch), build(model(kind, dtype, cuda=True)) as index:
        assert index.lm.device == CUDA
        assert index.session.vectoriser.parts[0].sketch.zeros(1).is_cuda
        for number, (found, wanted) in enumerate(zip(answers(index), expected, strict=True)):
            if isinstance(found, list):
                assert found == wanted
            else:
                # Stored vectors may be a step of float16 apart: sums are in another order.
                off = 2.0**-10 if number == 1 else 1e-4
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=off)


@pytest.mark.parametrize(("times", "segments"), [(0.5, 10), (3, 4), (1000, 2)])
def test_a_gpu_takes_more_rows_of_a_small_model_between_two_commits(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch, times: float, segments: int
) -> None:
    monkeypatch.setattr("forvalue_index.pipeline.add.CHUNK", 2)
    vector = VectorConfig(dim=4, sketch_dim=256)
    with pretended_cuda(monkeypatch):
        lm = model("llama", torch.float32, cuda=True)
        monkeypatch.setattr("forvalue_index.pipeline.add.SMALL", int(times * lm.n_parameters))
        with InfluenceIndex.build(tmp_path / "i", rows[:20], lm, vector=vector)[0] as index:
            assert index.info()["segments"] == segments


def test_what_a_gpu_forbids_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_cuda(monkeypatch):
        there = torch.arange(4.0, device="cuda")
        assert there.is_cuda and (there + 1).device == CUDA
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            there + torch.ones(4)
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            there.index_add_(0, torch.tensor([1]), there[:1])
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        copied = there.to("cpu", non_blocking=True)
        assert copied.isnan().all()
        torch.cuda.current_stream(CUDA).record_event().synchronize()
        assert copied.tolist() == there.cpu().tolist() == [0, 1, 2, 3]


def test_half_precision_heads_carry_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch has no derivative of half-precision products that are kept in float32."""
    seen, mm = [], torch.mm

    def watched(*args: Any, **settings: Any) -> Any:
        seen.append(torch.is_grad_enabled())
        return mm(*args, **settings)

    monkeypatch.setattr(torch, "mm", watched)
    with pretended_cuda(monkeypatch):
        head = model("llama", torch.bfloat16, cuda=True).head
        hidden = torch.ones(4, 24, dtype=torch.bfloat16).to(CUDA)
        seen.clear()
        plain = head.logits(hidden)
        assert not seen
        with torch.no_grad():
            torch.testing.assert_close(head.logits(hidden).cpu(), plain.cpu())
        assert seen == [False]

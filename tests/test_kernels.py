"""Errors that are added up by group as they are made are those of the plain way.

Without a GPU, Triton's interpreter runs the kernels (`TRITON_INTERPRET`, set in conftest.py).
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from torch import nn

from forvalue_index import VectorConfig
from forvalue_index.errors import ModelError
from forvalue_index.features.tokens import Groups
from forvalue_index.forward import head as head_module
from forvalue_index.forward.encoder import Encoder
from forvalue_index.forward.fit import fit_vectoriser
from forvalue_index.forward.folding import available
from forvalue_index.forward.model import LanguageModel, wrap_model
from forvalue_index.records import Sample

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import check_heads

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []  # others see no GPU
V, N = 96, 32  # vocabulary, samples


@pytest.fixture(scope="module")
def kernels() -> Any:
    """The module, where its kernels can be run."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    from forvalue_index.forward import kernels

    try:
        kernels.fold(
            torch.zeros(2, 1, device=DEVICE),
            torch.zeros(1, dtype=torch.int64, device=DEVICE),
            Groups(torch.zeros(2, dtype=torch.int64, device=DEVICE), 1),
            1.0,
        )
    except Exception as error:
        if torch.cuda.is_available():
            raise
        pytest.skip(f"Triton {triton.__version__} cannot interpret here: {error}")
    return kernels


@pytest.mark.parametrize(
    ("vocabulary", "n", "count", "scale", "size"),
    [(96, 5, 16, 1.0, 4.0), (1500, 131, 64, 0.25, 30.0), (64, 1, 70, -1.0, 2.0), (3, 2, 1, 1.0, 0)],
    ids=["small", "several programs", "empty groups, one token", "equal logits"],
)
def test_sums_lengths_and_losses_are_exact(
    kernels: Any, vocabulary: int, n: int, count: int, scale: float, size: float
) -> None:
    draws = torch.Generator().manual_seed(0)
    logits = size * torch.randn(vocabulary, n, generator=draws)
    targets = torch.randint(vocabulary, (n,), generator=draws)
    logits[targets[0], 0] += 60  # known by heart
    of = torch.randint(count, (vocabulary,), generator=draws)
    groups = Groups(of.to(DEVICE), count)
    found = kernels.fold(logits.to(DEVICE), targets.to(DEVICE), groups, scale)
    sums, losses, lengths = (part.cpu().double() for part in found)

    z = logits.T.double().requires_grad_()
    wanted = nn.functional.cross_entropy(scale * z, targets, reduction="none")
    (errors,) = torch.autograd.grad(-wanted.sum(), z)
    grouped = torch.zeros(n, count, dtype=torch.float64)
    grouped.scatter_add_(1, of.expand(n, -1), errors)
    torch.testing.assert_close(sums, grouped, rtol=1e-5, atol=3e-7)
    torch.testing.assert_close(losses, wanted.detach(), rtol=1e-6, atol=3e-6)
    torch.testing.assert_close(lengths, errors.norm(dim=1), rtol=1e-5, atol=1e-12)


def with_bias(model: Any) -> Any:
    model.lm_head = nn.Linear(24, V)
    nn.init.normal_(model.lm_head.bias)
    return model


def cut(model: Any) -> Any:
    forward = model.forward

    def shorter(*args: Any, use_cache: bool = False, **settings: Any) -> Any:
        output = forward(*args, use_cache=use_cache, **settings)
        output.logits = 0.5 * output.logits[..., :90]
        return output

    model.forward = shorter
    return model


@pytest.mark.parametrize("change", [lambda model: model, with_bias, cut], ids=["", "bias", "cut"])
@pytest.mark.parametrize("recipe", ["balanced", "raw"])
def test_vectors_are_those_of_the_plain_way(
    kernels: Any, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], recipe: str
) -> None:
    lm = wrap_model(change(tiny_model("llama")).to(DEVICE), tiny_tokenizer())
    samples = check_heads.samples(90)
    config = VectorConfig(dim=8, sketch_dim=128, fit_samples=N, recipe=recipe)
    monkeypatch.setattr(head_module, "available", lambda device: False)
    wanted = encoded(lm, samples, config)
    calls = count_folds(monkeypatch, kernels)
    found = encoded(lm, samples, config)
    assert calls
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def encoded(lm: LanguageModel, samples: list[Sample], config: VectorConfig) -> np.ndarray:
    """The vectors of samples, and their losses in the last column."""
    vectoriser = fit_vectoriser(lm, samples[:2], config, lambda _: None).vectoriser
    rows = {i: item for batch in Encoder(lm, 64).encode(samples, vectoriser) for i, item in batch}
    return np.stack([np.append(rows[i].vector, rows[i].loss) for i in range(len(samples))])


def count_folds(monkeypatch: pytest.MonkeyPatch, kernels: Any) -> list[int]:
    """Has heads use the kernels wherever they are; the list grows with every use."""
    fold, calls = kernels.fold, []

    def counted(logits: torch.Tensor, *rest: Any) -> Any:
        calls.append(logits.shape[1])
        return fold(logits, *rest)

    monkeypatch.setattr(kernels, "fold", counted)
    monkeypatch.setattr(head_module, "available", lambda device: True)
    return calls


@pytest.mark.parametrize(
    ("kind", "recipe", "sketch"),
    [("llama", "kfac", "block"), ("llama", "raw", "tensor"), ("gemma2", "balanced", "block")],
)
def test_what_wants_single_errors_gets_them(
    kernels: Any, monkeypatch: pytest.MonkeyPatch, kind: str, recipe: str, sketch: str
) -> None:
    model = check_heads.tiny(kind) if kind == "gemma2" else tiny_model(kind)
    lm = wrap_model(model.to(DEVICE), tiny_tokenizer())
    calls = count_folds(monkeypatch, kernels)
    config = VectorConfig(dim=8, sketch_dim=128, fit_samples=N, recipe=recipe, sketch=sketch)
    assert np.isfinite(encoded(lm, check_heads.samples(), config)).all()
    assert not calls


def test_nan_is_found(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = wrap_model(tiny_model("llama").to(DEVICE), tiny_tokenizer())
    samples = check_heads.samples()
    config = VectorConfig(dim=8, sketch_dim=128, fit_samples=N)
    vectoriser = fit_vectoriser(lm, samples, config, lambda _: None).vectoriser
    with torch.no_grad():
        lm.model.lm_head.weight[5] = torch.nan
    calls = count_folds(monkeypatch, kernels)
    with pytest.raises(ModelError, match="NaN or infinity"):
        list(Encoder(lm).encode(samples, vectoriser))
    assert calls


def test_a_processor_has_no_use_for_them() -> None:
    assert not available(torch.device("cpu"))


def test_where_they_fail_torch_does_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "forvalue_index.forward.kernels", None)
    monkeypatch.delattr("forvalue_index.forward.kernels", raising=False)
    with caplog.at_level(logging.WARNING):
        assert not available.__wrapped__(torch.device("cuda"))
    assert "building with torch's own operations" in caplog.text


@pytest.mark.gpu
def test_a_gpu_uses_them() -> None:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("Triton wants a C compiler and Python's headers")
    assert available(torch.device("cuda"))
